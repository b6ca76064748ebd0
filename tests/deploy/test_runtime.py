from pathlib import Path

import onnx as onnx_format
import pytest
import torch
from onnx import TensorProto, helper

from deploy.runtime import OnnxPredictor


def doubler(path: Path, *, batch: int | str, name: str = "inputs", height: int | str = 2) -> Path:
    """A graph of the detector's shape whose outputs are twice its input, so that every image can be told apart."""
    shape = [batch, 3, height, 4]
    graph = helper.make_graph(
        [
            helper.make_node("Add", [name, name], ["twice"]),
            helper.make_node("Reshape", ["twice", "shape"], ["pred_logits"]),
            helper.make_node("Reshape", ["twice", "shape"], ["pred_boxes"]),
        ],
        "doubler",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(each, TensorProto.FLOAT, [batch, 6, 4])
            for each in ("pred_logits", "pred_boxes")
        ],
        [helper.make_tensor("shape", TensorProto.INT64, [3], [0, 6, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx_format.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("images", [1, 3, 4, 9])
def test_every_image_comes_back_in_its_place(tmp_path: Path, batch: int | str, images: int) -> None:
    predictor = OnnxPredictor(doubler(tmp_path / "m.onnx", batch=batch), threads=1)
    pixels = torch.arange(images * 24.0).view(images, 3, 2, 4)
    found = predictor(pixels, torch.ones(images, 2, 4, dtype=torch.bool))
    torch.testing.assert_close(found.boxes, 2 * pixels.view(images, 6, 4))
    torch.testing.assert_close(found.logits, found.boxes)
    assert predictor.size == (2, 4)


def test_pixels_of_another_size_are_refused(tmp_path: Path) -> None:
    predictor = OnnxPredictor(doubler(tmp_path / "m.onnx", batch="batch"))
    with pytest.raises(ValueError, match=r"takes images of 3 x 2 x 4 .* but got 3 x 8 x 8"):
        predictor(torch.zeros(1, 3, 8, 8))


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one input `inputs` \[B, 3, H, W\]"):
        OnnxPredictor(doubler(tmp_path / "a.onnx", batch=1, name="images"))
    with pytest.raises(ValueError, match="must be fixed, but are rows and 4"):
        OnnxPredictor(doubler(tmp_path / "b.onnx", batch=1, height="rows"))
    with pytest.raises(ValueError, match="there is no file"):
        OnnxPredictor(tmp_path / "c.onnx")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_cut_off_file_is_one_clear_error(onnx: Path, tmp_path: Path, kept: float) -> None:
    whole = onnx.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"cannot read `.*cut\.onnx`.*export it again"):
        OnnxPredictor(cut)
