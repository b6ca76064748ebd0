"""Looks inside ONNX graphs: the types of their tensors, and what these hold on given images. Knows ONNX Runtime; knows
no precision, no detector and no files of images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper
from onnxruntime.quantization.onnx_model import ONNXModel

READ_BYTES = 512 << 20
"""Of tensors that are read from one graph at once."""

Tensors = dict[str, np.ndarray]


class Extent(NamedTuple):
    largest: float
    """Of the absolute values, over all images."""
    elements: int
    """Of one batch."""


def load(path: Path) -> ModelProto:
    """The graph with constants as initializers, a name of its own for every node, and the type of every tensor."""
    model = onnx.load(path)
    kept = []
    constants = {each.name for each in model.graph.initializer}
    same: dict[str, str] = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type == "Constant" and [each.name for each in node.attribute] == ["value"]:
            constant = node.attribute[0].t
            constant.name = node.output[0]
            model.graph.initializer.append(constant)
            constants.add(constant.name)
            continue
        for at, name in enumerate(node.input):
            node.input[at] = same.get(name, name)
        if node.op_type == "Identity" and node.input[0] in constants:  # equal weights, which the exporter keeps once
            same[node.output[0]] = node.input[0]
            continue
        node.name = node.name or f"{node.op_type}_{place}"
        kept.append(node)
    taken: set[str] = set()
    for place, node in enumerate(kept):
        if node.name in taken:
            node.name = f"{node.name}_{place}"
        taken.add(node.name)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return typed(model)


def typed(model: ModelProto) -> ModelProto:
    """The graph in order, with the types of all tensors inferred anew. Raises onnx's errors where they contradict."""
    del model.graph.value_info[:]
    ONNXModel(model).topological_sort()
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def types_of(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor of a `typed` graph."""
    graph = model.graph
    found = {one.name: one.type.tensor_type.elem_type for part in (graph.input, graph.value_info, graph.output)
             for one in part}  # fmt: skip
    return found | {one.name: one.data_type for one in graph.initializer}


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def session(model: ModelProto, *, in_order: bool = False) -> ort.InferenceSession:
    """in_order: nodes are run in the order in which they are listed."""
    options = session_options()
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # half of the time of a small graph
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_options() -> ort.SessionOptions:
    """Quiet; and Q and DQ nodes are computed as they stand. Fused, their integer kernels saturate on a CPU without VNNI
    (mAP50 0.634 in place of 0.604 was seen)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def run(opened: ort.InferenceSession, batch: np.ndarray) -> Tensors:
    (taken,) = opened.get_inputs()
    names = [each.name for each in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {taken.name: batch}), strict=True))


def floats_of(model: ModelProto) -> list[str]:
    """The float32 tensors that a run makes, the input among them, in the graph's order."""
    types = types_of(model)
    constants = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.input] + [name for node in model.graph.node for name in node.output]
    return [name for name in names if name not in constants and types.get(name) == TensorProto.FLOAT]


def extents(model: ModelProto, names: Sequence[str], images: Iterable[np.ndarray]) -> dict[str, Extent]:
    """How large the tensors become on `images`. The maxima are taken inside the graph, each as soon as it can be, so
    that no more tensors are held than a plain run holds."""
    probe = copied(model)
    del probe.graph.output[:]
    del probe.graph.node[:]
    places = {name: place for place, name in enumerate(names)}
    for outputs, nodes in ([each.name for each in model.graph.input], []), *((x.output, [x]) for x in model.graph.node):
        probe.graph.node.extend(nodes)
        for name in filter(places.__contains__, outputs):
            inside, largest, size = f"{name}/abs", f"largest/{places[name]}", f"size/{places[name]}"
            probe.graph.node.extend([
                helper.make_node("Abs", [name], [inside], f"{inside}/node"),
                helper.make_node("ReduceMax", [inside], [largest], f"{largest}/node", keepdims=0),
                helper.make_node("Size", [name], [size], f"{size}/node"),
            ])  # fmt: skip
            probe.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
            probe.graph.output.append(helper.make_tensor_value_info(size, TensorProto.INT64, []))
    opened = session(probe, in_order=True)
    found = {name: Extent(0.0, 0) for name in names}
    for batch in images:
        seen = run(opened, batch)
        for place, name in enumerate(names):
            old, elements = found[name], int(seen[f"size/{place}"])
            # max() of a NaN depends on the order; numpy's keeps it
            found[name] = Extent(float(np.maximum(old.largest, seen[f"largest/{place}"])), max(old.elements, elements))
    return found


def read(models: Sequence[ModelProto], sizes: Mapping[str, int], batches: Iterable[np.ndarray]) -> Iterator[
    tuple[str, tuple[np.ndarray, ...]]
]:  # fmt: skip
    """Tensors of all `models`, which have the same names, on each batch: name, one array a model. sizes: elements of a
    batch of those wanted; no more than about READ_BYTES of a model's are held at once, and `batches` is gone through
    again for each portion of that size."""
    for names in _portions(sizes):
        opened = [session(_showing(model, names)) for model in models]
        for batch in batches:
            seen = [run(each, batch) for each in opened]
            for name in names:
                yield name, tuple(each.pop(name) for each in seen)


def _portions(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    portion: list[str] = []
    total = 0
    for name, elements in sizes.items():
        if portion and total + 4 * elements > READ_BYTES:
            yield portion
            portion, total = [], 0
        portion.append(name)
        total += 4 * elements
    if portion:
        yield portion


def _showing(model: ModelProto, names: Sequence[str]) -> ModelProto:
    shown = copied(model)
    del shown.graph.output[:]
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return shown
