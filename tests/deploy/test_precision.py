"""From an FP32 file to a lowered one: what is asked, what is written and what is refused."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
import pytest

from deploy import int8, precision, sidecar, trt
from deploy.calibration import CalibrationImages, from_folders
from deploy.export import export_onnx
from deploy.precision import KEY, PrecisionError, layer_types, lower
from deploy.ranges import StaleCalibration
from deploy.runtime import OnnxPredictor
from deploy.tensors import load
from model.checkpoint import sha256
from model.spec import Source
from tests.deploy.test_engine import needs_tensorrt
from tests.deploy.toy import node, noise, plain, save

A, B, C = (f"/{block}/linear/MatMul" for block in "abc")


@pytest.fixture
def toy(onnx: Path, tmp_path: Path) -> Path:
    return save(tmp_path / "toy.onnx", *plain(np.random.default_rng(0)), like=onnx)


@pytest.fixture
def images(toy: Path, tmp_path: Path) -> CalibrationImages:
    return of(toy, noise(tmp_path / "noise", 6), 6)


def of(onnx: Path, folder: Path, count: int) -> CalibrationImages:
    return from_folders([str(folder)], batch_size=count, batches=1, described=sidecar.require_onnx(onnx))


@pytest.mark.parametrize(
    ("attention", "kind", "limit"),
    [
        ("gridsample", "FP16", 0.002),
        ("gridsample", "INT8", 0.03),
        ("gather", "FP16", 0.002),
        pytest.param("gather", "INT8", 0.03, marks=pytest.mark.slow),
    ],
)
def test_both_forms_in_both_precisions(
    attention: str, kind: str, limit: float, checkpoint: Path, onnx: Path, pictures: Source, tmp_path: Path
) -> None:
    if attention != "gridsample":
        onnx = tmp_path / "model.onnx"
        export_onnx(checkpoint, onnx, height=64, width=64, attention=attention)
    images = of(onnx, Path(str(pictures.image_dir)), 3)
    made = lower(onnx, tmp_path / "new" / f"{kind}.onnx", kind, images=images)
    assert (made.kept, made.score) == ({}, None)
    assert 0 < made.drift < limit
    described = sidecar.require_onnx(made.onnx)
    assert described.precision == kind
    assert described.lowered is not None
    assert described.lowered["from_sha256"] == sha256(onnx)
    assert described.lowered["calibration"]["sha256"] == images.digest
    assert described.lowered["drift"] == made.drift
    graph = onnx_format.load(made.onnx).graph
    operators = Counter(each.op_type for each in graph.node)
    constants = Counter(each.data_type for each in graph.initializer)
    counted = described.lowered["counts"]
    assert [counted[name] for name in ("nodes", "q", "dq")] == [
        len(graph.node), operators["QuantizeLinear"], operators["DequantizeLinear"]
    ]  # fmt: skip
    if kind == "INT8":
        assert counted["quantised"] == made.quantised == len(int8.layers(load(onnx)))
        assert 30 < counted["int8_weights"] == counted["dq"] - counted["q"] <= made.quantised  # some share theirs
        assert constants[onnx_format.TensorProto.INT8] >= counted["int8_weights"]
    else:
        assert counted["float16_constants"] == constants[onnx_format.TensorProto.FLOAT16] > 100
        assert made.onnx.stat().st_size < 0.7 * onnx.stat().st_size
    parsed(made.onnx)
    names = [f"{kind}.onnx", f"{kind}.onnx.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names


def parsed(onnx: Path) -> None:
    """TensorRT takes it as a strongly typed network, where there is a TensorRT."""
    try:
        api = trt.load().api
    except trt.TensorRTMissing:
        return
    log = trt.message_log(api)
    network = api.Builder(log).create_network(0)
    parser = api.OnnxParser(network, log)
    assert parser.parse_from_file(str(onnx)), [parser.get_error(place).desc() for place in range(parser.num_errors)]


def test_a_layer_that_costs_too_much_is_left_out(onnx: Path, tmp_path: Path) -> None:
    """/b reads a tensor of which one feature is a thousand times the others: its scale leaves nothing of those."""
    nodes, constants = plain(np.random.default_rng(0))
    nodes[2:3] = [node("Mul", "a much", "a1", "/b/Mul"), node("MatMul", "a1 b.weight", "logits", B)]
    much = np.ones(8)
    much[0] = 1000
    constants["b.weight"] = constants["b.weight"] / much[:, None]
    toy = save(tmp_path / "toy.onnx", nodes, {**constants, "much": much}, like=onnx)
    images = of(toy, noise(tmp_path / "noise", 6), 6)
    made = lower(toy, tmp_path / "low.onnx", "INT8", images=images)
    assert made.kept.keys() == {B}
    assert "`/b` alone in INT8 moves the outputs by" in made.kept[B]
    assert (made.quantised, made.drift < 0.015) == (2, True)
    with pytest.raises(PrecisionError, match=r"INT8 must keep .*`toy\.onnx` .* move by 0\.\d+ .*\(allowed: 0\.015\)"):
        lower(toy, tmp_path / "forced.onnx", "INT8", images=images, layers_precision=[f"{B}:int8"])
    assert not [path for path in tmp_path.iterdir() if "forced" in path.name]


def test_a_score_decides(toy: Path, images: CalibrationImages, tmp_path: Path) -> None:
    seen: list[str] = []

    def score(path: Path) -> float:
        """Of whole files; it falls where /a is quantised, on which all others depend."""
        seen.append(sidecar.require_onnx(path).onnx_sha256)
        OnnxPredictor(path)
        inputs = next(each.input for each in onnx_format.load(path).graph.node if each.name == A)
        return 0.5 if any("Dequantize" in name for name in inputs) else 0.6

    made = lower(toy, tmp_path / "low.onnx", "INT8", images=images, score=score, reference=0.61, max_drop=0.02)
    assert made.score == 0.6
    assert made.kept.keys() == {A}
    assert made.quantised == 2
    lowered = sidecar.require_onnx(made.onnx).lowered
    assert lowered is not None
    assert (lowered["score"], lowered["reference"]) == (0.6, 0.61)
    assert lowered["why"] == "mAP50 is 0.6000 after 0.6100 (allowed: 0.02 less)"
    count = len(seen)
    made = lower(toy, tmp_path / "half.onnx", "FP16", images=images, score=score)
    assert (made.score, seen[count]) == (0.6, sha256(toy))  # the reference is measured where it is not given
    for kind in ("FP16", "INT8"):
        with pytest.raises(PrecisionError, match=r"mAP50 is 0\.[56]000 after 0\.7000 \(allowed: 0\.01 less\)"):
            lower(
                toy, tmp_path / "no" / "x.onnx", kind, images=images, score=score, reference=0.7, max_drop=0.01
            )  # fmt: skip
    assert not (tmp_path / "no").exists()


def test_layers_have_the_precision_that_is_asked(toy: Path, images: CalibrationImages, tmp_path: Path) -> None:
    def types(name: str, kind: str, *layers: str) -> dict[str, str]:
        made = lower(toy, tmp_path / name, kind, images=images, layers_precision=layers)
        model = load(made.onnx)
        kinds = precision.types_of(model)
        dequantised = {each.output[0] for each in model.graph.node if each.op_type == "DequantizeLinear"}
        told = {1: "fp32", 10: "fp16"}
        return {
            each.name: "int8" if dequantised & set(each.input) else told[kinds[each.input[0]]]
            for each in model.graph.node
            if each.name in (A, B, C, "/c/Sigmoid")
        }

    sigmoid = "/c/Sigmoid"
    assert types("a.onnx", "FP16", "/b/*:fp32") == {A: "fp16", B: "fp32", C: "fp16", sigmoid: "fp16"}
    assert types("b.onnx", "FP16", "*:fp32", "/[bc]/*:FP16", f"{C}:fp32") == {
        A: "fp32", B: "fp16", C: "fp32", sigmoid: "fp16"
    }  # fmt: skip
    assert types("c.onnx", "INT8", "/b/*:fp32") == {A: "int8", B: "fp32", C: "int8", sigmoid: "fp32"}
    assert types("d.onnx", "INT8", "*:fp16", f"{A}:int8", f"{B}:fp32") == {
        A: "int8", B: "fp32", C: "fp16", sigmoid: "fp16"
    }  # fmt: skip
    kept = sidecar.require_onnx(tmp_path / "d.onnx").lowered["kept"]  # type: ignore[index]
    assert kept == {B: f"{KEY} says fp32", C: f"{KEY} says fp16"}
    parsed(tmp_path / "d.onnx")
    with pytest.raises(ValueError, match=rf"of the 3 with constant weights .*`{KEY}` leaves none"):
        types("e.onnx", "INT8", "*:fp32")


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ("/d/*:fp32", "FP16", r"must name nodes of the ONNX file, but `/d/\*` matches none.* /a/linear/MatMul, /b/"),
        ("/c/Sigmoid:int8", "INT8", r"must name nodes that can be INT8 .*`/c/Sigmoid` matches none.* /a/linear/MatMul"),
        ("/c/Sigmoid", "FP16", r"must hold `pattern:dtype`.* has `/c/Sigmoid`; nodes are named like /flat/Reshape"),
        (":fp32", "FP16", r"must hold `pattern:dtype` with a dtype of fp32, fp16, int8, but has `:fp32`"),
        ("*:bf16", "FP16", r"must hold `pattern:dtype` .*`\*:bf16`"),
        ("*:int8", "FP16", r"may say int8 only where data_type is INT8, but `\*:int8` is for FP16"),
    ],
)
def test_layers_that_cannot_be_meant(
    entry: str, kind: str, message: str, toy: Path, images: CalibrationImages, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"`gen_trt_engine\.tensorrt\.layers_precision` {message}"):
        lower(toy, tmp_path / "no" / "x.onnx", kind, images=images, layers_precision=[entry])
    assert not (tmp_path / "no").exists()


def test_colons_belong_to_the_pattern_but_for_the_last(toy: Path) -> None:
    model = load(toy)
    model.graph.node[1].name = "/a::b/MatMul"
    assert layer_types(["/a::b/*: fp32"], model, "FP16") == {"/a::b/MatMul": "fp32"}
    assert layer_types(["*:fp16"], model, "FP16") == {}


def test_a_cache_serves_its_own_model_only(toy: Path, onnx: Path, images: CalibrationImages, tmp_path: Path) -> None:
    cache = tmp_path / "cal.json"
    first = lower(toy, tmp_path / "one.onnx", "INT8", images=images, cache=cache)
    assert json.loads(cache.read_text())["model_sha256"] == sha256(toy)
    second = lower(toy, tmp_path / "two.onnx", "INT8", images=images, cache=cache)
    assert first.onnx.read_bytes() == second.onnx.read_bytes()
    other = save(tmp_path / "other.onnx", *plain(np.random.default_rng(1)), like=onnx)
    for model, method, words in ((other, "minmax", "model_sha256"), (toy, "entropy", "method minmax")):
        with pytest.raises(StaleCalibration, match=words):
            lower(model, tmp_path / "no" / "x.onnx", "INT8", images=images, cache=cache, method=method)
    assert not (tmp_path / "no").exists()


def as_lowered(toy: Path, onnx: Path) -> tuple[Path, str]:
    return lower(toy, toy.with_name("low.onnx"), "FP16", images=of(toy, toy.parent / "noise", 2)).onnx, "x.onnx"


def with_plugin(toy: Path, onnx: Path) -> tuple[Path, str]:
    return save(toy.with_name("p.onnx"), *plain(np.random.default_rng(0)), like=onnx, attention="plugin"), "x.onnx"


def onto_itself(toy: Path, onnx: Path) -> tuple[Path, str]:
    return toy, "toy.onnx"


def alone(toy: Path, onnx: Path) -> tuple[Path, str]:
    sidecar.path_of(toy).unlink()
    return toy, "x.onnx"


def cut_off(toy: Path, onnx: Path) -> tuple[Path, str]:
    toy.write_bytes(toy.read_bytes()[:500])
    return toy, "x.onnx"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_lowered, r"must be made from an FP32 graph, but `.*low\.onnx` is FP16; name the FP32 file"),
        (with_plugin, r"holds a TensorRT plugin .* export it with export\.attention=gather"),
        (onto_itself, r"must go to another \.onnx file"),
        (alone, r"must come with `toy\.onnx\.json`"),
        (cut_off, r"was written for another file of that name"),
    ],
)
def test_what_cannot_be_lowered(
    make: Callable[[Path, Path], tuple[Path, str]],
    message: str,
    toy: Path,
    onnx: Path,
    images: CalibrationImages,
    tmp_path: Path,
) -> None:
    source, name = make(toy, onnx)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=message):
        lower(source, tmp_path / name, "INT8", images=images)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_graphs_that_normalise_and_select(checkpoint: Path, pictures: Source, tmp_path: Path) -> None:
    """uint8 in, chosen detections out, of fixed batch: nothing of it is in the way."""
    onnx = tmp_path / "model.onnx"
    export_onnx(checkpoint, onnx, height=64, width=64, batch_size=2, postprocess=True, input_dtype="uint8")
    made = lower(onnx, tmp_path / "half.onnx", "FP16", images=of(onnx, Path(str(pictures.image_dir)), 3))
    assert made.drift < 0.005
    graph = onnx_format.load(made.onnx).graph
    assert [each.type.tensor_type.elem_type for each in graph.input] == [onnx_format.TensorProto.UINT8]
    parsed(made.onnx)


@pytest.mark.slow
@needs_tensorrt
def test_a_mixture_of_three_types_builds(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    layers = ["*:fp16", "*/Conv:int8", "*/linear?/MatMul:int8", "*bbox_embed*:fp32"]
    images = of(onnx, Path(str(pictures.image_dir)), 3)
    made = lower(onnx, tmp_path / "mixed.onnx", "INT8", images=images, layers_precision=layers)
    library: Any = trt.load().api
    log = trt.message_log(library)
    builder = library.Builder(log)
    network = builder.create_network(0)
    assert library.OnnxParser(network, log).parse_from_file(str(made.onnx))
    found = Counter(
        network.get_layer(place).get_output(at).dtype.name
        for place in range(network.num_layers)
        for at in range(network.get_layer(place).num_outputs)
    )
    assert min(found["HALF"], found["FLOAT"], found["INT8"]) > 10
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("inputs", *[(batch, 3, 64, 64) for batch in (1, 1, 2)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors


def test_what_is_written_describes_itself(toy: Path, images: CalibrationImages, tmp_path: Path) -> None:
    made = lower(toy, tmp_path / "low.onnx", "FP16", images=images)
    before, after = (dataclasses.asdict(sidecar.require_onnx(each)) for each in (toy, made.onnx))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"onnx_sha256", "precision", "lowered"}
    assert before["precision"] == "FP32"
    assert before["lowered"] is None
