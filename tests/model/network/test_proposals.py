"""Candidate boxes of the two-stage form against cases worked out by hand, and the whole form end to end."""

import math

import pytest
import torch

from model.batch import Target, padding_mask
from model.network.criterion import Criterion
from model.network.detr import DeformableDETR, Output, Prediction, build
from model.network.levels import Levels
from model.network.proposals import NOWHERE, candidates, sine_boxes
from model.network.transformer import cell_centres
from model.spec import ModelSpec


def two_stage(**changes: object) -> tuple[ModelSpec, DeformableDETR]:
    sizes = {
        "backbone": "resnet_tiny", "num_queries": 12, "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2,
        "dim_feedforward": 48, "enc_n_points": 2, "dec_n_points": 3, "two_stage": True,
    }  # fmt: skip
    spec = ModelSpec(**{**sizes, **changes})  # type: ignore[arg-type]
    torch.manual_seed(0)
    return spec, build(spec, 3, pretrained=False)


def truth() -> list[Target]:
    return [Target(torch.tensor([1]), torch.full((1, 4), 0.4), image, (64, 96)) for image in range(2)]


def test_candidates_by_hand() -> None:
    """Two levels of 1 x 2 and 1 x 1 cells, half of the first in the padding: its second cell is no candidate."""
    levels = Levels.of(((1, 2), (1, 1)))
    centres = cell_centres(levels, torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
    logits, counts = candidates(levels, centres)
    assert counts[0, :, 0].tolist() == [True, False, True]
    torch.testing.assert_close(logits[0, 0].sigmoid(), torch.tensor([0.5, 0.5, 0.05, 0.05]))
    torch.testing.assert_close(logits[0, 2].sigmoid(), torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert (logits[0, 1] == NOWHERE).all()


def test_cells_at_the_edge_of_a_large_map_do_not_count() -> None:
    """With 100 cells the first centre lies at 0.005, below 0.01."""
    levels = Levels.of(((1, 100),))
    _, counts = candidates(levels, cell_centres(levels, torch.tensor([[[1.0, 100.0]]])))
    assert [index for index, counted in enumerate(counts[0, :, 0].tolist()) if not counted] == [0, 99]


def test_boxes_are_encoded_coordinate_by_coordinate() -> None:
    boxes = torch.tensor([[[0.25, 0.5, 0.1, 0.2]]])
    encoded = sine_boxes(boxes, 4)[0, 0]
    expected = [
        wave(coordinate * 2 * math.pi / wavelength)
        for coordinate in (0.25, 0.5, 0.1, 0.2)
        for wavelength in (1.0, 100.0)
        for wave in (math.sin, math.cos)
    ]
    assert encoded.tolist() == pytest.approx(expected, abs=1e-6)


def test_names_are_the_published_ones() -> None:
    names = set(two_stage()[1].state_dict())
    for module in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm"):
        assert {f"transformer.{module}.weight", f"transformer.{module}.bias"} <= names
    assert {"class_embed.2.weight", "bbox_embed.2.layers.2.bias"} <= names  # of the encoder, after two layers
    assert not any(name.startswith(("query_embed", "transformer.reference_points")) for name in names)


@pytest.mark.parametrize("aux_loss", [False, True])
def test_every_parameter_trains(aux_loss: bool) -> None:
    spec, network = two_stage(aux_loss=aux_loss)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    output = network(torch.randn(2, 3, 64, 96), padding_mask(torch.tensor([[64, 96], [50, 70]]), 64, 96))
    losses = Criterion(spec, 3)(output, truth())
    losses.total.backward()
    assert {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc"} <= set(losses.terms)
    assert bool(torch.isfinite(losses.total))
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in trained if parameter.grad is None] == []
    for _, parameter in trained:
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
    assert network.get_parameter("transformer.enc_output.weight").grad.abs().sum() > 0  # type: ignore[union-attr]


def test_proposals_count_as_one_class_in_the_loss() -> None:
    """Two tokens and one object of class 1: the fitting token must say class 0, at the price that a layer pays."""
    logits = torch.tensor([[[3.0, -2.0], [-3.0, 2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    prediction = Prediction(logits, boxes)
    criterion = Criterion(ModelSpec(), 2)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.25]])
    binary, real = (Target(torch.tensor([label]), box, 1, (8, 8)) for label in (0, 1))
    alone = criterion(Output(prediction, ()), [binary])
    with_encoder = criterion(Output(prediction, (), prediction), [real])
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert with_encoder.terms[f"{name}_enc"].item() == pytest.approx(alone.terms[name].item())
    without = criterion(Output(prediction, ()), [real])
    assert with_encoder.total.item() == pytest.approx(without.total.item() + alone.total.item())


def test_what_cannot_work_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"two_stage.*needs.*with_box_refine"):
        two_stage(with_box_refine=False)
    network = two_stage(num_queries=100)[1].eval()
    with pytest.raises(ValueError, match="num_queries=100 and levels of 4 x 4, 2 x 2, 1 x 1, 1 x 1 cells give 22"):
        network(torch.randn(1, 3, 32, 32))
