"""FP16: what is left in float32 is what has to be, and the rest is what a GPU computes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from deploy import float16, sidecar
from deploy.calibration import CalibrationImages, from_folders
from deploy.drift import Drift, Verdict, detections
from deploy.rounding import on_cpu, rounded
from deploy.runtime import OnnxPredictor
from deploy.tensors import copied, load, run, session, types_of
from model.spec import Source
from tests.deploy.toy import SIDE, node, noise, plain, save

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
TAKES_TWO = {"Cast", "QuantizeLinear", "DequantizeLinear", "Resize"}


@pytest.fixture
def images(onnx: Path, pictures: Source) -> CalibrationImages:
    return from_folders([str(pictures.image_dir)], batch_size=3, batches=1, described=sidecar.require_onnx(onnx))


def choose(model: ModelProto, images: CalibrationImages, **more: Any) -> float16.Chosen:
    drift = Drift(model, images)

    def judge(low: ModelProto) -> Verdict:
        moved = drift(rounded(low))
        return Verdict(moved <= 0.01, moved, None, "")

    return float16.choose(model, images, judge, **{"kept": {}, **more})


def check_types(model: ModelProto) -> None:
    """No operator joins float16 and float32, as TensorRT's strong types want it."""
    types = types_of(model)
    for each in model.graph.node:
        if each.op_type not in TAKES_TWO:
            assert len({types.get(name) for name in (*each.input, *each.output)} & FLOATS) < 2, each.name


def round_trips(model: ModelProto) -> list[str]:
    """Casts up of what was float32 before it was cast down."""
    types, makers = types_of(model), {name: each for each in model.graph.node for name in each.output}
    ups = [each for each in model.graph.node if each.op_type == "Cast" and types[each.output[0]] == TensorProto.FLOAT]
    downs = [(up, makers[up.input[0]]) for up in ups if up.input[0] in makers]
    return [up.name for up, down in downs if down.op_type == "Cast" and types[down.input[0]] == TensorProto.FLOAT]


def test_a_detector_in_float16(onnx: Path, images: CalibrationImages) -> None:
    model = load(onnx)
    found = choose(model, images)
    assert found.kept == {}
    assert 0 < found.verdict.drift < 2e-3
    types = types_of(found.model)
    assert [each.type.tensor_type.elem_type for each in (*found.model.graph.input, *found.model.graph.output)] == [
        1
    ] * 3
    assert [name for name, kind in types.items() if kind == TensorProto.FLOAT] == [
        "inputs",
        "pred_logits",
        "pred_boxes",
    ]
    check_types(found.model)


def test_whatever_is_kept_the_types_fit(onnx: Path, images: CalibrationImages) -> None:
    model, drift = load(onnx), None
    names = [each.name for each in model.graph.node]
    rng = np.random.default_rng(3)
    drift = Drift(model, images.first(2))
    for share in (0.2, 0.7):
        low = float16.cast(model, [name for name in names if rng.random() < share])
        check_types(low)
        assert round_trips(low) == []
        assert drift(rounded(low)) < 5e-3
    assert drift(float16.cast(model, names)) == 0  # all kept: nothing is rounded anywhere, weights included


def test_an_overflow_is_left_in_float32(onnx: Path, images: CalibrationImages) -> None:
    """One layer's weights times 2^20, the next one's divided by it: the same detections, of activations over 65504."""
    model, factor = load(onnx), np.float32(2.0**20)
    constants = {each.name: each for each in model.graph.initializer}
    touched = {}
    for each in model.graph.node:
        if "decoder/layers.0/linear" in each.name and each.op_type in ("MatMul", "Add"):
            (name,) = [name for name in each.input if name in constants]
            if "linear1" in each.name or each.op_type == "MatMul":
                value = numpy_helper.to_array(constants[name]) * (factor if "linear1" in each.name else 1 / factor)
                constants[name].CopyFrom(numpy_helper.from_array(value, name))
                touched[each.name] = each
    assert len(touched) == 3
    drift = Drift(load(onnx), images)
    assert drift(model) < 1e-6
    assert not drift(rounded(float16.cast(model, []))) < 0.01
    found = choose(model, images)
    assert touched.keys() <= found.kept.keys()
    assert len(found.kept) < 10
    assert all("float16 ends at 65504" in why for why in found.kept.values())
    assert found.verdict.drift < 2e-3
    assert not np.isinf(drift(rounded(found.model)))


