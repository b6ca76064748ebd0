"""FP32 ONNX -> FP16 or INT8 ONNX whose detections are known to hold. Knows what a user asks for, and the tolerances;
knows no TensorRT and no truth but the score that its caller measures.
"""

import dataclasses
import fnmatch
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import onnx as onnx_format
from onnx import ModelProto, TensorProto

from deploy import float16, int8, ranges, sidecar
from deploy.calibration import CalibrationImages
from deploy.drift import Chosen, Drift, Verdict
from deploy.rounding import rounded
from deploy.spec import MaxDropSpec
from deploy.tensors import load, types_of
from model.checkpoint import sha256
from model.errors import Kind
from model.progress import progress
from model.whole import in_place

MAX_DRIFT: Mapping[str, float] = {"FP16": 0.005, "INT8": 0.015}
"""Mean distance of detections (see Drift) that is allowed where no score decides; FP16 keeps it in any case. Measured
on a small detector with ranges made wrong on purpose: 0.008, 0.017 and 0.029 cost -0.004, 0.017 and 0.038 of mAP50."""
COMPARED = 8
"""Calibration images whose detections are compared, spread evenly."""
RANKED = 2
"""Of them, those that rank the layers."""
KEY = "gen_trt_engine.tensorrt.layers_precision"
TYPES = ("fp32", "fp16", "int8")

Score = Callable[[Path], float]


class PrecisionError(RuntimeError):
    """A precision cannot be reached within its tolerance; nothing was written."""

    kind: ClassVar[Kind] = "run"


class Lowered(NamedTuple):
    onnx: Path
    precision: str
    kept: Mapping[str, str]
    """Node that is not of this precision, though it could be, to the reason."""
    nodes: int
    """Of the graph, in all."""
    quantised: int
    """Nodes in INT8."""
    drift: float
    """Mean distance of detections from the FP32 graph's."""
    score: float | None
    """mAP50, where the caller measures it."""
    seconds: float


def lower(
    onnx: Path,
    target: Path,
    precision: str,
    *,
    images: CalibrationImages,
    layers_precision: Sequence[str] = (),
    method: str = "minmax",
    cache: Path | None = None,
    score: Score | None = None,
    reference: float | None = None,
    max_drop: float | None = None,
) -> Lowered:
    """Writes `target` in `precision`, FP16 or INT8: an ONNX file with inputs and outputs as before, and its sidecar.

    score: mAP50 of an ONNX file; it may lose `max_drop` (None: the default of deploy.max_drop) against `reference`
    (None: that of `onnx`). Without it the detections on the calibration images may move by MAX_DRIFT. Raises
    PrecisionError, and writes nothing but the cache, where that cannot be reached.
    """
    start = time.perf_counter()
    described = _described(onnx, target, precision)
    with progress(f"lowering to {precision}"):
        model = load(onnx)
        wanted = layer_types(layers_precision, model, precision)
        judge = _Judge(model, described, images, precision, score, reference, max_drop, onnx)
        if precision == "FP16":
            found, calibration = _float16(model, images, judge, wanted), {}
        else:
            sources = list(dict.fromkeys(each.source for each in int8.layers(model)))
            limits = ranges.cached(model, sources, images, method, cache, described.onnx_sha256)
            found, calibration = _int8(model, limits, judge, wanted), {"method": method}
        verdict = found.verdict
        if not verdict.good:
            raise PrecisionError(
                f"{precision} must keep the detections of `{onnx.name}` within a tolerance, but {verdict.why}, with "
                f"{len(found.kept)} nodes left in higher precision; leave others there with {KEY}, give other "
                "calibration images, or stay with FP32."
            )
        counted = counts(found.model)
        content = dataclasses.replace(
            described,
            precision=precision,
            lowered={
                "from_sha256": described.onnx_sha256,
                "kept": dict(found.kept),
                "counts": counted,
                "drift": verdict.drift,
                "score": verdict.score,
                "reference": judge.reference,
                "why": verdict.why,
                "calibration": {**calibration, "images": images.count, "sha256": images.digest},
            },
        )
        with in_place(target, sidecar.path_of(target)) as (partial, described_by):
            _write(found.model, content, partial, described_by)
    return Lowered(
        onnx=target,
        precision=precision,
        kept=found.kept,
        nodes=counted["nodes"],
        quantised=counted["quantised"],
        drift=verdict.drift,
        score=verdict.score,
        seconds=time.perf_counter() - start,
    )


class _Judge:
    """Whether a lowered graph keeps what it must; see `lower`."""

    def __init__(
        self,
        model: ModelProto,
        described: sidecar.OnnxSidecar,
        images: CalibrationImages,
        precision: str,
        score: Score | None,
        reference: float | None,
        max_drop: float | None,
        onnx: Path,
    ) -> None:
        self._described, self._precision, self._score = described, precision, score
        self._drift = Drift(model, images.first(COMPARED))
        self._max_drop = MaxDropSpec().of(precision) if max_drop is None else max_drop
        self.reference = score(onnx) if score is not None and reference is None else reference

    def rank(self, model: ModelProto) -> float:
        """How far it moves, on few images."""
        return self._drift(rounded(model), RANKED)

    def __call__(self, model: ModelProto) -> Verdict:
        model = rounded(model)
        drift, allowed = self._drift(model), MAX_DRIFT[self._precision]
        why = f"they move by {drift:.2g} of a score or of the image on average (allowed: {allowed})"
        if self._score is None or (self._precision == "FP16" and not drift <= allowed):
            return Verdict(drift <= allowed, drift, None, why)
        assert self.reference is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self._precision.lower()}.onnx"
            _write(model, self._described, path, sidecar.path_of(path))
            score = self._score(path)
        why = f"mAP50 is {score:.4f} after {self.reference:.4f} (allowed: {self._max_drop} less)"
        return Verdict(self.reference - score <= self._max_drop, drift, score, why)


