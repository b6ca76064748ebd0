"""INT8: what Q and DQ nodes say is what was meant, and what costs accuracy is left out of them."""

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
from onnx import TensorProto, numpy_helper

from deploy import int8
from deploy.drift import Verdict
from deploy.tensors import load, run, session
from tests.deploy.toy import SIDE, node, plain, save


def test_layers_are_products_with_constant_weights(onnx: Path) -> None:
    model = load(onnx)
    kinds = {each.name: each.op_type for each in model.graph.node}
    able = [each.node for each in int8.layers(model)]
    assert {kinds[name] for name in able} == {"Conv", "Gemm", "MatMul"}
    left = [name for name, kind in kinds.items() if kind in int8.KINDS and name not in able]
    assert left
    # Scores and sums of self-attention have no weights, and the first reference points no input.
    assert all("self_attn" in name or "reference_points" in name for name in left)


def test_what_the_graph_holds(onnx: Path) -> None:
    """Symmetric, weights by channel in int8 constants, no integer bias, one Q for each tensor that is read."""
    model = load(onnx)
    able = int8.layers(model)
    graph = int8.quantise(model, [each.node for each in able], {each.source: 1.0 for each in able}).graph
    constants = {each.name: each for each in graph.initializer}
    quantising = [each for each in graph.node if each.op_type == "QuantizeLinear"]
    dequantising = [each for each in graph.node if each.op_type == "DequantizeLinear"]
    assert len(quantising) == len({each.source for each in able})
    weights = [each for each in dequantising if each.input[0] in constants]
    named = {each.name: each for each in model.graph.node}
    assert len(weights) == len({named[each.node].input[1] for each in able}) == len(dequantising) - len(quantising)
    for each in (*quantising, *dequantising):
        assert constants[each.input[2]].data_type == TensorProto.INT8
        assert not numpy_helper.to_array(constants[each.input[2]]).any()
    for each in weights:
        values, (axis,) = numpy_helper.to_array(constants[each.input[0]]), [a.i for a in each.attribute]
        assert values.dtype == np.int8
        assert numpy_helper.to_array(constants[each.input[1]]).shape == (values.shape[axis],)
    named = {each.name: each for each in graph.node}
    made = {each.output[0] for each in dequantising}
    for name in (each.node for each in able):
        assert set(named[name].input[:2]) <= made
        assert all(constants[bias].data_type == TensorProto.FLOAT for bias in named[name].input[2:])


def test_numbers_are_those_of_the_definition(onnx: Path, tmp_path: Path) -> None:
    nodes, constants = plain(np.random.default_rng(4))
    model = load(save(tmp_path / "toy.onnx", nodes, constants, like=onnx))
    limits = {"pixels": 2.0, "a": 1.5}
    low = int8.quantise(model, ["/a/linear/MatMul", "/b/linear/MatMul"], limits)
    batch = np.random.default_rng(5).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    found = run(session(low), batch)

    def fake(value: np.ndarray, limit: Any) -> np.ndarray:
        scale = np.float32(limit) / np.float32(127)
        return np.clip(np.rint(value / scale), -128, 127).astype(np.float32) * scale

    weights = {name: value.astype(np.float32) for name, value in constants.items()}
    by_column = {name: fake(value, np.abs(value).max(0)) for name, value in weights.items()}
    a = np.maximum(fake(batch.reshape(3, -1), 2.0) @ by_column["a.weight"], 0)
    logits = (fake(a, 1.5) @ by_column["b.weight"]).reshape(3, 5, 3)
    boxes = (1 / (1 + np.exp(-a @ weights["c.weight"]))).reshape(3, 5, 4)  # reads `a` as it is
    np.testing.assert_allclose(found["pred_logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["pred_boxes"], boxes, atol=1e-5)


def test_blocks_are_the_modules_around() -> None:
    assert int8.block_of("/model/transformer/encoder/layers.0/self_attn/value_proj/MatMul").endswith("/self_attn")
    assert int8.block_of("MatMul_7") == "MatMul_7"


def search(
    bad: Collection[str], nodes: list[str], fixed: Collection[str] = (), noise: float = 0.0
) -> tuple[set[str], bool, int]:
    """A graph stands in as the set of its nodes in INT8; each node costs by its number, and is bad or not."""
    asked: list[frozenset[str]] = []

    def judge(model: Any) -> Verdict:
        asked.append(model)
        good = not model & set(bad)
        return Verdict(good, 0.0, None, "")

    def drift(model: Any) -> float:
        return max((10.0 if name in bad else 1.0) + noise * int(name[2:].split("/")[0]) for name in model)

    build: Any = frozenset
    found = int8.choose(build, judge, drift, nodes, fixed=fixed)
    assert set(found.kept) == set(nodes) - set(found.model)  # type: ignore[arg-type]
    return set(found.kept), found.verdict.good, len(asked)


def test_the_search_leaves_out_what_must_be_and_no_more() -> None:
    nodes = [f"/m{number}/layer/Conv" for number in range(16)]
    assert search([], nodes) == (set(), True, 1)
    for size in (1, 2, 3, 5, 9):
        for bad in itertools.islice(itertools.combinations(nodes, size), 0, None, 97):
            kept, good, asked = search(bad, nodes, noise=0.01)
            assert (kept, good) == (set(bad), True)
            assert asked <= 10  # of 16 blocks: once whole, doublings, halvings
    kept, good, _ = search(nodes[:3], nodes, fixed=[nodes[1]])
    assert not good
    assert nodes[1] not in kept
    assert search(nodes, nodes)[1] is False  # nothing would be left in INT8


def test_a_block_stays_together() -> None:
    nodes = ["/m1/a/one/MatMul", "/m1/a/two/MatMul", "/m2/b/one/MatMul"]
    assert search(nodes[:1], nodes)[0] == set(nodes[:2])


def test_the_reason_says_what_was_measured(onnx: Path, tmp_path: Path) -> None:
    model: Any = int8.choose(
        frozenset,  # type: ignore[arg-type]
        lambda each: Verdict("/m1/a/MatMul" not in each, 0.0, None, ""),  # type: ignore[operator]
        lambda each: 0.25 if "/m1/a/MatMul" in each else 0.01,  # type: ignore[operator]
        ["/m1/a/MatMul", "/m2/b/MatMul"],
    )
    assert model.kept == {"/m1/a/MatMul": "`/m1` alone in INT8 moves the outputs by 0.25: rank 1 of 2"}


def test_no_layers_are_a_copy(onnx: Path) -> None:
    model = load(onnx)
    assert int8.quantise(model, [], {}) == model
    assert onnx_format.load(onnx).graph.name == model.graph.name


def test_an_outlier_is_one_channels_own(onnx: Path, tmp_path: Path) -> None:
    """One column of weights a thousand times the others costs those nothing: scales are by channel."""
    nodes, constants = plain(np.random.default_rng(4))
    constants["b.weight"][:, 0] *= 1000
    model = load(save(tmp_path / "toy.onnx", nodes, constants, like=onnx))
    low = int8.quantise(model, ["/b/linear/MatMul"], {"a": 4.0})
    batch = np.random.default_rng(5).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    right, found = (run(session(each), batch)["pred_logits"].reshape(3, -1) for each in (model, low))
    assert np.abs(found - right)[:, 1:].max() < 0.02 * np.abs(right[:, 1:]).max()
    assert node("Add", "a b", "c", "d").name == "d"
