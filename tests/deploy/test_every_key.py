"""Every key of deploy/spec.py has one row: an effect that is seen, a refusal with its reason, or a line.

The keys are walked from the spec classes, so a new key without a row fails here. The keys of model/spec.py have their
rows in tests/model/test_every_key.py.
"""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import onnx as onnx_format
import pytest

from deploy import sidecar
from deploy.export import export_action
from deploy.gen_trt_engine import gen_trt_engine_action
from deploy.notices import SECTIONS, UNUSED, notices
from deploy.quantize import WEIGHTS, quantize_action
from deploy.quantize import check as check_quantize
from deploy.spec import CalibrationSpec, DeploySpec, ExportSpec, GenTrtEngineSpec, QuantizeSpec, TensorRTSpec
from hpo.actions import _folder
from hpo.spec import read_request
from model.checkpoint import read_checkpoint
from model.spec import ExperimentSpec, Source
from schemas import dotted
from schemas.fields import members

HONOURED = {
    "export.checkpoint", "export.onnx_file", "export.input_width", "export.input_height", "export.opset_version",
    "export.batch_size", "export.overwrite", "export.results_dir", "export.verbose",
    "export.attention", "export.postprocess", "export.input_dtype", "export.serialize_nvdsinfer",
    "gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine", "gen_trt_engine.batch_size", "gen_trt_engine.verbose",
    "gen_trt_engine.tensorrt.workspace_size", "gen_trt_engine.tensorrt.min_batch_size",
    "gen_trt_engine.tensorrt.opt_batch_size", "gen_trt_engine.tensorrt.max_batch_size",
    "gen_trt_engine.results_dir", "gen_trt_engine.gpu_id", "gen_trt_engine.timing_cache",
    "gen_trt_engine.tensorrt.data_type", "gen_trt_engine.tensorrt.layers_precision",
    "gen_trt_engine.tensorrt.calibration.cal_image_dir", "gen_trt_engine.tensorrt.calibration.cal_cache_file",
    "gen_trt_engine.tensorrt.calibration.cal_batch_size", "gen_trt_engine.tensorrt.calibration.cal_batches",
    "gen_trt_engine.tensorrt.calibration.method",
    "quantize.mode", "quantize.layers", "quantize.skip_names", "quantize.model_path", "quantize.results_dir",
    # By the handoff (tests/hpo/test_handoff.py), the last three by the choice (test_choice.py).
    "deploy.precisions", "deploy.max_drop.fp32", "deploy.max_drop.fp16", "deploy.max_drop.int8",
    "deploy.calibration_images", "deploy.objective", "deploy.max_latency_ms", "deploy.accuracy_slack",
}  # fmt: skip
REFUSED = {
    "export.format": "xdl",
    "export.input_channel": 1,
    "quantize.backend": "modelopt.onnx",
    "quantize.algorithm": "awq_lite",
    "quantize.backend_kwargs": {"x": 1},
}
OTHER: dict[str, Any] = {
    "export.gpu_id": 1,
    "export.on_cpu": True,
    "quantize.device": "cpu",
}
"""A value that is not the default, for each key that nothing reads."""


