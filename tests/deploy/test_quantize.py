"""The quantize action: what goes together, what it leaves, and that its files are taken by all that comes after."""

import json
from pathlib import Path
from typing import Any

import onnx as onnx_format
import pytest

from deploy import sidecar
from deploy.evaluate import evaluate_file
from deploy.export import export_onnx
from deploy.inference import inference_action
from deploy.quantize import GRAPH, WEIGHTS, check, exceptions, quantize_action
from deploy.spec import DeploySpec, QuantizeSpec
from deploy.tensors import load
from model.checkpoint import load_model, read_checkpoint
from model.spec import Source

SQUARE = {"input_width": 64, "input_height": 64}


def asked(pictures: Source, **more: Any) -> dict[str, Any]:
    data = {"image_dir": pictures.image_dir, "json_file": pictures.json_file}
    return {"dataset": {"test_data_sources": data, "train_data_sources": [data], "batch_size": 4}, **more}


def test_weights_of_a_checkpoint(checkpoint: Path, pictures: Source, tmp_path: Path) -> None:
    given = asked(pictures, evaluate=SQUARE)
    report = quantize_action(given, QuantizeSpec(model_path=str(checkpoint)), DeploySpec(), tmp_path)
    assert report.file == tmp_path / WEIGHTS
    assert report.bytes[1] < report.bytes[0]
    assert report.file.stat().st_size < checkpoint.stat().st_size
    whole, small = (evaluate_file(file, given)[0].numbers["mAP50"] for file in (checkpoint, report.file))
    assert report.map50 == (whole, small)
    assert 0.1 < small < 0.99
    assert json.loads((tmp_path / "quantize.json").read_text())["test_mAP50"] == {"before": whole, "after": small}
    lines = [json.loads(line) for line in (tmp_path / "status.json").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "RUNNING", "SUCCESS"]
    assert lines[1]["kpi"] == {"test_mAP50": small}
    first, second = report.lines()
    assert "all there are (`layers` is empty)" in first
    assert f"test mAP50 {whole:.4f} -> {small:.4f}" in second


def test_the_file_is_exported_and_labels(checkpoint: Path, pictures: Source, tmp_path: Path) -> None:
    report = quantize_action({}, QuantizeSpec(model_path=str(checkpoint)), DeploySpec(), tmp_path)
    assert report.map50 is None
    assert "names no test data" in report.lines()[1]
    onnx = tmp_path / "model.onnx"
    export_onnx(report.file, onnx, height=64, width=64)  # compares with what PyTorch says of the same file
    lineage = sidecar.require_onnx(onnx).lineage
    assert lineage["quantised"] == read_checkpoint(report.file).quantised
    assert {each.data_type for each in onnx_format.load(onnx).graph.initializer} <= {1, 7}  # whole floats, and shapes
    section = {"checkpoint": str(report.file), "conf_threshold": 0.0}
    data = {"batch_size": 4, "infer_data_sources": {"image_dir": [pictures.image_dir]}}
    assert inference_action({"dataset": data, "inference": section}, tmp_path / "labels") == 7


def test_a_graph_with_its_activations(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    given = asked(pictures)
    wanted = QuantizeSpec(model_path=str(onnx), mode="static_ptq", algorithm="max", skip_names=("*class_embed*",))
    report = quantize_action(given, wanted, DeploySpec(), tmp_path)
    described = sidecar.require_onnx(tmp_path / GRAPH)
    assert described.precision == "INT8"
    assert {name for name in described.lowered["kept"] if "class_embed" in name}  # type: ignore[index]
    kinds = [node.op_type for node in onnx_format.load(tmp_path / GRAPH).graph.node]
    assert kinds.count("QuantizeLinear") > 10
    assert 0 < report.error < 1 / 127
    assert report.map50 == tuple(evaluate_file(file, given)[0].numbers["mAP50"] for file in (onnx, report.file))
    assert report.bytes == (onnx.stat().st_size, report.file.stat().st_size)


ONNX, PTH = "a.onnx", "a.pth"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, r"`quantize\.model_path` must name a \.pth or \.onnx file"),
    (
        {"model_path": PTH, "mode": "static_ptq"},
        r"but is static_ptq and model_path is `a\.pth`; set mode=weight_only_ptq, or export",
    ),
    ({"model_path": ONNX}, r"but is weight_only_ptq and model_path is `a\.onnx`; set mode=static_ptq"),
    (
        {"model_path": PTH, "algorithm": "entropy"},
        r"`quantize\.algorithm` must be minmax or max with .* but is entropy",
    ),
    ({"model_path": ONNX, "mode": "static_ptq", "algorithm": "awq_lite"}, "must be minmax or max or entropy"),
    ({"model_path": PTH, "backend_kwargs": {"group_size": 64}}, r"`quantize\.backend_kwargs` must be empty"),
    ({"model_path": ONNX, "backend": "modelopt.onnx"}, r"cannot share one\. Use torchao, .* with mode=static_ptq"),
    ({"model_path": PTH, "backend": "modelopt.pytorch"}, r"cannot share one\. Use torchao, with mode=weight_only_ptq"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_what_does_not_go_together_is_one_error(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    wanted = QuantizeSpec(**keys)
    with pytest.raises(ValueError, match=words):
        check(wanted)
    with pytest.raises(ValueError, match=words):
        quantize_action({}, wanted, DeploySpec(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_what_is_quantised_stays_so(checkpoint: Path, tmp_path: Path) -> None:
    report = quantize_action({}, QuantizeSpec(model_path=str(checkpoint)), DeploySpec(), tmp_path)
    with pytest.raises(ValueError, match="must hold whole weights"):
        quantize_action({}, QuantizeSpec(model_path=str(report.file)), DeploySpec(), tmp_path / "again")
    assert load_model(report.file)[1].quantised


def test_which_nodes_of_a_graph(onnx: Path) -> None:
    graph = load(onnx)

    def kept(*layers: tuple[str, str], skip: tuple[str, ...] = ()) -> set[str]:
        listed = tuple({"module_name": pattern, "weights": {"dtype": dtype}} for pattern, dtype in layers)
        return {name.removesuffix(":fp32") for name in exceptions(graph, QuantizeSpec(layers=listed, skip_names=skip))}

    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert kept() == set()
    linear = kept(("Conv2d", "int8"))
    assert {kinds[name] for name in linear} <= {"Gemm", "MatMul"}
    assert kept(skip=("Linear",)) == linear
    assert kept(("*", "int8"), ("Linear", "native")) == linear
    with pytest.raises(ValueError, match=r"must be int8 or native for an \.onnx file"):
        kept(("Linear", "fp8_e4m3fn"))
    with pytest.raises(ValueError, match="`lm_head` fits none"):
        kept(skip=("lm_head",))
