"""FP32 graph -> the same in float16 with float32 inputs and outputs. Knows graphs; which nodes stay is its caller's
choice, or found by `choose`."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from deploy.calibration import CalibrationImages
from deploy.drift import Chosen, Verdict
from deploy.rounding import rounded
from deploy.tensors import copied, extents, floats_of, read, typed

LARGEST = 65504.0
NEAR = LARGEST / 2
"""What becomes larger on calibration images may overflow on others."""
STEP = 2.0**-11
"""Relative rounding error of float16."""
GAIN = 4.0
"""A node that makes this much more of the error of its inputs is held responsible."""
ROUNDS = 12


def cast(model: ModelProto, keep: Collection[str]) -> ModelProto:
    """The `typed` graph in float16. Nodes named in `keep` compute in float32 and hand float32 to each other; inputs and
    outputs of the graph keep their types."""
    low = copied(model)
    _own_constants(low, keep)
    low = convert_float_to_float16(low, keep_io_types=True, op_block_list=[], node_block_list=list(keep))
    _drop_round_trips(low)
    low = typed(low)
    onnx.checker.check_model(low)
    return low


def choose(
    model: ModelProto,
    images: CalibrationImages,
    judge: Callable[[ModelProto], Verdict],
    *,
    kept: Mapping[str, str],
    fixed: Collection[str] = (),
) -> Chosen:
    """The cast that `judge` calls good, with as few nodes left in float32 as its comparison with `model` finds.

    First go those that touch what comes near the end of float16's range on any image; then, while the verdict is bad,
    those that bring in most of the error on one of them, with what feeds them. kept: to be kept in any case, with the
    reason; fixed: never to be kept.
    """
    reasons = dict(kept)
    names = floats_of(model)
    seen = extents(model, names, images.one_by_one())
    for name, why in _out_of_range(model, {name: each.largest for name, each in seen.items()}).items():
        if name not in fixed:
            reasons.setdefault(name, why)
    sizes = {name: seen[name].elements for name in names}
    for _ in range(ROUNDS):
        low = cast(model, reasons)
        verdict = judge(low)
        if verdict.good:
            break
        found = _culprits(model, low, sizes, images, {*reasons, *fixed})
        if not found:
            break
        reasons |= found
    return Chosen(low, reasons, verdict)


def _out_of_range(model: ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes that read or write what is too large, to the reason."""
    constants = {each.name: _largest(each) for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    size = {**largest, **constants}
    found = {}
    for node in model.graph.node:
        worst = max((*node.input, *node.output), key=lambda name: _rank(size.get(name, 0.0)), default="")
        if not size.get(worst, 0.0) <= NEAR:
            found[node.name] = f"`{worst}` reaches {size[worst]:.3g}, and float16 ends at {LARGEST:.0f}"
    return found


def _culprits(
    model: ModelProto, low: ModelProto, sizes: Mapping[str, int], images: CalibrationImages, settled: Collection[str]
) -> dict[str, str]:
    """The nodes whose results are much worse than their inputs, or the worst of all, with the unary nodes before them:
    node to reason."""
    error: dict[str, float] = {}
    other = rounded(low)
    there = {name for node in other.graph.node for name in node.output} | {each.name for each in other.graph.input}
    wanted = {name: size for name, size in sizes.items() if name in there}
    for name, (right, wrong) in read([model, other], wanted, images.first(1)):
        error[name] = max(error.get(name, 0.0), _relative(right, wrong))
    gains = {}
    for node in model.graph.node:
        after = max((error.get(name, 0.0) for name in node.output), default=0.0)
        before = max((error.get(name, 0.0) for name in node.input), default=0.0)
        if node.name not in settled and after > STEP and not np.isinf(before):
            gains[node.name] = after / max(before, STEP)
    named = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    matrices = {each.name for each in model.graph.initializer if sum(side > 1 for side in each.dims) > 1}
    chosen = [name for name, gain in gains.items() if gain > GAIN] or sorted(gains, key=gains.__getitem__)[-8:]
    found: dict[str, str] = {}
    for name in chosen:
        why = f"in float16 the error of its result is {gains[name]:.3g} times that of its inputs"
        for node in _with_sources(named[name], makers, matrices):
            if node.name not in settled:
                found.setdefault(node.name, why if node.name == name else f"feeds `{name}`: {why}")
    return found


def _with_sources(node: NodeProto, makers: Mapping[str, NodeProto], matrices: set[str]) -> list[NodeProto]:
    """A node, and what computes its inputs, up to nodes that join two tensors or hold a matrix of weights."""
    found, waiting = [node], [makers[name] for name in node.input if name in makers]
    while waiting:
        one = waiting.pop()
        found.append(one)
        inputs = [name for name in one.input if name in makers]
        if len(inputs) == 1 and not matrices.intersection(one.input):
            waiting.append(makers[inputs[0]])
    return found


def _relative(right: np.ndarray, wrong: np.ndarray) -> float:
    """Root mean square of the difference relative to that of `right`; infinite where only `wrong` is no number."""
    sound = np.isfinite(right)
    if not np.isfinite(wrong[sound]).all():
        return np.inf
    scale = float(np.square(right[sound], dtype=np.float64).sum())
    return float(np.sqrt(np.square(right[sound] - wrong[sound], dtype=np.float64).sum() / scale)) if scale else 0.0


def _own_constants(model: ModelProto, keep: Collection[str]) -> None:
    """Nodes that are kept get float32 constants of their own where they share them with one that is not."""
    shared = {name for node in model.graph.node if node.name not in keep for name in node.input}
    floats = {each.name: each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    copies = {}
    for node in model.graph.node:
        if node.name in keep:
            for place, name in enumerate(node.input):
                if name in floats and name in shared:
                    copies[name] = node.input[place] = f"{name}/float32"
    for name, new in copies.items():
        constant = TensorProto()
        constant.CopyFrom(floats[name])
        constant.name = new
        model.graph.initializer.append(constant)


def _drop_round_trips(model: ModelProto) -> None:
    """Takes out the converter's casts down and up again between two nodes that both compute in float32."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    ends = {each.name for each in graph.output}
    renamed: dict[str, str] = {}
    for up in graph.node:
        down = makers.get(up.input[0]) if _is_cast(up, TensorProto.FLOAT) else None
        if down is None or not (down.name.endswith("_cast_to_fp16_node") or down.name.startswith("graph_input_cast")):
            continue
        source, target = down.input[0], up.output[0]
        if target not in ends:
            renamed[target] = source
        elif source in makers and source not in renamed:
            renamed[source] = target
        else:
            continue
        up.output[0] = f"{target}/unused"
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                while name in renamed:
                    name = renamed[name]
                names[place] = name
    while True:
        used = {name for node in graph.node for name in node.input} | ends
        left = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
        if len(left) == len(graph.node):
            return
        del graph.node[:]
        graph.node.extend(left)


def _is_cast(node: NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == to for each in node.attribute)


def _largest(constant: TensorProto) -> float:
    values = numpy_helper.to_array(constant)
    return float(np.abs(values).max()) if values.size else 0.0


def _rank(value: float) -> float:
    return np.inf if np.isnan(value) else value
