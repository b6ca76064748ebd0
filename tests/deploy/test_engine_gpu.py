"""An engine on a GPU says what its ONNX file and PyTorch say: in logits, boxes, detections and mAP, in every precision
and every form of the attention; and the commands run it. Needs a GPU and a TensorRT that runs on it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deploy import gate, sidecar, trt
from deploy.engine import EngineReport, build_engine
from deploy.evaluate import evaluate_file, open_file
from deploy.export import export_onnx
from deploy.gen_trt_engine import gen_trt_engine_action
from deploy.parity import ParityError
from deploy.runtime import EnginePredictor, GraphPredictor, OnnxPredictor, open_graph
from deploy.spec import CalibrationSpec, GenTrtEngineSpec, TensorRTSpec
from hpo.cli import main
from model.batch import normalise
from model.checkpoint import load_model
from model.evaluate import torch_predictor
from model.network.detr import Prediction
from model.network.postprocess import Detections, top_k
from model.spec import Source
from tests.conftest import TINY_CLASSES, TINY_MEAN, TINY_SIZE, TINY_STD

pytestmark = pytest.mark.gpu

FORMS = [
    *((form, precision) for form in ("gridsample", "gather") for precision in ("FP32", "FP16", "INT8")),
    ("plugin", "FP32"),  # which no ONNX Runtime runs by itself, so that it is not lowered
]
IOU = {"FP32": 0.95, "FP16": 0.8, "INT8": 0.5}
SCORE = {"FP32": 0.01, "FP16": 0.05, "INT8": 0.15}
FOUND = {"FP32": 1.0, "FP16": 0.95, "INT8": 0.8}
"""Share of the best detections of the ONNX file that the engine must have too."""
MAP = {"FP32": 0.001, "FP16": 0.01, "INT8": 0.03}
BEST = 20


class Built(NamedTuple):
    form: str
    precision: str
    report: EngineReport
    checkpoint: Path


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU here")
    try:
        trt.load()
    except trt.TensorRTMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def built(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_pictures: Source,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """The tiny detector, exported, lowered and built by the action, on this GPU."""
    form, precision = request.param
    folder = tmp_path_factory.mktemp(f"{form}-{precision}")
    onnx = folder / "model.onnx"
    export_onnx(tiny_checkpoint, onnx, height=TINY_SIZE, width=TINY_SIZE, attention=form)
    if form == "plugin" and trt.load().name == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX has no MultiscaleDeformableAttnPlugin_TRT")
    wanted = TensorRTSpec(
        data_type=precision,
        opt_batch_size=2,
        max_batch_size=4,
        calibration=CalibrationSpec(cal_image_dir=(tiny_pictures.image_dir,), cal_batches=7),
    )
    spec = GenTrtEngineSpec(onnx_file=str(onnx), trt_engine=str(folder / "model.engine"), tensorrt=wanted)
    try:
        report = gen_trt_engine_action(spec, {})
    except ParityError as error:
        if form == "gridsample":
            pytest.xfail(f"NVIDIA/TensorRT issue 4813: {error}")
        raise
    return Built(form, precision, report, tiny_checkpoint)


@pytest.fixture(scope="module")
def pixels(tiny_pictures: Source) -> torch.Tensor:
    """(7, 3, H, W): the photographs, as the detector sees them."""
    images = [
        np.asarray(Image.open(path).resize((TINY_SIZE, TINY_SIZE), Image.Resampling.BILINEAR))
        for path in sorted(Path(tiny_pictures.image_dir).glob("*.png"))
    ]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    normal, _ = normalise(batch, torch.tensor([[TINY_SIZE, TINY_SIZE]] * len(batch)), TINY_MEAN, TINY_STD)
    return normal


def given(pictures: Source, **more: Any) -> dict[str, Any]:
    data = {"image_dir": pictures.image_dir, "json_file": pictures.json_file}
    return {"dataset": {"test_data_sources": data, "batch_size": 4}, **more}


def test_the_build_was_compared_and_inspected(built: Built) -> None:
    found = sidecar.require_engine(built.report.engine)
    assert built.report.runs_here
    assert found.compared.startswith("compared with ONNX Runtime on photographs")
    assert found.precision == built.precision
    assert found.target == torch.cuda.get_device_name(0)
    assert found.inspected is None or all(count > 0 for count in found.inspected.values())


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 7])
def test_logits_and_boxes_for_any_batch(built: Built, pixels: torch.Tensor, images: int) -> None:
    """Of 7 images by at most 4: a whole batch and a partial one."""
    batch = pixels[:images]
    engine, onnx = EnginePredictor.open(built.report.engine), OnnxPredictor(built.report.onnx)
    expected, found = onnx.run(batch), engine.run(batch)
    assert found["pred_logits"].shape == expected["pred_logits"].shape
    assert gate.distance(expected, found, engine.size) <= gate.TOLERANCE[built.precision]
    if built.precision == "FP32":
        model, _ = load_model(built.checkpoint)
        for reference in (Prediction(*expected.values()), torch_predictor(model)(batch, None)):
            torch.testing.assert_close(found["pred_logits"], reference.logits, rtol=0, atol=5e-3)
            torch.testing.assert_close(found["pred_boxes"], reference.boxes, rtol=0, atol=1e-3)


def test_each_image_is_the_same_alone_and_in_company(built: Built, pixels: torch.Tensor) -> None:
    engine = EnginePredictor.open(built.report.engine)
    together = engine.run(pixels)
    for place in range(len(pixels)):
        alone = engine.run(pixels[place : place + 1])
        here = {name: value[place : place + 1] for name, value in together.items()}
        assert gate.distance(alone, here, engine.size) <= gate.TOLERANCE[built.precision]


def test_pixels_on_the_gpu_stay_there(built: Built, pixels: torch.Tensor) -> None:
    engine = EnginePredictor.open(built.report.engine)
    found, expected = engine.run(pixels.cuda()), engine.run(pixels)
    for name, value in found.items():
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), expected[name], rtol=0, atol=1e-6)


def test_the_same_detections_are_found(built: Built, pixels: torch.Tensor) -> None:
    reference, engine = (
        best(each, pixels) for each in (OnnxPredictor(built.report.onnx), open_graph(built.report.engine))
    )
    shares = [matched(reference, engine, place, built.precision) for place in range(len(pixels))]
    assert min(shares) >= FOUND[built.precision] - 0.1, "no image may stand out"
    assert sum(shares) / len(shares) >= FOUND[built.precision]


def best(graph: GraphPredictor, pixels: torch.Tensor) -> Detections:
    return top_k(graph(pixels), torch.tensor([[TINY_SIZE, TINY_SIZE]] * len(pixels)), 50)


def matched(reference: Detections, other: Detections, place: int, precision: str) -> float:
    """Share of the BEST detections of `reference` that `other` has among all of its own: class, place and score."""
    free, hits = list(range(other.scores.shape[1])), 0
    for rank in range(BEST):
        box, label, score = (part[place, rank] for part in (reference.boxes, reference.labels, reference.scores))
        fits = [
            one
            for one in free
            if other.labels[place, one] == label
            and abs(other.scores[place, one] - score) <= SCORE[precision]
            and iou(other.boxes[place, one], box) >= IOU[precision]
        ]
        if fits:
            free.remove(max(fits, key=lambda one: iou(other.boxes[place, one], box)))
            hits += 1
    return hits / BEST


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two boxes x0, y0, x1, y1."""
    inner = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / union)


