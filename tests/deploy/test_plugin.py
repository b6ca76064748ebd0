"""The meaning of TensorRT's plugin node, which is written in standard operators, against our own sampling."""

from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploy import plugin
from model.network.attention import gridsample
from model.network.levels import Levels

NAMES = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
TYPES = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT)
RANKS = (4, 2, 1, 6, 5)


def one_node(path: Path, opset: int) -> Path:
    """A graph of nothing but the node, every size open."""
    node = helper.make_node(
        plugin.OP, NAMES, ["output"], domain=plugin.DOMAIN, plugin_version="2", plugin_namespace=""
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, kind, [None] * rank)
        for name, kind, rank in zip(NAMES, TYPES, RANKS, strict=True)
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("output", 1, [None] * 4)])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(plugin.DOMAIN, 1)]
    onnx_format.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.fixture(scope="module", params=[16, 17, 20])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    content = plugin.runnable(one_node(tmp_path_factory.mktemp("node") / "one.onnx", request.param).read_bytes())
    assert content is not None
    return ort.InferenceSession(content)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    numbers=st.tuples(*[st.integers(1, 3)] * 5),
    seed=st.integers(0, 99),
)
def test_meaning(
    session: ort.InferenceSession,
    sizes: list[tuple[int, int]],
    numbers: tuple[int, int, int, int, int],
    seed: int,
) -> None:
    batch, queries, heads, points, features = numbers
    levels, generator = Levels.of(tuple(sizes)), torch.Generator().manual_seed(seed)
    shape = (batch, queries, heads, len(sizes), points)
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, features, generator=generator)
    location = torch.rand(*shape, 2, generator=generator) * 2 - 0.5
    location = torch.where(torch.rand(location.shape, generator=generator) < 0.2, location.round(), location)
    weight = torch.rand(shape, generator=generator)
    given = (value, torch.tensor(sizes).int(), torch.tensor(levels.starts).int(), location, weight)
    (found,) = session.run(None, {name: one.numpy() for name, one in zip(NAMES, given, strict=True)})
    assert found.shape == (batch, queries, heads, features)
    expected = gridsample(value, levels, location, weight).view(found.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_other_files_are_opened_as_they_are(onnx: Path, tmp_path: Path) -> None:
    assert plugin.runnable(onnx.read_bytes()) is None
    assert plugin.runnable(one_node(tmp_path / "whole.onnx", 17).read_bytes()[:-30]) is None
