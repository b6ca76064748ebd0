import json
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx as onnx_format
import pytest
import torch

from deploy import network, sidecar, timing, trt
from deploy.engine import EngineReport, build_engine
from deploy.evaluate import evaluate_file
from deploy.export import export_onnx
from deploy.gen_trt_engine import gen_trt_engine_action
from deploy.runtime import open_graph
from deploy.spec import CalibrationSpec, GenTrtEngineSpec, TensorRTSpec
from model.checkpoint import sha256
from model.spec import Source


def importable() -> bool:
    try:
        trt.load()
    except trt.TensorRTMissing:
        return False
    return True


needs_tensorrt = pytest.mark.skipif(not importable(), reason="neither tensorrt nor tensorrt_rtx can be imported")


@pytest.fixture(scope="module")
def engines(
    tiny_onnx: Path, tiny_pictures: Source, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, EngineReport]:
    """The tiny detector in each precision, by the action, each in a folder of its own."""
    made = {}
    calibration = CalibrationSpec(cal_image_dir=(tiny_pictures.image_dir,), cal_batch_size=3, cal_batches=2)
    for precision in ("FP32", "FP16", "INT8"):
        folder = tmp_path_factory.mktemp(precision)
        wanted = GenTrtEngineSpec(
            onnx_file=str(tiny_onnx),
            trt_engine=str(folder / "new" / "model.engine"),
            tensorrt=TensorRTSpec(
                data_type=precision,
                workspace_size=64,
                opt_batch_size=2,
                max_batch_size=4,
                calibration=calibration if precision == "INT8" else CalibrationSpec(),
            ),
        )
        made[precision] = gen_trt_engine_action(wanted, {}, folder / "results")
    return made


@needs_tensorrt
@pytest.mark.parametrize("precision", ["FP32", "FP16", "INT8"])
def test_engine_and_what_its_sidecar_says(precision: str, engines: Mapping[str, EngineReport], onnx: Path) -> None:
    report, library = engines[precision], trt.load()
    found = sidecar.require_engine(report.engine)
    assert found.engine_sha256 == sha256(report.engine)
    assert found.onnx_sha256 == sha256(report.onnx)
    assert (found.library, found.library_version) == (library.name, library.version)
    assert (found.precision, found.tf32, found.workspace_mb) == (precision, False, 64)
    assert found.shapes == {"min": [1, 3, 64, 64], "opt": [2, 3, 64, 64], "max": [4, 3, 64, 64]}
    assert (found.size, found.batch_range) == ((64, 64), (1, 4))
    assert found.model == json.loads(sidecar.path_of(report.onnx).read_text())
    assert found.compared.startswith("not compared: ")
    assert "not compared: " in report.line()
    lowered = {} if precision == "FP32" else {f"model.{precision.lower()}.onnx", f"model.{precision.lower()}.onnx.json"}
    there = {path.name for path in report.engine.parent.iterdir()}
    assert there == {"model.engine", "model.engine.json", *lowered}
    status = (report.engine.parent.parent / "results" / "status.json").read_text().splitlines()
    assert [json.loads(line)["status"] for line in status] == ["STARTED", "SUCCESS"]
    if precision == "FP32":
        assert report.onnx == onnx


@needs_tensorrt
def test_the_precision_is_read_back_from_the_network(engines: Mapping[str, EngineReport]) -> None:
    """Counted by TensorRT in what it parsed, and by onnx in the file; not what was asked for."""
    tensors = {precision: report.contents.tensors for precision, report in engines.items()}
    layers = {precision: report.contents.layers for precision, report in engines.items()}
    assert not {"HALF", "INT8"} & tensors["FP32"].keys()
    assert tensors["FP16"]["HALF"] > 100
    assert layers["FP16"]["half"] > 20
    assert "INT8" not in tensors["FP16"]
    nodes = Counter(node.op_type for node in onnx_format.load(engines["INT8"].onnx).graph.node)
    assert layers["INT8"]["quantize"] == nodes["QuantizeLinear"] > 0
    assert layers["INT8"]["dequantize"] == nodes["DequantizeLinear"] > nodes["QuantizeLinear"]
    assert tensors["INT8"]["INT8"] >= nodes["DequantizeLinear"]
    for precision in ("FP32", "FP16"):
        assert (layers[precision]["quantize"], layers[precision]["dequantize"]) == (0, 0)