def test_map_is_that_of_onnx_runtime(built: Built, tiny_pictures: Source, own_cache: None) -> None:
    (expected, _), (found, evaluator) = (
        evaluate_file(file, given(tiny_pictures)) for file in (built.report.onnx, built.report.engine)
    )
    assert 0.1 < expected.numbers["mAP50"] < 0.999
    for name in ("mAP", "mAP50"):
        assert found.numbers[name] == pytest.approx(expected.numbers[name], abs=MAP[built.precision])
    assert set(evaluator.rows()[:, 0]) == {10, 20, 30, 40, 50, 60, 70}, "7 images in batches of 4"


def test_latency_is_measured(built: Built, tiny_pictures: Source, own_cache: None) -> None:
    wanted = given(tiny_pictures, evaluate={"latency_batch_sizes": [1, 4]})
    found = open_file(built.report.engine, wanted).latency()
    assert [row.batch for row in found.rows] == [1, 4]
    assert all(0 < row.median_ms <= row.p99_ms and row.images_per_second > 0 for row in found.rows)
    assert found.device == torch.cuda.get_device_name(0)


def test_the_commands_run_an_engine(
    built: Built, tiny_pictures: Source, tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**given(tiny_pictures), "results_dir": str(tmp_path / "results")}))
    assert main(["evaluate", "-e", str(spec), f"evaluate.trt_engine={built.report.engine}"]) == 0
    folder = tmp_path / "results" / "trt_evaluate"
    numbers = json.loads((folder / "results.json").read_text())
    assert " ".join(numbers) == "AP AP50 AP75 APs APm APl ARmax1 ARmax10 ARmax100 ARs ARm ARl"
    lines = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    assert lines[-1]["status"] == "SUCCESS"
    assert {"test_mAP": numbers["AP"], "test_mAP50": numbers["AP50"]} in [line.get("kpi") for line in lines]
    pictures = f"dataset.infer_data_sources.image_dir=[{tiny_pictures.image_dir}]"
    words = [f"inference.trt_engine={built.report.engine}", "inference.conf_threshold=0.0", pictures]
    assert main(["inference", "-e", str(spec), *words]) == 0
    labels = list((tmp_path / "results" / "trt_inference" / "labels").glob("*.txt"))
    assert len(labels) == 7
    assert {line.split()[0] for path in labels for line in path.read_text().splitlines()} <= set(TINY_CLASSES.values())