def ill(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    """Logits of log(1.0001 - sigmoid(x + 9)): in float16 1.0001 is 1, and so is the sigmoid."""
    nodes, constants = plain(rng)
    at = next(place for place, each in enumerate(nodes) if each.name == "/b/linear/MatMul")
    nodes[at : at + 1] = [
        node("MatMul", "a b.weight", "b0", "/b/linear/MatMul"),
        node("Add", "b0 nine", "b1", "/b/Add"),
        node("Sigmoid", "b1", "b2", "/b/Sigmoid"),
        node("Sub", "one b2", "b3", "/b/Sub"),
        node("Log", "b3", "b4", "/b/Log"),
        node("Add", "b4 nine", "logits", "/b/Add_1"),
    ]
    return nodes, {**constants, "nine": 9.0, "one": 1.0001}


def test_what_brings_in_the_error_is_found(onnx: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "toy.onnx", *ill(np.random.default_rng(1)), like=onnx)
    described = sidecar.require_onnx(path)
    images = from_folders([str(noise(tmp_path / "noise", 8))], batch_size=8, batches=1, described=described)
    model = load(path)
    assert Drift(model, images)(rounded(float16.cast(model, []))) > 0.1
    found = choose(model, images)
    assert found.verdict.good
    assert {"/b/Log", "/b/Sub", "/b/Sigmoid"} <= found.kept.keys() <= {each.name for each in model.graph.node}
    assert not {"/a/linear/MatMul", "/c/linear/MatMul", "/c/Sigmoid"} & found.kept.keys()
    assert "the error of its result is" in found.kept["/b/Sub"]
    stuck = choose(model, images, fixed=["/b/Sub"])  # somebody wants it so
    assert not stuck.verdict.good
    assert "/b/Sub" not in stuck.kept


def test_rounding_is_numpys(onnx: Path, tmp_path: Path) -> None:
    nodes, constants = plain(np.random.default_rng(2))
    path = save(tmp_path / "toy.onnx", nodes, constants, like=onnx)
    low = float16.cast(load(path), [])
    batch = np.random.default_rng(5).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    found = run(session(rounded(low)), batch)

    def half(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float16).astype(np.float32)

    weights = {name: half(value) for name, value in constants.items()}
    a = np.maximum(half(half(batch.reshape(3, -1)) @ weights["a.weight"]), 0)
    logits = half(a @ weights["b.weight"]).reshape(3, 5, 3)
    boxes = half(1 / (1 + np.exp(-half(a @ weights["c.weight"])))).reshape(3, 5, 4)
    # a sum in another order may round the other way, once in a while
    np.testing.assert_allclose(found["pred_logits"], logits, rtol=2**-10, atol=2**-12)
    np.testing.assert_allclose(found["pred_boxes"], boxes, rtol=2**-10)
    assert (found["pred_logits"] == logits).mean() > 0.9


def test_a_cpu_shows_the_overflow_of_a_gpu(onnx: Path, tmp_path: Path) -> None:
    nodes, constants = plain(np.random.default_rng(2))
    nodes[2:3] = [
        node("MatMul", "a b.weight", "b0", "/b/linear/MatMul"),
        node("Mul", "b0 much", "b1", "/b/Mul"),
        node("Mul", "b1 little", "logits", "/b/Mul_1"),
    ]
    path = save(tmp_path / "toy.onnx", nodes, {**constants, "much": 2.0**14, "little": 2.0**-14}, like=onnx)
    half = tmp_path / "half.onnx"
    onnx_format.save(float16.cast(load(path), []), half)
    batch = 30 * np.ones((1, 3, SIDE, SIDE), np.float32)
    taken = ort.InferenceSession(str(half), providers=["CPUExecutionProvider"]).run(None, {"inputs": batch})
    assert np.isfinite(taken[0]).all()  # what ONNX Runtime makes of it: nothing is rounded between two operators
    assert not OnnxPredictor(half)(__import__("torch").from_numpy(batch)).logits.isfinite().all()
    assert on_cpu(path.read_bytes()) is None


def test_the_distance_of_detections_knows_no_order() -> None:
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(2, 6, 3)), rng.random((2, 6, 4))
    order = rng.permutation(6)
    one, sure = detections({"pred_logits": logits, "pred_boxes": boxes}, (10, 20))
    other, _ = detections({"pred_logits": logits[:, order], "pred_boxes": boxes[:, order]}, (10, 20))
    np.testing.assert_array_equal(one[:, order], other)
    np.testing.assert_allclose(sure, 1 / (1 + np.exp(-logits.max(-1))))
    chosen = {"scores": np.full((1, 1), 0.5), "labels": np.full((1, 1), 7), "boxes": np.array([[[2.0, 1, 20, 10]]])}
    rows, sure = detections(chosen, (10, 20))
    np.testing.assert_allclose(rows, [[[0.5, 7, 0.1, 0.1, 1.0, 1.0]]])
    assert sure == 0.5


def test_drift_is_the_distance_of_what_is_seen(onnx: Path, tmp_path: Path) -> None:
    nodes, constants = plain(np.random.default_rng(2))
    path = save(tmp_path / "toy.onnx", nodes, constants, like=onnx)
    described = sidecar.require_onnx(path)
    images = from_folders([str(noise(tmp_path / "noise", 2))], batch_size=1, batches=2, described=described)
    model = load(path)
    drift = Drift(model, images)
    assert drift(copied(model)) == 0
    changed = copied(model)
    changed.graph.node.append(node("Add", "pred_boxes tenth", "moved", "/moved"))
    changed.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "tenth"))
    changed.graph.output[1].name = "moved"
    for each in changed.graph.node:
        if each.name in ("/boxes/Reshape", "/moved"):
            each.output[0] = {"/boxes/Reshape": "before", "/moved": "pred_boxes"}[each.name]
        if each.name == "/moved":
            each.input[0] = "before"
    changed.graph.output[1].name = "pred_boxes"
    assert drift(changed) == pytest.approx(0.1, abs=1e-3)
    constants["b.weight"] = np.full_like(constants["b.weight"], np.nan)
    assert drift(load(save(tmp_path / "nan.onnx", nodes, constants, like=onnx))) == np.inf
