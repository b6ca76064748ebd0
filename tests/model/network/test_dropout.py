"""Dropout against its definition: how much is dropped, what is kept, which gradient follows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import dropout as module
from model.network.dropout import Dropout


def seeded(seed: int) -> None:
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _own_generator() -> object:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13, 5), (600, 1000)])
def test_what_is_kept_is_scaled_and_its_gradient_too(p: float, shape: tuple[int, ...]) -> None:
    x = (1 + torch.rand(shape)).requires_grad_()
    seeded(1)
    y = Dropout(p)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), rtol=1e-4, atol=0)
    slope = torch.randn(shape)
    (grad,) = torch.autograd.grad(y, x, slope)
    torch.testing.assert_close(grad, torch.where(kept, slope / (1 - p), 0.0), rtol=1e-4, atol=0)
    if x.numel() > 10_000:  # 6 standard deviations
        assert abs(float(kept.float().mean()) - (1 - p)) < 6 * math.sqrt(p * (1 - p) / x.numel())


def test_neighbours_and_lanes_of_a_draw_drop_independently() -> None:
    seeded(2)
    dropped = (Dropout(0.5)(torch.ones(400_000)) == 0).float()
    for apart in (1, 2, 3, 4, 8):
        both = float((dropped[apart:] * dropped[:-apart]).mean())
        assert abs(both - 0.25) < 6 * math.sqrt(0.25 * 0.75 / len(dropped))
    for lane in range(4):
        assert abs(float(dropped[lane::4].mean()) - 0.5) < 6 * math.sqrt(0.25 / 100_000)


@pytest.mark.parametrize("shape", [(3, 999, 11), (2, 400_000)])
def test_before_a_sum_it_is_dropout_plus_the_rest(shape: tuple[int, ...]) -> None:
    x, rest = torch.randn(shape).requires_grad_(), torch.randn(shape).requires_grad_()
    layer, slope = Dropout(0.3), torch.randn(shape)
    seeded(3)
    found = torch.autograd.grad(layer.plus(x, rest), (x, rest), slope)
    seeded(3)
    y = layer(x)
    for ours, theirs in zip(found, torch.autograd.grad(y + rest, (x, rest), slope), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    seeded(3)
    torch.testing.assert_close(layer.plus(x, rest), y + rest)
    assert layer.plus(x.bfloat16(), rest).dtype == torch.float32


def test_a_seed_gives_the_same_choice_whatever_the_threads_and_blocks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    x, found, before = torch.ones(100_003), [], torch.get_num_threads()
    try:
        for threads, block in ((1, 1 << 18), (2, 1 << 18), (1, 4096)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(module, "BLOCK", block)
            seeded(4)
            found.append(Dropout(0.3)(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert not torch.equal(found[0], Dropout(0.3)(x)), "the generator has moved on"


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.4, False), (1.0, True)])
def test_the_ends_and_evaluation_are_pytorchs(p: float, training: bool) -> None:
    x = torch.randn(50, 4)
    layer = Dropout(p).train(training)
    torch.testing.assert_close(layer(x), F.dropout(x, p, training), rtol=0, atol=0)
    torch.testing.assert_close(layer.plus(x, x), x + F.dropout(x, p, training), rtol=0, atol=0)


def test_what_does_not_lie_in_order_is_dropped_in_order() -> None:
    def drop(x: Tensor) -> Tensor:
        seeded(5)
        return Dropout(0.5)(x)

    x = torch.randn(6, 10)
    torch.testing.assert_close(drop(x.t()), drop(x.t().contiguous()), rtol=0, atol=0)
    wide = x.expand(3, 6, 10).clone().requires_grad_()
    (grad,) = torch.autograd.grad(drop(wide).sum(), wide)  # the sum's gradient is one element, expanded
    assert set(grad.unique().tolist()) == {0.0, 2.0}
