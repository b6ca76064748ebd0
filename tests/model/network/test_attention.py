"""Deformable attention against explicit loops over every sample, values and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.network import attention as forms
from model.network import bags as bags_module
from model.network.attention import SAMPLERS, WHOLE, MSDeformAttn, Sampler, gridsample, plugin
from model.network.bags import bags
from model.network.levels import Levels


def in_bags(value: Tensor, levels: Levels, location: Tensor, weight: Tensor) -> Tensor:
    """`bags` with the arguments of the other forms: of the logarithms' softmax only the weights' sum is missing."""
    size = torch.tensor([(width, height) for height, width in levels.sizes], dtype=location.dtype)[:, None]
    axes = (location * size - 0.5).flatten(3, 4).permute(4, 0, 2, 1, 3)
    planes = torch.cat((axes, weight.log().flatten(3).transpose(1, 2)[None]))
    read = bags(value, levels, planes.contiguous()).unflatten(-1, (value.shape[2], -1))
    return (read * weight.sum((-1, -2))[..., None]).flatten(2)


FORMS = {**SAMPLERS, "bags": in_bags}
SIZES = ((3, 4), (2, 2), (1, 3))
LEVELS = Levels.of(SIZES)
TOKENS = sum(height * width for height, width in SIZES)
BATCH, QUERIES, HEADS, POINTS, FEATURES = 2, 3, 2, 2, 3


def bilinear(grid: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """grid (h, w, D); x, y in cells, centres at index + 0.5. Zero outside."""
    height, width, features = grid.shape
    column, row = x - 0.5, y - 0.5
    left, top = math.floor(column.item()), math.floor(row.item())
    total = grid.new_zeros(features)
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - (row - i).abs()) * (1 - (column - j).abs()) * grid[i, j]
    return total


def attention_by_loops(value: Tensor, levels: Levels, location: Tensor, weight: Tensor) -> Tensor:
    """The paper's equation 3, one sample at a time."""
    batch, queries, heads = weight.shape[:3]
    rows = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = value.new_zeros(value.shape[-1])
                for level, ((height, width), start) in enumerate(zip(levels.sizes, levels.starts, strict=True)):
                    grid = value[b, start : start + height * width, h].reshape(height, width, -1)
                    for p in range(weight.shape[-1]):
                        x, y = location[b, q, h, level, p]
                        total = total + weight[b, q, h, level, p] * bilinear(grid, x * width, y * height)
                rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)


def case(seed: int, low: float = -0.3, high: float = 1.3) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (some outside the maps) and normalised weights in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, QUERIES, HEADS, len(SIZES), POINTS)
    value = torch.randn(BATCH, TOKENS, HEADS, FEATURES, generator=generator, dtype=torch.float64)
    location = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * (high - low) + low
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    return value, location, weight / weight.sum((-1, -2), keepdim=True)


def test_levels_start_where_the_last_one_ends() -> None:
    assert LEVELS.starts == (0, 12, 16)


