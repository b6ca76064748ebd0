"""Detectors of a few nodes, whose right precision can be worked out by hand."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
from onnx import NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from deploy import sidecar
from model.checkpoint import sha256

SIDE, QUERIES, CLASSES = 4, 5, 3
PIXELS = 3 * SIDE * SIDE


def save(path: Path, nodes: Sequence[NodeProto], constants: Mapping[str, Any], like: Path, **more: Any) -> Path:
    """A graph of `nodes` from `pixels` (B, 48), the flat input, to `logits` (B, 15) and `boxes` (B, 20); its sidecar is
    that of `like` but for what is said in `more`."""
    wide = {"flat": [0, PIXELS], "to_logits": [0, QUERIES, CLASSES], "to_boxes": [0, QUERIES, 4]}
    whole = [
        helper.make_node("Reshape", ["inputs", "flat"], ["pixels"], "/flat/Reshape"),
        *nodes,
        helper.make_node("Reshape", ["logits", "to_logits"], ["pred_logits"], "/logits/Reshape"),
        helper.make_node("Reshape", ["boxes", "to_boxes"], ["pred_boxes"], "/boxes/Reshape"),
    ]
    arrays = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    arrays |= {name: np.array(value, np.int64) for name, value in wide.items()}
    graph = helper.make_graph(
        whole,
        "toy",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("pred_logits", TensorProto.FLOAT, ["batch", QUERIES, CLASSES]),
            helper.make_tensor_value_info("pred_boxes", TensorProto.FLOAT, ["batch", QUERIES, 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx_format.checker.check_model(model, full_check=True)
    onnx_format.save(model, path)
    described = sidecar.require_onnx(like)
    described = dataclasses.replace(
        described, onnx_sha256=sha256(path), input={**described.input, "height": SIDE, "width": SIDE}, **more
    )
    sidecar.write(described, sidecar.path_of(path))
    return path


def node(kind: str, inputs: str, output: str, name: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name, **attributes)


def plain(rng: np.random.Generator) -> tuple[list[NodeProto], dict[str, Any]]:
    """Three blocks: /a makes 8 features, /b logits of them and /c boxes."""
    nodes = [
        node("MatMul", "pixels a.weight", "a0", "/a/linear/MatMul"),
        node("Relu", "a0", "a", "/a/Relu"),
        node("MatMul", "a b.weight", "logits", "/b/linear/MatMul"),
        node("MatMul", "a c.weight", "c0", "/c/linear/MatMul"),
        node("Sigmoid", "c0", "boxes", "/c/Sigmoid"),
    ]
    constants = {
        "a.weight": rng.normal(0, 0.2, (PIXELS, 8)),
        "b.weight": rng.normal(0, 0.5, (8, QUERIES * CLASSES)),
        "c.weight": rng.normal(0, 0.5, (8, QUERIES * 4)),
    }
    return nodes, constants


def noise(folder: Path, count: int) -> Path:
    """`count` images of random pixels of the toy's size."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder
