"""Attention among queries against PyTorch's own module."""

import pytest
import torch
from torch import nn

from model.network.dropout import Dropout
from model.network.self_attention import SelfAttention


def pair(p: float) -> tuple[SelfAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 3, p), nn.MultiheadAttention(24, 3, dropout=p, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.double(), theirs.double()


@pytest.fixture(autouse=True)
def _own_generator() -> object:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_pytorchs(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(0.2)
    found = []
    if training:
        # The arithmetic of training, with nothing dropped.
        monkeypatch.setattr(Dropout, "forward", lambda _, x: x)
        theirs.dropout = 0.0
    query, value = (torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slope = torch.randn(2, 7, 24, dtype=torch.float64)
    for module, read in (
        (ours, ours.train(training)(query, value)),
        (theirs, theirs.train(training)(query, query, value)[0]),
    ):
        parameters = dict(sorted(module.named_parameters()))
        found.append([read, *torch.autograd.grad(read, [query, value, *parameters.values()], slope)])
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)


def test_training_drops_attention_and_keeps_its_mean() -> None:
    ours, _ = pair(0.5)
    query, value = torch.randn(1, 5, 24, dtype=torch.float64), torch.randn(1, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        read = torch.stack([ours.train()(query, value) for _ in range(4000)])
        expected = ours.eval()(query, value)
    error = read.std(0) / len(read) ** 0.5
    assert (read.std(0) > 1e-3).all()
    assert ((read.mean(0) - expected).abs() < 6 * error).all()
