import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from deploy import trt
from deploy.engine import build_engine, gen_trt_engine_action
from deploy.export import export_onnx
from deploy.spec import GenTrtEngineSpec, TensorRTSpec
from model.checkpoint import sha256


def importable() -> bool:
    try:
        trt.load()
    except trt.TensorRTMissing:
        return False
    return True


needs_tensorrt = pytest.mark.skipif(not importable(), reason="neither tensorrt nor tensorrt_rtx can be imported")


@needs_tensorrt
def test_engine_and_what_its_sidecar_says(onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = GenTrtEngineSpec(
        onnx_file=str(onnx),
        trt_engine=str(tmp_path / "new" / "model.engine"),
        tensorrt=TensorRTSpec(workspace_size=64, opt_batch_size=2, max_batch_size=4),
    )
    engine = gen_trt_engine_action(wanted)
    library = trt.load()
    found = json.loads(engine.with_name("model.engine.json").read_text())
    assert found["engine_sha256"] == sha256(engine)
    assert found["onnx_sha256"] == sha256(onnx)
    assert (found["library"], found["library_version"]) == (library.name, library.version)
    assert (found["precision"], found["tf32"], found["workspace_mb"]) == ("FP32", False, 64)
    assert set(found["tensor_types"]) <= {"FLOAT", "INT32", "INT64", "BOOL"}
    assert "FLOAT" in found["tensor_types"]
    assert found["shapes"] == {"min": [1, 3, 64, 64], "opt": [2, 3, 64, 64], "max": [4, 3, 64, 64]}
    assert found["model"] == json.loads(onnx.with_name("model.onnx.json").read_text())
    assert found["compared"].startswith("not compared: ")
    assert "not compared: " in capsys.readouterr().out
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]


@needs_tensorrt
def test_a_fixed_batch_keeps_its_own(checkpoint: Path, tmp_path: Path) -> None:
    onnx = tmp_path / "fixed.onnx"
    export_onnx(checkpoint, onnx, height=64, width=64, batch_size=2)
    report = build_engine(onnx, tmp_path / "fixed.engine", batch_size=2)
    assert json.loads(report.sidecar.read_text())["shapes"]["max"] == [2, 3, 64, 64]
    with pytest.raises(ValueError, match=r"`gen_trt_engine.batch_size` .* is 3 and .* has 2"):
        build_engine(onnx, tmp_path / "fixed.engine", batch_size=3)


def truncated(onnx: Path, folder: Path) -> Path:
    path = folder / "cut.onnx"
    path.write_bytes(onnx.read_bytes()[:100_000])
    return path


def empty(onnx: Path, folder: Path) -> Path:
    path = folder / "empty.onnx"
    path.write_bytes(b"")
    return path


def foreign(onnx: Path, folder: Path) -> Path:
    path = folder / "foreign.onnx"
    path.write_bytes(onnx.read_bytes())
    changed = onnx.with_name("model.onnx.json").read_text().replace(sha256(onnx), "0" * 64)
    path.with_name("foreign.onnx.json").write_text(changed)
    return path


@needs_tensorrt
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, r"able to parse .* but `.*cut\.onnx` has 1 problems: .*Failed to parse the ONNX model"),
        (empty, r"one input and outputs, but `.*empty\.onnx` has 0 and 0"),
        (foreign, "was written for another file"),
    ],
)
def test_a_spoilt_onnx_is_one_error_and_leaves_nothing(
    onnx: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_engine(spoil(onnx, tmp_path), tmp_path / "engines" / "model.engine")
    assert not (tmp_path / "engines").exists()


@needs_tensorrt
def test_workspace_is_taken_literally(onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workspace_size=0 MB"):
        build_engine(onnx, tmp_path / "model.engine", workspace_mb=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"data_type": "FP16"}, "must be one of FP32 in this version, but is `FP16`"),
        ({"data_type": "INT8"}, "must be one of FP32 in this version, but is `INT8`"),
        ({"min_batch_size": 2}, "they are 2, 1 and 1"),
        ({"max_batch_size": 2, "opt_batch_size": 3}, "they are 1, 3 and 2"),
        ({"layers_precision": ("/conv:fp16",)}, "layers_precision` cannot be honoured"),
    ],
)
def test_what_cannot_be_built(onnx: Path, tmp_path: Path, wanted: dict[str, object], message: str) -> None:
    spec = GenTrtEngineSpec(
        onnx_file=str(onnx),
        trt_engine=str(tmp_path / "model.engine"),
        tensorrt=TensorRTSpec(**wanted),  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match=message):
        gen_trt_engine_action(spec)
    assert not list(tmp_path.iterdir())


def test_files_must_be_named_and_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`gen_trt_engine.onnx_file` must name a file"):
        gen_trt_engine_action(GenTrtEngineSpec(trt_engine="x.engine"))
    with pytest.raises(ValueError, match=r"`gen_trt_engine.trt_engine` must name a file"):
        gen_trt_engine_action(GenTrtEngineSpec(onnx_file="x.onnx"))
    with pytest.raises(ValueError, match="there is no file"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine")


def test_a_missing_library_is_named_with_its_extra(onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        if name in trt.NAMES:
            raise ImportError(f"No module named '{name}'")
        return import_module(name)

    monkeypatch.setattr(trt, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'ddetr-automl\[trt-rtx\]'.*'ddetr-automl\[trt\]'") as caught:
        build_engine(onnx, tmp_path / "model.engine")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_data_centre_library_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("tensorrt")
    stand_in.__version__ = "11.4"  # type: ignore[attr-defined]
    monkeypatch.setattr(trt, "import_module", {"tensorrt": stand_in}.__getitem__)
    assert trt.load()[:2] == ("tensorrt", "11.4")
