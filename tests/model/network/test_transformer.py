"""The transformer on given features: padding and batching must not change what an image gives."""

import pytest
import torch
from torch import Tensor, nn

from model.network.levels import Levels
from model.network.transformer import Decoded, Proposer, Sizes, Transformer, add_delta, cell_centres, inverse_sigmoid

SIZES = Sizes(
    hidden_dim=16, nheads=4, enc_layers=2, dec_layers=3, dim_feedforward=24, dropout_ratio=0.1,
    num_feature_levels=3, enc_n_points=2, dec_n_points=3,
)  # fmt: skip
QUERIES = 6
# Unpadded height and width of two images on each level.
IMAGES = ([(6, 9), (3, 5), (2, 3)], [(8, 5), (4, 3), (2, 2)])
PADDED = [(8, 11), (5, 6), (3, 3)]


def shaken(seed: int = 0) -> tuple[Transformer, Tensor, list[nn.Module]]:
    """A transformer in evaluation mode, its queries and box heads, with no parameter left at a trivial value."""
    torch.manual_seed(seed)
    transformer = Transformer(SIZES).eval()
    heads = [nn.Linear(SIZES.hidden_dim, 4) for _ in range(SIZES.dec_layers)]
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transformer, torch.randn(QUERIES, 2 * SIZES.hidden_dim), list(heads)


def features_of(image: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + image)
    return [torch.randn(1, SIZES.hidden_dim, h, w, generator=generator) for h, w in IMAGES[image]]


def padded_batch(rubbish: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Both images in one batch of larger maps, with `rubbish` where there is padding."""
    maps, masks = [], []
    for level, (height, width) in enumerate(PADDED):
        batch = torch.full((2, SIZES.hidden_dim, height, width), rubbish)
        mask = torch.ones(2, height, width, dtype=torch.bool)
        for image in range(2):
            h, w = IMAGES[image][level]
            batch[image, :, :h, :w] = features_of(image)[level][0]
            mask[image, :h, :w] = False
        maps.append(batch)
        masks.append(mask)
    return maps, masks


def assert_same(a: Decoded, b: Decoded, **tolerance: float) -> None:
    for first, second in zip((*a.hidden, *a.references), (*b.hidden, *b.references), strict=True):
        torch.testing.assert_close(first, second.expand_as(first), **tolerance)


def pick(decoded: Decoded, image: int) -> Decoded:
    rows = slice(image, image + 1)
    return Decoded(
        tuple(hidden[rows] for hidden in decoded.hidden),
        tuple(reference[rows] if len(reference) > 1 else reference for reference in decoded.references),
    )


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("rubbish", [0.0, 50.0])
def test_padded_in_a_batch_equals_alone_without_padding(refine: bool, rubbish: float) -> None:
    transformer, queries, heads = shaken()
    box_heads = heads if refine else None
    with torch.no_grad():
        together = transformer(*padded_batch(rubbish), queries, box_heads)
        for image in range(2):
            alone = transformer(features_of(image), None, queries, box_heads)
            assert_same(pick(together, image), alone, rtol=1e-5, atol=1e-5)


def test_two_stage_queries_never_lie_in_the_padding() -> None:
    """Proposals, their choice and all that follows are those of the image alone."""
    torch.manual_seed(0)
    transformer = Transformer(SIZES._replace(two_stage=True)).eval()
    heads = [nn.Linear(SIZES.hidden_dim, 4) for _ in range(SIZES.dec_layers)]
    proposer = Proposer(nn.Linear(SIZES.hidden_dim, 2), nn.Linear(SIZES.hidden_dim, 4), QUERIES)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        together = transformer(*padded_batch(50.0), proposer, heads)
        for image in range(2):
            alone = transformer(features_of(image), None, proposer, heads)
            assert_same(pick(together, image), alone, rtol=1e-5, atol=1e-5)
            assert alone.references[0].amax() < 1  # a box of 1 is what a token that does not count would give


def test_a_mask_without_padding_equals_no_mask() -> None:
    transformer, queries, heads = shaken()
    features = [torch.randn(2, SIZES.hidden_dim, h, w) for h, w in PADDED]
    masks = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in PADDED]
    with torch.no_grad():
        assert_same(transformer(features, masks, queries, heads), transformer(features, None, queries, heads))


def test_batched_equals_single() -> None:
    transformer, queries, heads = shaken()
    features = [torch.randn(3, SIZES.hidden_dim, h, w) for h, w in PADDED]
    with torch.no_grad():
        together = transformer(features, None, queries, heads)
        for image in range(3):
            alone = transformer([feature[image : image + 1] for feature in features], None, queries, heads)
            assert_same(pick(together, image), alone, rtol=1e-5, atol=1e-5)


def test_refinement_moves_references_and_stops_their_gradient() -> None:
    transformer, queries, heads = shaken()
    features = [torch.randn(1, SIZES.hidden_dim, h, w) for h, w in PADDED]
    plain = transformer(features, None, queries, None)
    assert [reference.shape[-1] for reference in plain.references] == [2, 2, 2]
    refined = transformer(features, None, queries, heads)
    assert [reference.shape[-1] for reference in refined.references] == [2, 4, 4]
    assert [reference.requires_grad for reference in refined.references] == [True, False, False]
    expected = add_delta(heads[0](refined.hidden[0]), refined.references[0])
    torch.testing.assert_close(refined.references[1], expected.detach())


def test_cells_of_the_image_span_it_evenly() -> None:
    levels = Levels.of(((2, 4),))
    centres = cell_centres(levels, torch.tensor([[[1.0, 2.0]]]))
    assert centres[0, :, 0].tolist() == [0.25, 0.75, 1.25, 1.75] * 2
    assert centres[0, :, 1].tolist() == [0.5] * 4 + [1.5] * 4


def test_inverse_sigmoid_undoes_sigmoid_and_stays_finite() -> None:
    x = torch.tensor([-8.0, -1.0, 0.0, 2.0, 8.0])
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(inverse_sigmoid(torch.tensor([0.0, 1.0]))).all()


def test_a_delta_of_zero_keeps_the_reference() -> None:
    box = torch.tensor([0.3, 0.6, 0.1, 0.2])
    torch.testing.assert_close(add_delta(torch.zeros(4), box), box)
    torch.testing.assert_close(add_delta(torch.zeros(4), box[:2]), torch.tensor([0.3, 0.6, 0.5, 0.5]))
