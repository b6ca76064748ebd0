"""The `quantize` action: eight bits in place of 32, and what that saved and cost. Knows which file goes with which
mode; how weights are lowered is `weight_only`'s, how a graph is `precision`'s."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, numpy_helper

from deploy import sidecar
from deploy.calibration import from_spec
from deploy.evaluate import evaluate_file
from deploy.int8 import layers
from deploy.layer_rules import NATIVE, rules, select
from deploy.precision import lower
from deploy.spec import DeploySpec, QuantizeSpec
from deploy.tensors import load
from deploy.weight_only import choose, quantise
from model.adopt import adopt
from model.checkpoint import load_model
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.whole import write_text

WEIGHTS, GRAPH, REPORT = "quantized_model_torchao.pth", "quantized_model.onnx", "quantize.json"
METHODS: Mapping[str, str] = {"minmax": "minmax", "max": "minmax", "entropy": "entropy"}
"""`quantize.algorithm` to the calibration of a graph. Of weights alone there is but the largest value."""
CLASSES = {"Conv": "Conv2d", "Gemm": "Linear", "MatMul": "Linear"}
"""Operator of a graph to the class that PyTorch has for it."""
MODELOPT = {
    "modelopt.onnx": "which makes the same kind of graph with mode=static_ptq and an .onnx as model_path",
    "modelopt.pytorch": "with mode=weight_only_ptq for a checkpoint, or mode=static_ptq for the .onnx that `ddetr "
    "export` makes of it",
}


class Report(NamedTuple):
    """What was made, and what it saved and cost. Pairs are before and after."""

    file: Path
    what: str
    """Which layers became what, in words."""
    bytes: tuple[int, int]
    """Of the weights in a checkpoint, whose file may hold more; of the whole file of a graph."""
    error: float
    """Largest difference of a weight from what it was, as a share of the largest weight of its output row."""
    map50: tuple[float, float] | None
    """On the test images; None where the spec names none."""

    def lines(self) -> list[str]:
        before, after = self.bytes
        size = f"{before / 1e6:.1f} -> {after / 1e6:.1f} MB ({after / before:.0%})"
        error = f"weights differ by up to {self.error:.2%} of the largest of their row"
        said = [f"{self.file}: {self.what}; {size}; {error}."]
        if self.map50 is None:
            return [*said, "Accuracy was not measured: the spec names no test data; set dataset.test_data_sources."]
        first, second = self.map50
        return [*said, f"test mAP50 {first:.4f} -> {second:.4f} ({second - first:+.4f})."]

    def write(self, folder: Path) -> None:
        plain = {
            "file": self.file.name,
            "what": self.what,
            "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            "max_weight_error": self.error,
            "test_mAP50": None if self.map50 is None else dict(zip(("before", "after"), self.map50, strict=True)),
        }
        write_text(json.dumps(plain, indent=2) + "\n", folder / REPORT)


def quantize_action(
    given: Mapping[str, Any], wanted: QuantizeSpec, deploy: DeploySpec, out: Path, *, cpus: int = 1
) -> Report:
    """The `quantize` action: `out` gets the quantised file (WEIGHTS, or GRAPH and its sidecar), quantize.json and
    status.json. given: the user's nested spec."""
    status = StatusLog(out)
    with status.action("quantize"):
        path = check(wanted)
        make = _graph if path.suffix == ".onnx" else _weights
        report, spec = make(path, given, wanted, deploy, out)
        if spec.dataset.has_test:
            first, second = (evaluate_file(file, given, cpus=cpus)[0].numbers["mAP50"] for file in (path, report.file))
            report = report._replace(map50=(first, second))
        report.write(out)
        kpi = {} if report.map50 is None else {"test_mAP50": report.map50[1]}
        status.write("RUNNING", " ".join(report.lines()), kpi=kpi)
    return report


def check(wanted: QuantizeSpec) -> Path:
    """The file to quantise. Raises ValueError for a combination that there is not."""
    if wanted.backend in MODELOPT:
        raise ValueError(
            f"`quantize.backend` must be torchao, but is {wanted.backend}: nvidia-modelopt[onnx] pins other versions "
            "of onnx and onnxruntime than this environment has, so the two cannot share one. Use torchao, "
            f"{MODELOPT[wanted.backend]}."
        )
    if not wanted.model_path:
        raise ValueError("`quantize.model_path` must name a .pth or .onnx file, but is unset; set it.")
    path = Path(wanted.model_path)
    graph = path.suffix == ".onnx"
    mode, what = ("static_ptq", "an .onnx file") if graph else ("weight_only_ptq", "a checkpoint")
    if wanted.mode != mode:
        instead = "" if graph else ", or export it (`ddetr export`) and name the .onnx file"
        raise ValueError(
            f"`quantize.mode` must be {mode} for {what}, but is {wanted.mode} and model_path is `{path}`; set "
            f"mode={mode}{instead}."
        )
    known = [name for name in METHODS if graph or METHODS[name] == "minmax"]
    if wanted.algorithm not in known:
        raise ValueError(
            f"`quantize.algorithm` must be {' or '.join(known)} with mode={wanted.mode}, but is {wanted.algorithm}; "
            "leave it out."
        )
    if wanted.backend_kwargs:
        raise ValueError(
            f"`quantize.backend_kwargs` must be empty, for there is no option to pass on, but is "
            f"{dict(wanted.backend_kwargs)}; leave it out."
        )
    return path


