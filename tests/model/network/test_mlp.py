"""The MLP with dropout, block by block, against the same formula by autograd with the same choices."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from model.network import mlp as module
from model.network.dropout import STEPS, Dropout, masks, new_seed, scale_of
from model.network.mlp import expand

DROPOUT = Dropout(0.3)


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def layers(inside: int = 8, between: int = 12) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    return nn.Linear(inside, between).double(), nn.Linear(between, inside).double()


def masked(x: Tensor, rows: int, seed: int) -> Tensor:
    parts = [part.reshape(-1) for part in x.split(rows)]
    kept = [mask.clone() for mask in masks(parts, seed, DROPOUT.steps)]
    return x * torch.cat(kept).view_as(x) * scale_of(DROPOUT.steps)


@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_it_is_the_formula_with_its_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    linear1, linear2 = layers()
    x = torch.randn(2, 7, 8, dtype=torch.float64).requires_grad_()
    over, slope = [x, *linear1.parameters(), *linear2.parameters()], torch.randn(2, 7, 8, dtype=torch.float64)
    torch.manual_seed(2)
    y = expand(linear1, linear2, DROPOUT, x)
    found = torch.autograd.grad(y, over, slope)

    torch.manual_seed(2)
    outer, inner = new_seed(), new_seed()
    between = masked(torch.relu(linear1(x.flatten(0, 1))), rows, inner)
    plain = x + masked(linear2(between), rows, outer).view_as(x)
    torch.testing.assert_close(y, plain)
    for ours, theirs in zip(found, torch.autograd.grad(plain, over, slope), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_evaluation_and_no_dropout_are_the_plain_layers() -> None:
    linear1, linear2 = (layer.float() for layer in layers())
    x = torch.randn(2, 7, 8)
    plain = x + linear2(torch.relu(linear1(x)))
    for dropout in (Dropout(0.0), Dropout(0.3).eval(), Dropout(0.4 / STEPS)):
        torch.testing.assert_close(expand(linear1, linear2, dropout, x), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = expand(linear1, linear2, DROPOUT, x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert linear1.weight.grad is not None
    assert linear1.weight.grad.dtype == torch.float32


def test_the_choice_is_that_of_the_seed_and_no_other() -> None:
    linear1, linear2 = layers()
    x = torch.randn(3, 50, 8, dtype=torch.float64)
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(expand(linear1, linear2, DROPOUT, x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
