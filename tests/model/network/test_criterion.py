"""Losses against formulas and cases worked out by hand."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.batch import Target
from model.errors import DataError
from model.network.criterion import Criterion, focal_loss, mean_boxes
from model.network.detr import Output, Prediction
from model.spec import ModelSpec


def target(labels: list[int], boxes: list[list[float]], image_id: int = 1) -> Target:
    return Target(
        torch.tensor(labels, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4), image_id=image_id, orig_size=(8, 8)
    )


def output(logits: Tensor, boxes: Tensor, auxiliary: tuple[Prediction, ...] = ()) -> Output:
    return Output(Prediction(logits, boxes), auxiliary)


def focal(logit: float, truth: int, alpha: float = 0.25) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** 2 * math.log(p) if truth else -(1 - alpha) * p**2 * math.log(1 - p)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_focal_loss_equals_the_formula(alpha: float) -> None:
    logits = torch.tensor([-6.0, -1.0, 0.0, 0.5, 4.0], dtype=torch.float64)
    for truth in (0, 1):
        expected = [focal(logit, truth, alpha) for logit in logits.tolist()]
        actual = focal_loss(logits, torch.full_like(logits, truth), alpha)
        assert actual.tolist() == pytest.approx(expected)


def test_terms_of_one_image_by_hand() -> None:
    """Query 1 fits the object but for a shift of 0.1 in x; two classes, two queries, one object."""
    logits = torch.tensor([[[-1.0, -2.0], [0.5, 1.0]]])
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.4, 0.5, 0.2, 0.4]]])
    losses = Criterion(ModelSpec(), 2)(output(logits, boxes), [target([1], [[0.5, 0.5, 0.2, 0.4]])])
    ce = focal(-1.0, 0) + focal(-2.0, 0) + focal(0.5, 0) + focal(1.0, 1)
    overlap = 0.04 / 0.12 - 0.0  # shared 0.1 x 0.4 of 0.3 x 0.4, which is its own hull
    expected = {"loss_ce": ce, "loss_bbox": 0.1, "loss_giou": 1 - overlap, "class_error": 0.0}
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(2 * ce + 5 * 0.1 + 2 * (1 - overlap), abs=1e-5)


def test_terms_are_divided_by_the_objects_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 5, 3, generator=generator), torch.rand(2, 5, 4, generator=generator)
    targets = [target([0, 2], [[0.5] * 4, [0.2] * 4]), target([1], [[0.7, 0.7, 0.2, 0.2]])]
    criterion = Criterion(ModelSpec(), 3)
    together = criterion(output(logits, boxes), targets).terms
    apart = [criterion(output(logits[i : i + 1], boxes[i : i + 1]), targets[i : i + 1]).terms for i in range(2)]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        expected = (2 * apart[0][name] + 1 * apart[1][name]) / 3
        assert together[name].item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_layer_is_matched_alone() -> None:
    """The auxiliary layer has the same two queries in the other order: its terms must be the same numbers."""
    logits = torch.tensor([[[2.0], [-2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    swapped = Prediction(logits.flip(1), boxes.flip(1))
    truth = [target([0], [[0.5, 0.5, 0.2, 0.25]])]
    losses = Criterion(ModelSpec(), 1)(output(logits, boxes, (swapped,)), truth)
    assert set(losses.terms) == {
        "loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0", "class_error",
    }  # fmt: skip
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert losses.terms[f"{name}_0"].item() == pytest.approx(losses.terms[name].item())
    single = Criterion(ModelSpec(), 1)(output(logits, boxes), truth)
    assert losses.total.item() == pytest.approx(2 * single.total.item())


def test_empty_images_train_towards_nothing() -> None:
    logits = torch.zeros(2, 3, 2, requires_grad=True)
    boxes = torch.full((2, 3, 4), 0.5, requires_grad=True)
    losses = Criterion(ModelSpec(), 2)(output(logits, boxes), [target([], []), target([], [])])
    losses.total.backward()
    assert losses.terms["loss_ce"].item() == pytest.approx(12 * focal(0.0, 0))
    assert [losses.terms[name].item() for name in ("loss_bbox", "loss_giou", "class_error")] == [0.0, 0.0, 0.0]
    assert logits.grad is not None
    assert (logits.grad > 0).all()
    assert boxes.grad is not None  # every parameter must take part in a distributed step
    assert not boxes.grad.any()


def test_class_error_counts_matched_queries_only() -> None:
    logits = torch.tensor([[[3.0, -3.0], [3.0, -3.0], [-3.0, 3.0]]])
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]])
    truth = [target([0, 1], [[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])]
    spec = ModelSpec(cls_loss_coef=0.0)  # matched by place alone
    assert Criterion(spec, 2)(output(logits, boxes), truth).terms["class_error"].item() == 50.0


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(("labels",), {"loss_ce", "class_error"}), (("boxes",), {"loss_bbox", "loss_giou"})],
)
def test_loss_types_choose_the_terms(kinds: tuple[str, ...], expected: set[str]) -> None:
    criterion = Criterion(ModelSpec(loss_types=kinds), 1)
    assert set(criterion(output(torch.zeros(1, 2, 1), torch.full((1, 2, 4), 0.5)), [target([], [])]).terms) == expected
    with pytest.raises(ValueError, match="loss_types"):
        Criterion(ModelSpec(loss_types=("masks",)), 1)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_without_a_logit_is_refused_with_its_image(label: int) -> None:
    truth = [target([0], [[0.5] * 4], image_id=7), target([1, label], [[0.5] * 4] * 2, image_id=42)]
    with pytest.raises(DataError, match=rf"0\.\.2, but image 42 has \[{label}\]"):
        Criterion(ModelSpec(), 3)(output(torch.zeros(2, 4, 3), torch.full((2, 4, 4), 0.5)), truth)


def test_half_precision_predictions_are_summed_in_float32() -> None:
    logits, boxes = torch.randn(1, 4, 2).half(), torch.rand(1, 4, 4).half()
    truth = [target([1], [[0.5] * 4])]
    criterion = Criterion(ModelSpec(), 2)
    half, full = criterion(output(logits, boxes), truth), criterion(output(logits.float(), boxes.float()), truth)
    assert half.total.dtype == torch.float32
    assert half.total.item() == full.total.item()


def test_broken_predictions_give_a_loss_that_is_not_a_number() -> None:
    losses = Criterion(ModelSpec(), 1)(
        output(torch.full((1, 2, 1), math.nan), torch.full((1, 2, 4), 0.5)), [target([0], [[0.5] * 4])]
    )
    assert math.isnan(losses.total.item())


def test_objects_are_averaged_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mean_boxes(5, torch.device("cpu")) == 5.0
    assert mean_boxes(0, torch.device("cpu")) == 1.0
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        # As if a second process held 2 objects.
        monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(2.0))
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        assert float(mean_boxes(5, torch.device("cpu"))) == 3.5
    finally:
        dist.destroy_process_group()