def _weights(
    path: Path, given: Mapping[str, Any], wanted: QuantizeSpec, deploy: DeploySpec, out: Path
) -> tuple[Report, ExperimentSpec]:
    model, source = load_model(path)
    spec = adopt(source, given)
    if source.quantised:
        raise ValueError(f"`quantize.model_path` must hold whole weights, but `{path}` is quantised; name its origin.")
    chosen = choose(model, rules(wanted.layers), wanted.skip_names)
    made = quantise(model, source, chosen, out / WEIGHTS)
    kinds = ", ".join(f"{list(chosen.values()).count(kind)} to {kind}" for kind in sorted(set(chosen.values())))
    report = Report(
        file=out / WEIGHTS,
        what=f"weights of linear layers {kinds}" + ("" if wanted.layers else ", all there are (`layers` is empty)"),
        bytes=(made.before, made.after),
        error=made.error,
        map50=None,
    )
    return report, spec


def _graph(
    path: Path, given: Mapping[str, Any], wanted: QuantizeSpec, deploy: DeploySpec, out: Path
) -> tuple[Report, ExperimentSpec]:
    described, model = sidecar.require_onnx(path), load(path)
    spec = adopt(described.as_checkpoint(path), given)

    def score(file: Path) -> float:
        return evaluate_file(file, given, split="val")[0].numbers["mAP50"]

    images = from_spec(spec, described, deploy.calibration_images, batch_size=spec.dataset.batch_size)
    made = lower(
        path,
        out / GRAPH,
        "INT8",
        images=images,
        layers_precision=exceptions(model, wanted),
        method=METHODS[wanted.algorithm],
        score=score if spec.dataset.has_validation else None,
        max_drop=deploy.max_drop.int8,
    )
    kept = f"; {len(made.kept)} stay in higher precision: {', '.join(made.kept)}" if made.kept else ""
    report = Report(
        file=out / GRAPH,
        what=f"{made.quantised} convolutions and linear layers to INT8, by {images.count} images{kept}",
        bytes=(path.stat().st_size, made.onnx.stat().st_size),
        error=_weight_error(model, load(made.onnx)),
        map50=None,
    )
    return report, spec


def exceptions(model: ModelProto, wanted: QuantizeSpec) -> tuple[str, ...]:
    """`quantize.layers` and `skip_names` as exceptions to INT8, `node:fp32`. A layer's classes are its operator's name
    and PyTorch's."""
    able = {each.node for each in layers(model)}
    kinds = {node.name: (node.op_type, CLASSES[node.op_type]) for node in model.graph.node if node.name in able}
    listed = rules(wanted.layers)
    if any(rule.dtype not in ("int8", NATIVE) for rule in listed):
        raise ValueError("each of `quantize.layers` must be int8 or native for an .onnx file; leave float8 to a .pth.")
    chosen = select(kinds, listed, wanted.skip_names)
    return tuple(f"{name}:fp32" for name in kinds if name not in chosen)


def _weight_error(before: ModelProto, after: ModelProto) -> float:
    whole = {each.name: each for each in before.graph.initializer}
    small = {each.name: numpy_helper.to_array(each) for each in after.graph.initializer}
    errors = [0.0]
    for node in after.graph.node:
        name = node.input[0].removesuffix("_quantized") if node.op_type == "DequantizeLinear" else ""
        if name not in whole or node.input[0] not in small:
            continue
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        weight = np.moveaxis(numpy_helper.to_array(whole[name]), axis, 0)
        values = np.moveaxis(small[node.input[0]].astype(np.float32), axis, 0)
        rows = (len(values), -1)
        weight, kept = weight.reshape(rows), values.reshape(rows) * small[node.input[1]].reshape(-1, 1)
        largest = np.abs(weight).max(1, keepdims=True) + np.finfo(np.float32).tiny
        errors.append(float((np.abs(kept - weight) / largest).max()))
    return max(errors)