def test_bytes_in_and_detections_out(
    tiny_checkpoint: Path, tiny_pictures: Source, tmp_path: Path, own_cache: None
) -> None:
    onnx = tmp_path / "whole.onnx"
    size = {"height": TINY_SIZE, "width": TINY_SIZE}
    export_onnx(tiny_checkpoint, onnx, **size, attention="gather", postprocess=True, input_dtype="uint8")
    report = build_engine(onnx, tmp_path / "whole.engine", min_batch=2, opt_batch=2, max_batch=3)
    expected, found = (evaluate_file(file, given(tiny_pictures))[0].numbers for file in (onnx, report.engine))
    assert found == pytest.approx(expected, abs=MAP["FP32"])


def test_an_engine_that_detects_something_else_is_not_written(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The gate, shown a reference of other weights: the classes of the last layer the other way round."""
    raw = torch.load(tiny_checkpoint, weights_only=True)
    for name, value in raw["state_dict"].items():
        if "class_embed" in name:
            raw["state_dict"][name] = value.flip(0)
    torch.save(raw, tmp_path / "other.pth")
    other = tmp_path / "other.onnx"
    export_onnx(tmp_path / "other.pth", other, height=TINY_SIZE, width=TINY_SIZE)
    with pytest.raises(ParityError, match=r"must detect what .*other\.onnx` detects"):
        build_engine(tiny_onnx, tmp_path / "model.engine", reference=other)
    assert not list(tmp_path.glob("*.engine*"))


def test_the_gpu_and_the_timings_that_are_asked_for(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`gpu_id` must name a GPU of this machine"):
        build_engine(tiny_onnx, tmp_path / "model.engine", gpu_id=torch.cuda.device_count())
    cache = tmp_path / "timings"
    first, second = (
        build_engine(tiny_onnx, tmp_path / "model.engine", timing_cache=cache, reference=None) for _ in range(2)
    )
    if trt.load().name in trt.AHEAD_OF_TIME:
        assert not cache.exists()
        return
    assert cache.stat().st_size > 0
    assert "is new" in (first.timings or "")
    assert "read from" in (second.timings or "")
