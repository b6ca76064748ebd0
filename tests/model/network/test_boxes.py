"""Boxes: formats against each other, overlaps against numbers worked out by hand."""

import pytest
import torch

from model.network.boxes import area, giou, to_corners, to_pixels


def test_corners_of_a_box_by_hand() -> None:
    assert to_corners(torch.tensor([0.5, 0.25, 0.5, 0.5])).tolist() == [0.25, 0.0, 0.75, 0.5]


def test_pixels_scale_x_by_width_and_y_by_height_and_are_not_clipped() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 0.5]], [[0.25, 0.5, 0.5, 0.5]] * 2])
    pixels = to_pixels(boxes, torch.tensor([[100, 200], [40, 80]]))
    assert pixels[0].tolist() == [[0.0, 0.0, 200.0, 100.0], [-50.0, 25.0, 50.0, 75.0]]
    assert pixels[1, 0].tolist() == [0.0, 10.0, 40.0, 30.0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),  # equal
        ([0, 0, 2, 2], [0, 0, 1, 1], 1 / 4),  # one inside the other: the hull is the union
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),  # 1 shared of 7, hull 9
        ([0, 0, 1, 1], [2, 0, 3, 1], 0 - 1 / 3),  # apart: hull 3, union 2
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0),  # touching: nothing shared, hull full
        ([0, 0, 1, 1], [1, 1, 2, 2], 0 - 2 / 4),  # touching at a corner
    ],
)
def test_giou_by_hand(a: list[float], b: list[float], expected: float) -> None:
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert giou(first, second).item() == pytest.approx(expected)
    assert giou(second, first).item() == pytest.approx(expected)


def test_giou_broadcasts_like_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (to_corners(torch.rand(n, 4, generator=generator)) for n in (3, 5))
    table = giou(a[:, None], b[None])
    for i in range(3):
        for j in range(5):
            assert table[i, j].item() == pytest.approx(giou(a[i], b[j]).item(), abs=1e-6)


def test_boxes_without_extent_give_finite_overlap_and_gradient() -> None:
    point = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    overlap = giou(to_corners(point), to_corners(torch.tensor([0.5, 0.5, 0.0, 0.0])))
    overlap.backward()
    assert torch.isfinite(overlap)
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def test_area() -> None:
    assert area(torch.tensor([1.0, 2.0, 4.0, 4.0])).item() == 6.0