@needs_tensorrt
def test_a_graph_of_another_precision_is_refused(engines: Mapping[str, EngineReport], tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    for held, asked in (("FP16", "FP32"), ("INT8", "FP32"), ("INT8", "FP16"), ("FP16", "INT8"), ("FP32", "INT8")):
        with pytest.raises(ValueError, match=rf"data_type` is {asked} and .* computes in {held} .*data_type={held}"):
            build_engine(engines[held].onnx, engine, precision=asked)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two images at once that takes bytes and selects by itself."""
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    export_onnx(tiny_checkpoint, path, height=64, width=64, batch_size=2, postprocess=True, input_dtype="uint8")
    return path


@needs_tensorrt
def test_a_fixed_batch_keeps_its_own(whole: Path, tmp_path: Path) -> None:
    report = build_engine(whole, tmp_path / "fixed.engine", batch_size=2)
    assert sidecar.require_engine(report.engine).batch_range == (2, 2)
    assert report.contents.precision == "FP32"
    with pytest.raises(ValueError, match=r"`gen_trt_engine.batch_size` .* is 3 and .* has 2"):
        build_engine(whole, tmp_path / "fixed.engine", batch_size=3)


def test_every_form_of_graph_scores_alike(onnx: Path, whole: Path, pictures: Source) -> None:
    """Bytes in and detections out, chosen in the graph or after it: the metric sees the same of all seven images."""
    graph = open_graph(whole)
    assert (graph.dtype, graph.outputs, graph.batch_range) == (torch.uint8, ("scores", "labels", "boxes"), (2, 2))
    data = {"image_dir": pictures.image_dir, "json_file": pictures.json_file}
    given = {"dataset": {"test_data_sources": data, "batch_size": 4}}
    (expected, plain), (found, other) = (evaluate_file(each, given, threads=1) for each in (onnx, whole))
    assert found.numbers == pytest.approx(expected.numbers, abs=1e-3)
    assert other.rows().shape == plain.rows().shape == (7 * 50, 7)


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


def described_wrongly(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Path], Path]:
    def spoil(onnx: Path, folder: Path) -> Path:
        path = folder / "lies.onnx"
        path.write_bytes(onnx.read_bytes())
        said = json.loads(onnx.with_name("model.onnx.json").read_text())
        change(said)
        sidecar.path_of(path).write_text(json.dumps(said))
        return path

    return spoil


@needs_tensorrt
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, r"able to parse .* but `.*cut\.onnx` has 1 problems: .*Failed to parse the ONNX model"),
        (empty, r"one input and outputs, but `.*empty\.onnx` has 0 and 0"),
        (foreign, "was written for another file"),
        (described_wrongly(lambda said: said.update(num_classes=9)), "`num_classes in its description` .* is 9 .* 4"),
        (described_wrongly(lambda said: said["input"].update(width=96)), r"`input size .* is \(64, 96\) .*\(64, 64\)"),
    ],
    ids=["truncated", "empty", "foreign", "classes", "size"],
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
        ({"data_type": "FP8"}, "must be one of FP32, FP16, INT8, but is `FP8`"),
        ({"min_batch_size": 2}, "they are 2, 1 and 1"),
        ({"max_batch_size": 2, "opt_batch_size": 3}, "they are 1, 3 and 2"),
        ({"layers_precision": ("/conv:fp16",)}, "layers_precision` can only be honoured"),
    ],
)
def test_what_cannot_be_built(onnx: Path, tmp_path: Path, wanted: dict[str, object], message: str) -> None:
    spec = GenTrtEngineSpec(
        onnx_file=str(onnx),
        trt_engine=str(tmp_path / "model.engine"),
        tensorrt=TensorRTSpec(**wanted),  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match=message):
        gen_trt_engine_action(spec, {})
    assert not list(tmp_path.iterdir())


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


def test_what_is_asked_by_name_of_either_version() -> None:
    """TensorRT 10 needs a flag for typed networks, later ones take the flag's place in the enumeration away."""
    made: list[int] = []
    builder = SimpleNamespace(create_network=made.append)
    for flags in (SimpleNamespace(STRONGLY_TYPED=1), SimpleNamespace()):
        network.create(SimpleNamespace(NetworkDefinitionCreationFlag=flags), builder)
    assert made == [2, 0]


def test_the_inspector_of_either_version_is_read() -> None:
    ten = {"Layers": [
        {"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format"}]},
        {"Name": "b", "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}]},
    ], "Bindings": ["inputs"]}  # fmt: skip
    eleven = {"Layers": [
        {"Name": "a", "Outputs": [{"Format": "Linear", "Datatype": "Half"}, {"Format": "Linear", "Datatype": "Half"}]},
        {"Name": "b", "Outputs": [{"Format": "Linear", "Datatype": "Int8"}]},
    ], "I/O Tensors": []}  # fmt: skip
    assert trt.types_in(json.dumps(ten)) == {"FLOAT": 1, "HALF": 1}
    assert trt.types_in(json.dumps(eleven)) == {"HALF": 1, "INT8": 1}
    assert trt.types_in(json.dumps({"Layers": ["a", "b"]})) == {}


class Config:
    """A builder's configuration that takes the caches of one version only, and adds a timing in each build."""

    def __init__(self, log: Any, version: bytes) -> None:
        self.log, self.version, self.cache = log, version, b""

    def create_timing_cache(self, content: bytes) -> bytes:
        if content and not content.startswith(self.version):
            self.log.warnings.append("Failed to deserialize timing cache. Returning an empty timing cache.")
            return b""
        return content or self.version

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"+")


def test_timings_are_kept_for_their_own_version(tmp_path: Path) -> None:
    path, log = tmp_path / "cache.bin", SimpleNamespace(errors=[], warnings=[])

    def build(version: str) -> str:
        library, config = trt.Library("tensorrt", version, None), Config(log, version.encode())
        found = timing.attach(config, library, log, path)
        if found.write:
            timing.keep(config, library, path)
        return found.said

    assert "is new" in build("10.8")
    assert "read from" in build("10.8")
    assert path.read_bytes() == b"10.8++"
    assert "not used, and replaced" in build("11.4")
    assert path.read_bytes() == b"11.4+"
    sidecar.path_of(path).unlink()
    assert "read from" in build("11.4"), "another program's cache is taken where the library takes it"
    path.write_bytes(b"no cache at all")
    sidecar.path_of(path).unlink()
    assert "not used, and left as it is" in build("11.4")
    assert path.read_bytes() == b"no cache at all"
    assert (log.errors, log.warnings) == ([], [])


@needs_tensorrt
def test_a_library_without_timings_says_so(tmp_path: Path) -> None:
    library = trt.load()
    if library.name not in trt.AHEAD_OF_TIME:
        pytest.skip("this library takes timings")
    assert "passed over" in timing.attach(None, library, None, tmp_path / "cache").said
    with pytest.raises(ValueError, match="is a folder"):
        timing.check(tmp_path)
