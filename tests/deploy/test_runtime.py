import ctypes
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx as onnx_format
import pytest
import torch
from onnx import TensorProto, helper

from deploy import runtime, trt
from deploy.runtime import EngineError, EnginePredictor, NoGpuError, OnnxPredictor, open_graph
from deploy.sidecar import FORMAT_VERSION, EngineSidecar, path_of
from model.checkpoint import sha256


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


# --- engines: TensorRT's side of the call is played, in memory that the CPU can read ---


class Twice:
    """An execution context of an engine like `doubler`. It runs only what TensorRT would: a shape inside the profile,
    with every tensor at an address."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.shape: tuple[int, ...] = ()
        self.places: dict[str, int] = {}
        self.ran: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape, self.places = shape, {}
        return name == "inputs" and self.low <= shape[0] <= self.high

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 6, 4)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.places[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.places) == {"inputs", "pred_logits", "pred_boxes"}
        kind = ctypes.c_float * math.prod(self.shape)
        given = kind.from_address(self.places["inputs"])
        for name in ("pred_logits", "pred_boxes"):
            kind.from_address(self.places[name])[:] = [2 * value for value in given]
        self.ran.append(self.shape[0])
        return True


class PlayedLog:
    Severity = SimpleNamespace(ERROR=1, WARNING=2)


def played(context: Twice | None) -> trt.Library:
    names = ("inputs", "pred_logits", "pred_boxes")
    engine = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=names.__getitem__,
        get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
        create_execution_context=lambda: context,
    )
    loads = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if context and plan == b"plan" else None)
    return trt.Library("tensorrt", "11.4", SimpleNamespace(ILogger=PlayedLog, Runtime=lambda log: loads))


def engine_file(folder: Path, low: int = 1, high: int = 4, **said: Any) -> Path:
    path = folder / "model.engine"
    path.write_bytes(b"plan")
    described = EngineSidecar(
        format_version=FORMAT_VERSION,
        engine_sha256=sha256(path),
        onnx="model.onnx",
        onnx_sha256="0",
        library="tensorrt",
        library_version="11.4",
        precision="FP32",
        tensors={"FLOAT": 3},
        layers={"quantize": 0, "dequantize": 0, "half": 0},
        inspected=None,
        tf32=False,
        shapes={name: (batch, 3, 2, 4) for name, batch in (("min", low), ("opt", low), ("max", high))},
        workspace_mb=64,
        target="a GPU",
        compared="not compared",
        model=None,
    )
    path_of(path).write_text(json.dumps(asdict(replace(described, **said))))
    return path


@pytest.mark.parametrize(("low", "high"), [(1, 4), (2, 4), (3, 3), (1, 1)])
@pytest.mark.parametrize("images", [1, 3, 4, 9])
def test_an_engine_gives_every_image_back_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: int, high: int, images: int
) -> None:
    context = Twice(low, high)
    monkeypatch.setattr(trt, "_imported", lambda name: played(context))
    monkeypatch.setattr(runtime, "gpu", lambda number, purpose: torch.device("cpu"))
    predictor = open_graph(engine_file(tmp_path, low, high))
    pixels = torch.arange(images * 24.0).view(images, 3, 2, 4)
    found = predictor(pixels.to(memory_format=torch.channels_last))  # whose bytes lie in another order
    torch.testing.assert_close(found.boxes, 2 * pixels.view(images, 6, 4))
    torch.testing.assert_close(found.logits, found.boxes)
    assert (predictor.size, predictor.batch_range) == ((2, 4), (low, high))
    assert len(context.ran) == -(-images // high)
    assert all(low <= batch <= high for batch in context.ran)


def test_an_engine_that_does_not_load_or_run_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context: Twice | None = None
    monkeypatch.setattr(trt, "_imported", lambda name: played(context))
    monkeypatch.setattr(runtime, "gpu", lambda number, purpose: torch.device("cpu"))
    path = engine_file(tmp_path)
    with pytest.raises(EngineError, match=r"tensorrt 11\.4 must be able to load .* built for: a GPU; build it again"):
        EnginePredictor.open(path)
    context = Twice(1, 2)  # what the sidecar calls four, the engine does not take
    with pytest.raises(EngineError, match="must run a batch of 4, but did not"):
        EnginePredictor.open(path)(torch.zeros(4, 3, 2, 4))


def test_an_engine_is_refused_by_its_sidecar_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "_imported", lambda name: played(None))
    older = engine_file(tmp_path, library_version="10.8")
    with pytest.raises(
        trt.EngineVersionError, match=r"built by tensorrt 10\.8 and 11\.4 is installed; .*tensorrt==10\.8"
    ):
        EnginePredictor.open(older)
    with pytest.raises(ValueError, match=r"must be of tensorrt or tensorrt_rtx, but .* says `os`"):
        EnginePredictor.open(engine_file(tmp_path, library="os"))
    path = engine_file(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(NoGpuError, match="a GPU is needed to run") as caught:
            EnginePredictor.open(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"plan, and more")
    with pytest.raises(ValueError, match="was written for another file"):
        EnginePredictor.open(path)
    path_of(path).unlink()
    with pytest.raises(ValueError, match=r"must come with `model\.engine\.json`"):
        EnginePredictor.open(path)
