import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from deploy import precision, trt
from deploy.parity import ParityError
from deploy.sidecar import require_onnx
from deploy.spec import CalibrationSpec, DeploySpec, ExportSpec, GenTrtEngineSpec, MaxDropSpec, TensorRTSpec
from hpo.delivery import Delivery, DeliveryError
from hpo.handoff import Wanted, _compared, hand_off
from model.handoff import Handoff
from model.spec import DatasetSpec, ExperimentSpec, ModelSpec, Source

pytestmark = pytest.mark.usefixtures("own_cache")

Give = Callable[..., Delivery]


@pytest.fixture
def run_dir(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "trials" / "7").mkdir(parents=True)
    shutil.copy(tiny_checkpoint, run / "trials" / "7" / "model_best.pth")
    return run


def wanted(deploy: DeploySpec | None = None, **tensorrt: object) -> Wanted:
    return Wanted(
        export=ExportSpec(input_height=64, input_width=64),
        engine=GenTrtEngineSpec(tensorrt=TensorRTSpec(workspace_size=64, **tensorrt)),  # type: ignore[arg-type]
        deploy=deploy or DeploySpec(),
    )


@pytest.fixture
def give(run_dir: Path) -> Give:
    """hand_off as a sweep calls it; the request's `model` differs from the winner's, as where it was searched."""

    def call(dataset: DatasetSpec, asked: Wanted | None = None) -> Delivery:
        return hand_off(
            run_dir,
            run_dir / "trials" / "7" / "model_best.pth",
            ExperimentSpec(model=ModelSpec(num_queries=200), dataset=dataset),
            wanted=asked or wanted(),
            budget={"epochs": 3, "seconds": 9.5},
            lineage={"run": "r1", "trial": 7},
        )

    return call


def no_tensorrt(name: str) -> ModuleType:
    raise ImportError(f"No module named '{name}'")


def printed(delivery: Delivery) -> str:
    console = Console(width=250, record=True)
    console.print(delivery.table())
    return console.export_text()


def test_winner_leaves_measured_in_every_precision(give: Give, run_dir: Path, tiny_pictures: Source) -> None:
    data = DatasetSpec(
        train_data_sources=(tiny_pictures,), val_data_sources=(tiny_pictures,), test_data_sources=tiny_pictures
    )
    delivery = give(data, wanted(DeploySpec(precisions=("INT8", "FP16"), max_drop=MaxDropSpec(fp16=1.0, int8=1.0))))
    pytorch, fp32, fp16, int8, *engines = delivery.rows
    assert delivery.failures == ()
    assert [row.form for row in delivery.rows[:4]] == ["PyTorch", "ONNX FP32", "ONNX FP16", "ONNX INT8"]
    assert 0.1 < pytorch.map50["val"] < 0.99
    assert fp32.map50 == pytest.approx(pytorch.map50, abs=1e-3)
    for row, name in zip((fp32, fp16, int8), ("model.onnx", "model.fp16.onnx", "model.int8.onnx"), strict=True):
        assert row.file == run_dir / name
        assert row.bytes == row.file.stat().st_size
        assert row.drop == pytorch.map50["val"] - row.map50["val"]
        assert row.map50["test"] == row.map50["val"], "they are the same images"
        assert row.latency_ms is not None
        assert row.latency_ms > 0
        described = require_onnx(row.file)
        assert described.lineage["trial"] == 7
        assert described.precision == row.form.removeprefix("ONNX ")
    assert int8.bytes < fp16.bytes < fp32.bytes
    assert "layers in INT8" in int8.note
    told = Handoff.read(run_dir / "handoff.json")
    assert told.checkpoint == "trials/7/model_best.pth"
    assert told.metric["value"] == 0.25
    text = printed(delivery)
    assert "test mAP50" in text
    assert "val mAP50" in text
    kept = json.loads((run_dir / "delivery.json").read_text())
    assert [row["file"] for row in kept["rows"][:2]] == ["trials/7/model_best.pth", "model.onnx"]
    if not engines:
        pytest.skip("the rest needs tensorrt or tensorrt_rtx")
    assert [row.file.name for row in engines] == ["model.engine", "model.fp16.engine", "model.int8.engine"]
    assert all(row.map50 == {} for row in engines)
    assert "not measured" in text
    assert any("not compared: " in remark for remark in delivery.remarks)
    for engine, onnx in zip(engines, (fp32, fp16, int8), strict=True):
        beside = json.loads(engine.file.with_name(f"{engine.file.name}.json").read_text())
        assert beside["onnx_sha256"] == require_onnx(onnx.file).onnx_sha256
    assert require_onnx(fp32.file).attention == "gather"


def test_each_engine_is_told_as_it_was_compared() -> None:
    far = ("compared, distance 2e-3", "compared, distance 9e-3", "compared, distance 2e-3")
    reports: Any = {
        precision: SimpleNamespace(library="tensorrt", version="10.13", compared=compared)
        for precision, compared in zip(("FP32", "FP16", "INT8"), far, strict=True)
    }
    expected = "Engines of tensorrt 10.13: FP32, INT8 compared, distance 2e-3; FP16 compared, distance 9e-3."
    assert _compared(reports) == expected