@pytest.mark.parametrize("name", sorted(FORMS))
@pytest.mark.parametrize("seed", range(5))
def test_values_equal_the_loops(name: str, seed: int) -> None:
    value, location, weight = case(seed)
    expected = attention_by_loops(value, LEVELS, location, weight)
    torch.testing.assert_close(FORMS[name](value, LEVELS, location, weight), expected, rtol=1e-9, atol=1e-12)
    single = FORMS[name](value.float(), LEVELS, location.float(), weight.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_gradients_equal_the_loops(name: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in case(7)]
    value, location, weight = inputs
    grad = torch.randn(BATCH, QUERIES, HEADS * FEATURES, dtype=torch.float64)
    expected = torch.autograd.grad(attention_by_loops(value, LEVELS, location, weight), inputs, grad)
    actual = torch.autograd.grad(FORMS[name](value, LEVELS, location, weight), inputs, grad)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_gradcheck(name: str) -> None:
    # gradcheck moves a point by up to 4e-5 cells; none may cross the row or column of a cell's centre, where the
    # slope jumps.
    value, location, weight = (tensor.requires_grad_() for tensor in case(3))
    cells = location.detach() * torch.tensor([(w, h) for h, w in SIZES])[:, None] - 0.5
    assert (cells - cells.round()).abs().min() > 1e-4
    sampler = FORMS[name]
    assert torch.autograd.gradcheck(lambda v, x, w: sampler(v, LEVELS, x, w), (value, location, weight), eps=1e-5)


@st.composite
def awkward(draw: st.DrawFn) -> tuple[Levels, Tensor, Tensor, Tensor]:
    """Maps down to one cell, and points at their borders, at the centres of cells, far outside and anywhere."""
    side = st.integers(1, 5)
    levels = Levels.of(tuple(draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))))
    batch, queries, heads, points, features = (draw(st.integers(1, 3)) for _ in range(5))
    cell = st.sampled_from([0.0, 1.0, 0.5, 0.1, 0.25, 0.75, -0.1, 1.1, -0.5, 1.5])
    place = st.one_of(cell, st.floats(-0.7, 1.7), st.floats(-1e6, 1e6))
    shape = (batch, queries, heads, len(levels.sizes), points)
    count = 2 * math.prod(shape)
    location = torch.tensor(draw(st.lists(place, min_size=count, max_size=count)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tokens = sum(height * width for height, width in levels.sizes)
    value = torch.randn(batch, tokens, heads, features, generator=generator, dtype=torch.float64)
    return levels, value, location.view(*shape, 2), torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(FORMS))
@settings(max_examples=40, deadline=None)
@given(case=awkward())
def test_any_map_and_any_point(name: str, case: tuple[Levels, Tensor, Tensor, Tensor]) -> None:
    levels, value, location, weight = case
    expected = attention_by_loops(value, levels, location, weight)
    # A point a million maps away is known to 1e-10 of a cell; it is zero there all the same.
    torch.testing.assert_close(FORMS[name](value, levels, location, weight), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_half_of_a_cell_ends_at_the_border(name: str) -> None:
    """One row of two cells, 10 and 20, read along its middle: by hand."""
    levels, value = Levels.of(((1, 2),)), torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    by_hand = {-0.25: 0.0, 0.0: 5.0, 0.25: 10.0, 0.5: 15.0, 0.75: 20.0, 1.0: 10.0, 1.125: 5.0, 1.25: 0.0, 9.0: 0.0}
    location = torch.tensor([(x, 0.5) for x in by_hand]).view(1, -1, 1, 1, 1, 2)
    found = FORMS[name](value, levels, location, torch.ones(1, len(by_hand), 1, 1, 1))
    assert found.flatten().tolist() == list(by_hand.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_trace_of_one_image_serves_any_number(name: str) -> None:
    def sample(value: Tensor, location: Tensor, weight: Tensor) -> Tensor:
        return FORMS[name](value, LEVELS, location, weight)

    value, location, weight = case(1)
    traced = torch.jit.trace(sample, (value[:1], location[:1], weight[:1]), check_trace=False)
    expected = attention_by_loops(value, LEVELS, location, weight)
    torch.testing.assert_close(traced(value, location, weight), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_plugin_form_is_one_operator_in_a_trace() -> None:
    traced = torch.jit.trace(lambda v, x, w: plugin(v, LEVELS, x, w), case(1), check_trace=False)
    kinds = [node.kind() for node in traced.graph.nodes()]
    assert kinds.count(WHOLE) == 1
    assert not {"aten::grid_sampler", "aten::embedding", "aten::mul"} & set(kinds)


def module(seed: int = 0) -> MSDeformAttn:
    """An attention module whose every parameter matters, in float64."""
    torch.manual_seed(seed)
    attention = MSDeformAttn(HEADS * 4, len(SIZES), HEADS, POINTS).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


@pytest.mark.parametrize("kind", [2, 4], ids=["points", "boxes"])
def test_module_places_points_as_the_paper_says(kind: int) -> None:
    attention = module()
    query = torch.randn(BATCH, QUERIES, 8, dtype=torch.float64)
    tokens = torch.randn(BATCH, TOKENS, 8, dtype=torch.float64)
    reference = torch.rand(BATCH, QUERIES, len(SIZES), kind, dtype=torch.float64)
    offset = attention.sampling_offsets(query).view(BATCH, QUERIES, HEADS, len(SIZES), POINTS, 2)
    weight = attention.attention_weights(query).view(BATCH, QUERIES, HEADS, -1).softmax(-1)
    location = torch.empty_like(offset)
    for level, (height, width) in enumerate(SIZES):
        for axis, cells in enumerate((width, height)):
            centre = reference[:, :, None, level, None, axis]
            if kind == 2:
                location[:, :, :, level, :, axis] = centre + offset[:, :, :, level, :, axis] / cells
            else:
                extent = reference[:, :, None, level, None, 2 + axis]
                location[:, :, :, level, :, axis] = centre + offset[:, :, :, level, :, axis] / POINTS * extent / 2
    value = attention.value_proj(tokens).view(BATCH, TOKENS, HEADS, 4)
    mixed = attention_by_loops(value, LEVELS, location, weight.view(offset.shape[:-1]))
    torch.testing.assert_close(attention(query, reference, tokens, LEVELS, None), attention.output_proj(mixed))


def test_padding_zeroes_values_whatever_the_tokens_hold() -> None:
    attention = module()
    query = torch.randn(BATCH, QUERIES, 8, dtype=torch.float64)
    tokens = torch.randn(BATCH, TOKENS, 8, dtype=torch.float64)
    reference = torch.rand(BATCH, QUERIES, len(SIZES), 2, dtype=torch.float64)
    padding = torch.rand(BATCH, TOKENS) < 0.5
    before = attention(query, reference, tokens, LEVELS, padding)
    spoiled = torch.where(padding[..., None], torch.full_like(tokens, 1e6), tokens)
    torch.testing.assert_close(attention(query, reference, spoiled, LEVELS, padding), before, rtol=0, atol=0)
    assert (attention(query, reference, tokens, LEVELS, None) - before).abs().max() > 1e-3


def test_a_shared_reference_equals_its_copies() -> None:
    attention = module()
    query = torch.randn(BATCH, QUERIES, 8, dtype=torch.float64)
    tokens = torch.randn(BATCH, TOKENS, 8, dtype=torch.float64)
    reference = torch.rand(1, QUERIES, len(SIZES), 2, dtype=torch.float64)
    shared = attention(query, reference, tokens, LEVELS, None)
    torch.testing.assert_close(shared, attention(query, reference.expand(BATCH, -1, -1, -1), tokens, LEVELS, None))


def test_fresh_points_lie_on_rays_of_one_direction_a_head() -> None:
    attention = MSDeformAttn(16, 2, 4, 3)
    offset = attention.sampling_offsets(torch.randn(1, 16)).view(4, 2, 3, 2)
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for point in range(3):
            expected = torch.tensor(direction, dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(offset[head, :, point], expected.expand(2, -1), rtol=0, atol=1e-5)
    assert not attention.attention_weights(torch.randn(1, 16)).any()


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of `nheads`"):
        MSDeformAttn(10, 1, 4, 1)


def wide(seed: int = 5) -> list[Tensor]:
    """Inputs in float32 that a detector of today would have, a few points outside of the maps."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, TOKENS, 4, 16, generator=generator)
    location = 1.4 * torch.rand(2, 50, 4, len(SIZES), 4, 2, generator=generator) - 0.2
    weight = torch.rand(2, 50, 4, len(SIZES), 4, generator=generator)
    return [each.requires_grad_() for each in (value, location, weight / weight.sum((-1, -2), keepdim=True))]


def both_ways(form: Sampler, inputs: list[Tensor]) -> list[Tensor]:
    value, location, weight = inputs
    read = form(value, LEVELS, location, weight)
    slope = torch.linspace(-1, 1, read.numel()).view_as(read)
    return [read, *torch.autograd.grad(read, inputs, slope)]


@pytest.mark.parametrize("block", [1, 5000, 1 << 30])
def test_bags_in_blocks_of_any_size_are_what_the_grid_samples(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags_module, "BLOCK", block)
    for ours, theirs in zip(both_ways(in_bags, wide()), both_ways(gridsample, wide()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bags_are_the_same_to_the_bit_with_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(both_ways(in_bags, wide()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_bags_hand_on_what_is_not_a_number() -> None:
    value, location, weight = wide()
    broken = location.detach().clone()
    broken[1, 7, 2, 0, 0, 0] = math.nan
    read = in_bags(value, LEVELS, broken, weight).unflatten(-1, (4, 16))
    assert read[1, 7, 2].isnan().all()
    assert int(read.isnan().sum()) == 16


def test_no_query_and_no_picture_read_nothing() -> None:
    value, location, weight = wide()
    assert in_bags(value, LEVELS, location[:, :0], weight[:, :0]).shape == (2, 0, 64)
    assert in_bags(value[:0], LEVELS, location[:0], weight[:0]).shape == (0, 50, 64)


def attended(layer: MSDeformAttn, reference: Tensor, *, trace: bool = False) -> list[Tensor]:
    """The layer's answer and the gradients of all that it is given and has."""
    generator = torch.Generator().manual_seed(7)
    query, tokens = (torch.randn(2, length, 64, generator=generator) for length in (9, TOKENS))
    padding = torch.rand(2, TOKENS, generator=generator) > 0.8
    if trace:
        layer.requires_grad_(False)
        torch.jit.trace(lambda one: layer(one, reference, tokens, LEVELS, padding), query, check_trace=False)
        layer.requires_grad_(True)
    query.requires_grad_(), tokens.requires_grad_()
    read = layer(query, reference, tokens, LEVELS, padding)
    slope = torch.randn(read.shape, generator=generator)
    over = [query, tokens, *layer.parameters(), *([reference] if reference.requires_grad else [])]
    return [read.detach(), *torch.autograd.grad(read, over, slope)]


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_the_layer_reads_the_same_in_bags_and_by_grid(coordinates: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    layer = MSDeformAttn(64, len(SIZES), 4, 3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    reference = torch.rand(1 if shared else 2, 9, len(SIZES), coordinates, generator=generator).requires_grad_()
    found = attended(layer, reference)
    layer.sampler = "gridsample"
    for ours, theirs in zip(found, attended(layer, reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_wide_heads_take_bags_and_a_trace_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(forms, "bags", lambda *given: taken.append("bags") or bags(*given))
    reference = torch.full((1, 9, len(SIZES), 2), 0.5)
    attended(MSDeformAttn(64, len(SIZES), 4, 2), reference)
    assert taken == ["bags"]
    attended(MSDeformAttn(64, len(SIZES), 4, 2), reference, trace=True)
    assert taken == ["bags"] * 2, "of the two calls the traced one takes another form"
    attended(MSDeformAttn(64, len(SIZES), 8, 2), reference)
    assert len(taken) == 2, "heads of 8 features"