def _float16(model: ModelProto, images: CalibrationImages, judge: _Judge, wanted: Mapping[str, str]) -> Chosen:
    kept = {name: f"{KEY} says so" for name, kind in wanted.items() if kind == "fp32"}
    fixed = [name for name, kind in wanted.items() if kind == "fp16"]
    return float16.choose(model, images, judge, kept=kept, fixed=fixed)


def _int8(model: ModelProto, limits: Mapping[str, float], judge: _Judge, wanted: Mapping[str, str]) -> Chosen:
    """In INT8 what can be and nobody wants otherwise; in FP16 what is wanted so; the rest in FP32."""
    able = [each.node for each in int8.layers(model)]
    told = {name: f"{KEY} says {wanted[name]}" for name in able if wanted.get(name, "int8") != "int8"}
    nodes = [name for name in able if name not in told]
    if not nodes:
        raise ValueError(
            f"INT8 needs layers to quantise, but of the {len(able)} with constant weights in this graph `{KEY}` leaves "
            "none; shorten it, or set data_type to FP16 or FP32."
        )
    half = {name for name, kind in wanted.items() if kind == "fp16"}

    def build(quantised: Collection[str]) -> ModelProto:
        found = int8.quantise(model, quantised, limits)
        return float16.cast(found, [node.name for node in found.graph.node if node.name not in half]) if half else found

    found = int8.choose(build, judge, judge.rank, nodes, fixed=[name for name in nodes if wanted.get(name) == "int8"])
    return found._replace(kept={**told, **found.kept})


def layer_types(entries: Sequence[str], model: ModelProto, precision: str) -> dict[str, str]:
    """Node to the type that `layers_precision` wants: entries `pattern:dtype`, split at the last colon, the pattern as
    of file names over ONNX node names. Later entries win; `*` is the default under all others. Raises ValueError for
    what cannot be meant."""
    nodes = [node.name for node in model.graph.node]
    able = {each.node for each in int8.layers(model)}
    default: dict[str, str] = {}
    found: dict[str, str] = {}
    for entry in entries:
        pattern, _, kind = entry.rpartition(":")
        kind = kind.strip().lower()
        if not pattern or kind not in TYPES:
            raise ValueError(
                f"`{KEY}` must hold `pattern:dtype` with a dtype of {', '.join(TYPES)}, but has `{entry}`; nodes are "
                f"named like {_some(nodes)}."
            )
        if kind == "int8" and precision != "INT8":
            raise ValueError(f"`{KEY}` may say int8 only where data_type is INT8, but `{entry}` is for {precision}.")
        if pattern == "*":
            default = {} if kind == precision.lower() else dict.fromkeys(nodes, kind)
            continue
        matched = fnmatch.filter(nodes, pattern)
        if kind == "int8":
            matched = [name for name in matched if name in able]
        if not matched:
            what = "nodes that can be INT8 (Conv, Gemm, MatMul with constant weights)" if kind == "int8" else "nodes"
            raise ValueError(
                f"`{KEY}` must name {what} of the ONNX file, but `{pattern}` matches none; there are for example "
                f"{_some([name for name in nodes if name in able])}."
            )
        found |= dict.fromkeys(matched, kind)
    return default | found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:: max(1, len(names) // 5)][:6])


def counts(model: ModelProto) -> dict[str, int]:
    """What a graph holds: nodes; Q and DQ nodes; nodes with weights in INT8; int8 and float16 constants; nodes that
    compute in float16."""
    types = types_of(model)
    graph = model.graph
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = {each.name: each.data_type for each in graph.initializer}
    from_int8 = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0]) == TensorProto.INT8
    }
    return {
        "nodes": len(graph.node),
        "q": sum(node.op_type == "QuantizeLinear" for node in graph.node),
        "dq": len(made),
        "quantised": sum(any(name in from_int8 for name in node.input) for node in graph.node),
        "int8_weights": len(from_int8),
        "float16_constants": sum(kind == TensorProto.FLOAT16 for kind in weights.values()),
        "float16_nodes": sum(
            node.op_type != "Cast" and types.get(name) == TensorProto.FLOAT16
            for node in graph.node
            for name in node.output[:1]
        ),
    }


def _described(onnx: Path, target: Path, precision: str) -> sidecar.OnnxSidecar:
    described = sidecar.require_onnx(onnx)
    if target.suffix != ".onnx" or target.absolute() == onnx.absolute():
        raise ValueError(f"a lowered graph must go to another .onnx file, but `{target}` was named for `{onnx}`.")
    if described.precision != "FP32":
        raise ValueError(
            f"{precision} must be made from an FP32 graph, but `{onnx}` is {described.precision}; name the FP32 file."
        )
    if described.attention == "plugin":
        raise ValueError(
            f"{precision} is found by running the graph, but `{onnx}` holds a TensorRT plugin that ONNX Runtime cannot "
            "run; export it with export.attention=gather."
        )
    return described


def _write(model: ModelProto, described: sidecar.OnnxSidecar, path: Path, described_by: Path) -> None:
    onnx_format.save(model, path)
    sidecar.write(dataclasses.replace(described, onnx_sha256=sha256(path)), described_by)