def test_without_test_data_the_score_is_called_optimistic(
    give: Give, tiny_pictures: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    delivery = give(DatasetSpec(val_data_sources=(tiny_pictures,)))
    assert delivery.rows[1].map50.keys() == {"val"}
    assert "optimistic" in delivery.remarks[0]
    assert require_onnx(delivery.rows[1].file).attention == "gridsample"


def test_without_data_and_tensorrt_both_are_said_and_nothing_old_stays(
    give: Give, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stale in ("model.engine", "model.engine.json", "model.int8.onnx", "model.fp16.engine"):
        (run_dir / stale).write_text("of an earlier winner")
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    delivery = give(DatasetSpec())
    assert [row.form for row in delivery.rows] == ["PyTorch", "ONNX FP32"]
    assert all(row.map50 == {} and row.drop is None for row in delivery.rows)
    measured, built = delivery.remarks
    assert "names neither validation nor test data" in measured
    assert "pip install 'ddetr-automl[trt-rtx]'" in built
    written = {"trials", "handoff.json", "delivery.json", "model.onnx", "model.onnx.json"}
    assert {path.name for path in run_dir.iterdir()} == written


def test_an_export_that_loses_accuracy_is_the_end(give: Give, run_dir: Path, tiny_pictures: Source) -> None:
    limits = MaxDropSpec(fp32=-1.0)
    with pytest.raises(ParityError, match=r"must reach the mAP50 of its checkpoint to -1 .*, but has 0\.\d+ and PyTo"):
        give(DatasetSpec(test_data_sources=tiny_pictures), wanted(DeploySpec(max_drop=limits)))
    assert not (run_dir / "model.engine").exists()


def test_a_precision_that_loses_too_much_fails_alone_and_loudly(
    give: Give, run_dir: Path, tiny_pictures: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    lower = precision.lower

    def no_int8(onnx: Path, target: Path, kind: str, **more: Any) -> precision.Lowered:
        if kind == "INT8":
            raise precision.PrecisionError("INT8 must keep the detections, but does not")
        return lower(onnx, target, kind, **more)

    monkeypatch.setattr(precision, "lower", no_int8)
    data = DatasetSpec(train_data_sources=(tiny_pictures,), val_data_sources=(tiny_pictures,))
    limits = MaxDropSpec(fp16=1.0)
    delivery = give(data, wanted(DeploySpec(precisions=("FP16", "INT8"), max_drop=limits)))
    assert [row.form for row in delivery.rows] == ["PyTorch", "ONNX FP32", "ONNX FP16"]
    (failure,) = delivery.failures
    assert failure == "INT8: INT8 must keep the detections, but does not"
    assert json.loads((run_dir / "delivery.json").read_text())["failures"] == [failure]
    with pytest.raises(DeliveryError, match="INT8 must keep"):
        delivery.require()


@pytest.mark.parametrize(("folders", "images"), [(True, 4), (False, 7)])
def test_calibration_is_by_the_images_that_the_spec_names(
    give: Give, run_dir: Path, tiny_pictures: Source, monkeypatch: pytest.MonkeyPatch, folders: bool, images: int
) -> None:
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    named = CalibrationSpec(
        cal_image_dir=(str(tiny_pictures.image_dir),) if folders else (), cal_batch_size=2, cal_batches=2
    )
    data = DatasetSpec(quant_calibration_data_sources=tiny_pictures)
    limits = MaxDropSpec(int8=1.0)
    give(data, wanted(DeploySpec(max_drop=limits, calibration_images=1), data_type="INT8", calibration=named))
    lowered = require_onnx(run_dir / "model.int8.onnx").lowered
    assert lowered is not None
    assert lowered["calibration"]["images"] == images


def test_the_graph_has_the_form_that_was_asked_for_and_an_engine_that_fails_is_told(
    give: Give, run_dir: Path, tiny_pictures: Source
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="an engine is built where TensorRT is installed")
    form = ExportSpec(input_height=64, input_width=64, attention="plugin", postprocess=True, input_dtype="uint8")
    delivery = give(DatasetSpec(val_data_sources=(tiny_pictures,)), replace(wanted(), export=form))
    described = require_onnx(run_dir / "model.onnx")
    assert (described.attention, described.input["dtype"]) == ("plugin", "uint8")
    assert set(described.outputs) == {"scores", "labels", "boxes"}
    assert delivery.rows[1].map50 == pytest.approx(delivery.rows[0].map50, abs=1e-3)
    (failure,) = delivery.failures  # TensorRT-RTX has no plugins
    assert failure.startswith("FP32 engine: TensorRT must be able to parse the ONNX file")
    assert not (run_dir / "model.engine").exists()


@pytest.mark.parametrize(
    ("asked", "objectives", "words"),
    [
        (replace(wanted(), export=ExportSpec(opset_version=11)), 1, r"`export.opset_version` must be 16 to 20"),
        (replace(wanted(), export=ExportSpec(serialize_nvdsinfer=True, postprocess=True)), 1, "serialize_nvdsinfer"),
        (wanted(min_batch_size=3), 1, "must hold in `gen_trt_engine.tensorrt`"),
        (wanted(DeploySpec(objective="latency")), 1, r"`deploy.objective` chooses among the trade-offs .* one objec"),
        (wanted(DeploySpec(objective="latency")), 2, None),
    ],
)
def test_what_cannot_be_handed_over_is_known_before_a_search(asked: Wanted, objectives: int, words: str | None) -> None:
    if words is None:
        asked.check(objectives)
        return
    with pytest.raises(ValueError, match=words):
        asked.check(objectives)


def test_precisions_follow_the_engine_where_none_are_named() -> None:
    assert wanted().precisions == ("FP32",)
    assert wanted(data_type="INT8").precisions == ("FP32", "INT8")
    assert wanted(DeploySpec(precisions=("FP16",)), data_type="INT8").precisions == ("FP32", "FP16")
