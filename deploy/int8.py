"""FP32 graph -> the same with convolutions and linear layers in INT8, by Q and DQ nodes. Knows graphs and ranges; which
layers stay is found by `choose`.

Symmetric, weights by channel, biases left in float32: what TensorRT builds without a calibrator.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from deploy.drift import Chosen, Verdict
from deploy.tensors import copied, typed
from model.progress import track

KINDS = ("Conv", "Gemm", "MatMul")


class Layer(NamedTuple):
    node: str
    source: str
    """The tensor that it reads."""


def layers(model: ModelProto) -> list[Layer]:
    """What can be quantised: products of a tensor with constant float32 weights."""
    weights = {each.name for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    return [
        Layer(node.name, node.input[0])
        for node in model.graph.node
        if node.op_type in KINDS and node.input[1] in weights and node.input[0] not in weights
    ]


def quantise(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, float]) -> ModelProto:
    """`nodes` of a `typed` graph in INT8. ranges: the largest absolute value of each tensor that they read."""
    if not nodes:  # no names would mean all
        return copied(model)
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(KINDS),
    }
    limits = {name: (np.float32(-limit), np.float32(limit)) for name, limit in ranges.items()}
    data = TensorsData(CalibrationMethod.MinMax, limits)
    kind = QuantType.QInt8
    with _without_remarks():
        low = QDQQuantizer(
            copied(model), True, False, kind, kind, data, list(nodes), [], list(KINDS), options
        ).quantize_model()  # fmt: skip
    # The library lets every reader of a tensor have its rounded form; those that were not meant get the tensor back.
    before = {node.name: node for node in model.graph.node if node.name not in nodes}
    for node in low.graph.node:
        if node.name in before:
            node.input[:] = before[node.name].input
    there = {each.name for each in low.graph.initializer}
    needed = {name for node in low.graph.node for name in node.input} - there
    low.graph.initializer.extend(each for each in model.graph.initializer if each.name in needed)
    return typed(low)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """The library's remarks on biases that are not constant are for another use of it, and go to the root logger."""
    root = logging.getLogger()

    def foreign(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root.addFilter(foreign)
    try:
        yield
    finally:
        root.removeFilter(foreign)


def choose(
    build: Callable[[Collection[str]], ModelProto],
    judge: Callable[[ModelProto], Verdict],
    drift: Callable[[ModelProto], float],
    nodes: Sequence[str],
    *,
    fixed: Collection[str] = (),
) -> Chosen:
    """The graph that `judge` calls good with as few blocks left in higher precision as are needed of those that, alone
    in INT8, move the outputs most. build: the graph with these nodes in INT8; fixed: always in INT8.

    Blocks are left out in that order: none, 1, 2, 4 ... until the verdict is good, then half the way back each time.
    """
    first = build(nodes)
    verdict = judge(first)
    if verdict.good:
        return Chosen(first, {}, verdict)
    ranked = _ranked(build, drift, [name for name in nodes if name not in fixed])
    most = len(ranked) if fixed else len(ranked) - 1  # something is to be in INT8
    best, bad, good = Chosen(first, {}, verdict), 0, most + 1
    count = min(1, most)
    while bad < count < good:
        kept = {name: why for block, why in ranked[:count] for name in block}
        model = build([name for name in nodes if name not in kept])
        verdict = judge(model)
        if verdict.good or good > most:
            best = Chosen(model, kept, verdict)
        if verdict.good:
            good = count
        else:
            bad = count
        count = min(2 * count, most) if good > most else (bad + good) // 2
    return best


def _ranked(
    build: Callable[[Collection[str]], ModelProto], drift: Callable[[ModelProto], float], nodes: Sequence[str]
) -> list[tuple[list[str], str]]:
    """Blocks of nodes, the worst first, each with what it does to the outputs."""
    blocks: dict[str, list[str]] = {}
    for name in nodes:
        blocks.setdefault(block_of(name), []).append(name)
    moved = {
        name: drift(build(inside)) for name, inside in track(blocks.items(), "ranking layers", len(blocks), "layers")
    }
    order = sorted(moved, key=moved.__getitem__, reverse=True)
    return [
        (blocks[name], f"`{name}` alone in INT8 moves the outputs by {moved[name]:.2g}: rank {place} of {len(order)}")
        for place, name in enumerate(order, start=1)
    ]


def block_of(node: str) -> str:
    """The module around a node's module: /model/a/b/c/Conv is a layer of /model/a/b."""
    return node.rsplit("/", 2)[0] or node
