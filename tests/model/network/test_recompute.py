"""Activation checkpointing changes memory, not numbers: dropout and dropped paths included."""

import pytest
import torch
from torch import Tensor, nn

from model.batch import Target, padding_mask
from model.network.criterion import Criterion
from model.network.detr import build
from model.network.recompute import call
from model.spec import ModelSpec


def step(backbone: str, *, two_stage: bool, recompute: bool) -> tuple[Tensor, dict[str, Tensor]]:
    spec = ModelSpec(
        backbone=backbone, num_queries=12, hidden_dim=32, nheads=4, enc_layers=2, dec_layers=2, dim_feedforward=48,
        dropout_ratio=0.3, two_stage=two_stage,
    )  # fmt: skip
    torch.manual_seed(0)
    network = build(spec, 3, pretrained=False, activation_checkpoint=recompute).train()
    pixels = torch.randn(2, 3, 64, 96)
    output = network(pixels, padding_mask(torch.tensor([[64, 96], [50, 70]]), 64, 96))
    truth = [Target(torch.tensor([1]), torch.full((1, 4), 0.4), image, (64, 96)) for image in range(2)]
    loss = Criterion(spec, 3)(output, truth).total
    loss.backward()
    return loss.detach(), {
        name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("backbone", "two_stage"), [("resnet_tiny", False), ("resnet_tiny", True), ("gc_vit_xxtiny", False)]
)
def test_losses_and_gradients_are_the_same(backbone: str, two_stage: bool) -> None:
    (kept_loss, kept), (loss, again) = (step(backbone, two_stage=two_stage, recompute=on) for on in (False, True))
    assert torch.equal(kept_loss, loss)
    assert set(kept) == set(again)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-7, msg=name)


class Counter(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.sin()


@pytest.mark.parametrize(("recompute", "training", "calls"), [(True, True, 2), (True, False, 1), (False, True, 1)])
def test_only_training_computes_twice(recompute: bool, training: bool, calls: int) -> None:
    module = Counter().train(training)
    call(module, torch.ones(2, requires_grad=True), recompute=recompute).sum().backward()
    assert module.calls == calls
