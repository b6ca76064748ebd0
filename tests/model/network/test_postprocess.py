"""Top-k against sorting every pair of query and class by hand."""

import pytest
import torch

from model.network.detr import Prediction
from model.network.postprocess import top_k


def test_detections_are_the_best_pairs_in_order() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 5, 3), torch.rand(2, 5, 4)
    sizes = torch.tensor([[100, 200], [30, 50]])
    found = top_k(Prediction(logits, boxes), sizes, 7)
    for image, (height, width) in enumerate(sizes.tolist()):
        pairs = sorted(
            ((logits[image, q, c].sigmoid().item(), c, q) for q in range(5) for c in range(3)), reverse=True
        )[:7]
        assert found.scores[image].tolist() == pytest.approx([score for score, _, _ in pairs])
        assert found.labels[image].tolist() == [label for _, label, _ in pairs]
        for row, (_, _, query) in zip(found.boxes[image].tolist(), pairs, strict=True):
            cx, cy, w, h = boxes[image, query].tolist()
            expected = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_more_detections_than_pairs_are_refused() -> None:
    prediction = Prediction(torch.zeros(1, 4, 2), torch.zeros(1, 4, 4))
    assert top_k(prediction, torch.tensor([[1, 1]]), 8).scores.shape == (1, 8)
    with pytest.raises(ValueError, match="= 8, but is 9"):
        top_k(prediction, torch.tensor([[1, 1]]), 9)
