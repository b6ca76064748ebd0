from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
import torch
from onnx import numpy_helper

from deploy import gate, sidecar
from deploy.parity import ParityError
from deploy.runtime import OnnxPredictor, Outputs


def outputs(scores: list[float], boxes: list[list[float]]) -> Outputs:
    """One image, one class."""
    logits = torch.logit(torch.tensor(scores, dtype=torch.float64))
    return {"pred_logits": logits[None, :, None], "pred_boxes": torch.tensor([boxes], dtype=torch.float64)}


A, B, C = [0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1], [0.8, 0.2, 0.1, 0.3]


def test_distance_by_hand() -> None:
    """The order means nothing; what moved by 0.1 counts with the square of its score: 0.64 * 0.1 / (0.64 + 0.04)."""
    expected = outputs([0.8, 0.2], [A, B])
    assert gate.distance(expected, outputs([0.2, 0.8], [B, A]), (64, 64)) == pytest.approx(0, abs=1e-6)
    moved = [0.6, 0.5, 0.2, 0.2]
    assert gate.distance(expected, outputs([0.8, 0.2], [moved, B]), (64, 64)) == pytest.approx(0.064 / 0.68, rel=1e-4)
    assert gate.distance(expected, outputs([0.8, 0.2], [A, [np.nan] * 4]), (64, 64)) == float("inf")


def test_lost_detections_are_found() -> None:
    """As in NVIDIA/TensorRT issue 4813, where three of four were lost."""
    expected = outputs([0.9, 0.8, 0.7, 0.6], [A, B, C, A])
    lost = outputs([0.9, 0.05, 0.05, 0.05], [A, B, C, A])
    assert gate.distance(expected, lost, (64, 64)) > 3 * gate.TOLERANCE["INT8"]


def test_a_graph_passes_by_itself_and_not_by_another(onnx: Path, tmp_path: Path) -> None:
    described = sidecar.require_onnx(onnx)
    said = gate.compare(OnnxPredictor(onnx), onnx, described, "FP32")
    assert said == "compared with ONNX Runtime on photographs, mean distance of detections 0.0e+00"
    model = onnx_format.load(onnx)
    (scores,) = (node for node in model.graph.node if "class_embed" in node.name and node.op_type == "MatMul")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name in scores.input)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
    onnx_format.save(model, tmp_path / "other.onnx")
    with pytest.raises(ParityError, match=r"must detect what `.*other\.onnx` detects to .* on a batch of 1 "):
        gate.compare(OnnxPredictor(onnx), tmp_path / "other.onnx", described, "FP32")
