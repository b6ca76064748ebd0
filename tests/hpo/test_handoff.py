import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from deploy import trt
from deploy.parity import ParityError
from deploy.sidecar import require_onnx
from deploy.spec import ExportSpec, GenTrtEngineSpec, TensorRTSpec
from hpo import handoff
from hpo.handoff import Delivery, hand_off
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


@pytest.fixture
def give(run_dir: Path) -> Give:
    """hand_off as a sweep calls it; the request's `model` differs from the winner's, as where it was searched."""

    def call(dataset: DatasetSpec, engine: GenTrtEngineSpec | None = None) -> Delivery:
        return hand_off(
            run_dir,
            run_dir / "trials" / "7" / "model_best.pth",
            ExperimentSpec(model=ModelSpec(num_queries=200), dataset=dataset),
            export=ExportSpec(input_height=64, input_width=64),
            engine=engine or GenTrtEngineSpec(tensorrt=TensorRTSpec(workspace_size=64)),
            budget={"epochs": 3, "seconds": 9.5},
            lineage={"run": "r1", "trial": 7},
        )

    return call


def no_tensorrt(name: str) -> ModuleType:
    raise ImportError(f"No module named '{name}'")


def printed(delivery: Delivery) -> str:
    console = Console(width=200, record=True)
    console.print(delivery.table())
    return console.export_text()


def test_winner_leaves_measured_in_every_form(give: Give, run_dir: Path, tiny_pictures: Source) -> None:
    delivery = give(DatasetSpec(test_data_sources=tiny_pictures))
    pytorch, onnx, *engines = delivery.rows
    assert delivery.split == "test"
    assert pytorch.map50 is not None
    assert 0.1 < pytorch.map50 < 0.99
    assert onnx.map50 == pytest.approx(pytorch.map50, abs=1e-3)
    assert onnx.difference == onnx.map50 - pytorch.map50
    assert onnx.file == run_dir / "model.onnx"
    assert onnx.bytes == onnx.file.stat().st_size
    assert require_onnx(onnx.file).lineage["trial"] == 7
    told = Handoff.read(run_dir / "handoff.json")
    assert told.checkpoint == "trials/7/model_best.pth"
    assert told.metric["value"] == 0.25
    assert "test mAP50" in printed(delivery)
    if not engines:
        pytest.skip("the rest needs tensorrt or tensorrt_rtx")
    assert engines[0].file == run_dir / "model.engine"
    assert engines[0].map50 is None
    assert "not measured" in printed(delivery)
    assert any("not compared: " in remark for remark in delivery.remarks)
    assert json.loads((run_dir / "model.engine.json").read_text())["onnx_sha256"] == require_onnx(onnx.file).onnx_sha256


def test_without_test_data_the_score_is_called_optimistic(
    give: Give, tiny_pictures: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    delivery = give(DatasetSpec(val_data_sources=(tiny_pictures,)))
    assert delivery.split == "val"
    assert delivery.rows[1].map50 is not None
    assert "optimistic" in delivery.remarks[0]
    assert "optimistic" in printed(delivery)


def test_without_data_and_tensorrt_both_are_said_and_no_old_engine_stays(
    give: Give, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "model.engine").write_text("of an earlier winner")
    (run_dir / "model.engine.json").write_text("{}")
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    delivery = give(DatasetSpec())
    assert [row.form for row in delivery.rows] == ["PyTorch", "ONNX"]
    assert all(row.map50 is None for row in delivery.rows)
    measured, built = delivery.remarks
    assert "set dataset.test_data_sources" in measured
    assert "pip install 'ddetr-automl[trt-rtx]'" in built
    written = {"trials", "handoff.json", "delivery.json", "model.onnx", "model.onnx.json"}
    assert {path.name for path in run_dir.iterdir()} == written


def test_a_drop_over_the_tolerance_fails(
    give: Give, run_dir: Path, tiny_pictures: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "MAP_TOLERANCE", -1.0)
    with pytest.raises(
        ParityError, match=r"must reach the mAP50 of its checkpoint to -1, but has 0\.\d+ and PyTorch 0"
    ):
        give(DatasetSpec(test_data_sources=tiny_pictures))
    assert not (run_dir / "model.engine").exists()


def test_what_cannot_be_handed_over_is_known_before_a_search(give: Give, run_dir: Path) -> None:
    half = GenTrtEngineSpec(tensorrt=TensorRTSpec(data_type="FP16"))
    with pytest.raises(ValueError, match="data_type` must be one of FP32"):
        handoff.check(ExportSpec(), half)
    with pytest.raises(ValueError, match=r"`export.opset_version` must be 16 to 20"):
        handoff.check(replace(ExportSpec(), opset_version=11), GenTrtEngineSpec())
    with pytest.raises(ValueError, match="data_type` must be one of FP32"):
        give(DatasetSpec(), half)
    assert [path.name for path in run_dir.iterdir()] == ["trials"]