def every_key(cls: type, prefix: str) -> Iterator[str]:
    for name, hint, _, _ in members(cls):
        if is_dataclass(hint) and isinstance(hint, type):
            yield from every_key(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_one_row() -> None:
    keys = {key for name, cls in SECTIONS.items() for key in every_key(cls, f"{name}.")}
    assert keys == HONOURED | set(REFUSED) | set(OTHER)
    assert len(keys) == len(HONOURED) + len(REFUSED) + len(OTHER)


@pytest.mark.parametrize("key", sorted(OTHER))
def test_what_nothing_reads_says_so(key: str) -> None:
    (line,) = notices(dotted.put({}, key, OTHER[key]))
    assert line.startswith(f"accepted and not used: {key}")
    assert any(line.endswith(reason) for reason in UNUSED.values())


def test_defaults_and_what_is_read_say_nothing() -> None:
    assert notices({"export": {"on_cpu": False, "input_width": 96}, "quantize": {"backend": "torchao"}}) == []
    assert notices({"deploy": {"precisions": ["FP32", "INT8"], "objective": "latency"}}) == []


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_cannot_be_done_is_refused(key: str, checkpoint: Path, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    target = tmp_path / "model.onnx"
    if section == "export":
        wanted = replace(ExportSpec(checkpoint=str(checkpoint), onnx_file=str(target)), **{name: REFUSED[key]})
        with pytest.raises(ValueError, match=f"`{key}` must be"):
            export_action(ExperimentSpec(), wanted)
        assert not target.exists()
    else:
        assert section == "quantize"
        with pytest.raises(ValueError, match=f"`{key}` must be"):
            check_quantize(replace(QuantizeSpec(model_path=str(checkpoint)), **{name: REFUSED[key]}))


def test_what_the_export_honours(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a" / "model.onnx"
    wanted = ExportSpec(
        checkpoint=str(checkpoint), onnx_file=str(path), input_width=96, input_height=64, opset_version=16,
        batch_size=2, serialize_nvdsinfer=True,
    )  # fmt: skip
    assert export_action(ExperimentSpec(), wanted) == path
    quiet = capfd.readouterr().out
    graph = onnx_format.load(path)
    (inputs,) = graph.graph.input
    assert [each.dim_value for each in inputs.type.tensor_type.shape.dim] == [2, 3, 64, 96]
    assert graph.opset_import[0].version == 16
    with pytest.raises(ValueError, match=r"export\.overwrite=true"):
        export_action(ExperimentSpec(), wanted)
    assert (path.with_name("labels.txt").is_file(), path.with_name("nvdsinfer_config.yaml").is_file()) == (True, True)
    form = {"attention": "gather", "postprocess": True, "input_dtype": "uint8", "serialize_nvdsinfer": False}
    export_action(
        ExperimentSpec(), replace(wanted, overwrite=True, opset_version=17, verbose=True, on_cpu=True, **form)
    )
    described, graph = sidecar.require_onnx(path), onnx_format.load(path).graph
    assert (described.opset, described.attention, described.input["dtype"]) == (17, "gather", "uint8")
    assert graph.input[0].type.tensor_type.elem_type == onnx_format.TensorProto.UINT8
    assert [each.name for each in graph.output] == ["scores", "labels", "boxes"]
    assert "GridSample" not in {node.op_type for node in graph.node}
    assert len(capfd.readouterr().out) > len(quiet) + 1000  # the exporter prints its graph


@pytest.mark.parametrize("action", ["export", "quantize"])
def test_the_results_folder_of_an_action(action: str, tmp_path: Path) -> None:
    request = read_request(None, [f"{action}.results_dir={tmp_path}/here", f"results_dir={tmp_path}"], action=action)
    assert _folder(request, action, Namespace(run=None)) == tmp_path / "here"
    request = read_request(None, [f"results_dir={tmp_path}"], action=action)
    assert _folder(request, action, Namespace(run=None)) == tmp_path / action


def test_what_the_quantisation_honours(checkpoint: Path, tmp_path: Path) -> None:
    def layers(**keys: Any) -> set[str]:
        quantize_action({}, QuantizeSpec(model_path=str(checkpoint), **keys), DeploySpec(), tmp_path)
        return set(read_checkpoint(tmp_path / WEIGHTS).quantised)

    heads = {"class_embed.0", "class_embed.1"}
    rule = {"module_name": "class_embed.*", "weights": {"dtype": "int8"}}
    assert layers() > layers(layers=(rule,)) == heads
    assert layers() - layers(skip_names=("class_embed.*",)) == heads
    with pytest.raises(
        ValueError, match=r"`quantize\.mode` must be weight_only_ptq for a checkpoint, but is static_ptq"
    ):
        layers(mode="static_ptq")


def test_what_the_build_honours(
    onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="an engine is built where TensorRT is installed")
    wanted = GenTrtEngineSpec(
        onnx_file=str(onnx),
        trt_engine=str(tmp_path / "model.engine"),
        timing_cache=str(tmp_path / "timings"),
        verbose=True,
        tensorrt=TensorRTSpec(workspace_size=48, min_batch_size=2, opt_batch_size=3, max_batch_size=4),
    )
    report = gen_trt_engine_action(wanted, {})
    said = capfd.readouterr().out
    assert "[VERBOSE]" in said  # the builder's own words
    assert "gen_trt_engine.timing_cache" in said
    found = json.loads(report.sidecar.read_text())
    assert found["workspace_mb"] == 48
    assert [found["shapes"][name][0] for name in ("min", "opt", "max")] == [2, 3, 4]
    with pytest.raises(ValueError, match=r"gen_trt_engine\.batch_size"):
        gen_trt_engine_action(replace(wanted, batch_size=7), {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="`gpu_id` must name a GPU of this machine, but is 5 of 2"):
        gen_trt_engine_action(replace(wanted, gpu_id=5, verbose=False), {})


def test_what_a_conversion_honours(
    onnx: Path, pictures: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def lower(*places: Any, **keys: Any) -> None:
        seen.append((*places, keys))
        raise ValueError("enough")

    monkeypatch.setattr("deploy.gen_trt_engine.lower", lower)
    calibration = CalibrationSpec(
        cal_image_dir=(pictures.image_dir,),
        cal_cache_file=str(tmp_path / "cache.json"),
        cal_batch_size=3,
        cal_batches=2,
        method="entropy",
    )
    tensorrt = TensorRTSpec(data_type="INT8", layers_precision=("a:fp32",), calibration=calibration)
    engine = tmp_path / "model.engine"
    wanted = GenTrtEngineSpec(onnx_file=str(onnx), trt_engine=str(engine), tensorrt=tensorrt)
    with pytest.raises(ValueError, match="enough"):
        gen_trt_engine_action(wanted, {}, tmp_path / "results")
    ((source, target, precision, keys),) = seen
    assert (source, target, precision) == (onnx, tmp_path / "model.int8.onnx", "INT8")
    assert (keys["images"].count, keys["images"].batch_size) == (6, 3)
    assert {path.parent for path in keys["images"].paths} == {Path(pictures.image_dir)}
    assert (keys["method"], keys["layers_precision"]) == ("entropy", ("a:fp32",))
    assert keys["cache"] == tmp_path / "cache.json"
    assert json.loads((tmp_path / "results" / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"
