"""What ONNX Runtime must be given on a CPU to compute what a lowered graph says. Knows types of tensors; knows no
detector.

On a CPU it computes float16 in float32 and leaves the rounding between two operators out, and with it every overflow,
so that the file would score what no GPU gives it.
"""

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.tensors import copied, typed, types_of


def on_cpu(content: bytes) -> bytes | None:
    """What to open in place of a file of this content: its `rounded` form where it holds float16, None where it is
    itself. A damaged file is left to who opens it."""
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        return None
    halves = (each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT16)
    if next(halves, None) is None:
        return None
    exact: bytes = rounded(typed(model)).SerializeToString()
    return exact


def rounded(model: ModelProto) -> ModelProto:
    """A float32 graph of the same tensor names whose tensors hold what those of `model`'s float16 tensors would: each
    operator computes in float32 and its result is rounded. A graph without float16 comes back as it is."""
    types = types_of(model)
    if TensorProto.FLOAT16 not in types.values():
        return model
    full = copied(model)
    for constant in full.graph.initializer:
        if constant.data_type == TensorProto.FLOAT16:
            constant.CopyFrom(_as_float32(constant))
    nodes = []
    for node in full.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_as_float32(attribute.t))
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for place, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                node.output[place] = f"{name}/exact"
                nodes.append(_cast(f"{name}/exact", f"{name}/half", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}/half", name, TensorProto.FLOAT))
    del full.graph.node[:]
    full.graph.node.extend(nodes)
    return typed(full)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/cast", to=to)


def _as_float32(constant: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(constant).astype(np.float32), constant.name)
