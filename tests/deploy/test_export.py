import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime as ort
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import deepstream, parity, sidecar, trt
from deploy.engine import build_engine
from deploy.export import export_action, export_onnx
from deploy.parity import ParityError, compare
from deploy.runtime import SELECTED, OnnxPredictor, Outputs
from deploy.spec import ExportSpec
from model.checkpoint import load_model, read_checkpoint, sha256
from model.evaluate import torch_predictor
from model.network.detr import Prediction
from model.network.postprocess import top_k
from model.spec import AugmentationSpec, ExperimentSpec


def noise(batch: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def onnxruntime_alone(path: Path, inputs: torch.Tensor) -> Prediction:
    session = ort.InferenceSession(str(path))
    return Prediction(*map(torch.from_numpy, session.run(["pred_logits", "pred_boxes"], {"inputs": inputs.numpy()})))


@pytest.mark.parametrize("batch", [1, 3])
def test_graph_agrees_with_pytorch_for_any_batch(checkpoint: Path, onnx: Path, batch: int) -> None:
    model, _ = load_model(checkpoint)
    with torch.no_grad():
        expected = model(noise(batch), None).final
    found = onnxruntime_alone(onnx, noise(batch))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)
    assert float(expected.boxes.std(1).max()) > 0.01, "the queries of this model must differ, or nothing is shown"


@pytest.mark.parametrize(
    "changes",
    [{"with_box_refine": False}, {"aux_loss": False}, {"num_feature_levels": 1, "return_interm_indices": (3,)}],
    ids=str,
)
def test_other_architectures_and_oblong_inputs(
    other_checkpoint: Callable[..., Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    made = other_checkpoint(**changes)
    export_onnx(made, tmp_path / "other.onnx", height=64, width=96)
    model, _ = load_model(made)
    given = noise(2, 64, 96)
    found = parity.raw(torch_predictor(model)(given, None), OnnxPredictor(tmp_path / "other.onnx").run(given))
    assert max(found.values()) < 1e-4


def test_graph_is_standard_and_dynamic_in_its_batch_only(onnx: Path) -> None:
    graph = onnx_format.load(onnx)
    onnx_format.checker.check_model(graph, full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]

    def shape(value: onnx_format.ValueInfoProto) -> list[object]:
        return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]

    assert {each.name: shape(each) for each in graph.graph.input} == {"inputs": ["batch", 3, 64, 64]}
    assert {each.name: shape(each) for each in graph.graph.output} == {
        "pred_logits": ["batch", 100, 4],
        "pred_boxes": ["batch", 100, 4],
    }
    for each in (*graph.graph.input, *graph.graph.output):
        assert each.type.tensor_type.elem_type == onnx_format.TensorProto.FLOAT


def test_fixed_batch_is_in_the_graph_and_serves_any_number_of_images(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    export_onnx(checkpoint, path, height=64, width=64, batch_size=4)
    predictor = OnnxPredictor(path)
    assert predictor.batch_range == (4, 4)
    model, _ = load_model(checkpoint)
    for batch in (1, 4, 6):
        found = parity.raw(torch_predictor(model)(noise(batch), None), predictor.run(noise(batch)))
        assert max(found.values()) < 1e-4


def test_same_checkpoint_same_bytes(checkpoint: Path, onnx: Path, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "model.onnx", height=64, width=64)
    assert (tmp_path / "model.onnx").read_bytes() == onnx.read_bytes()


def test_sidecar_says_what_running_the_graph_needs(checkpoint: Path, onnx: Path) -> None:
    found = json.loads(onnx.with_name("model.onnx.json").read_text())
    assert found["format_version"] == 1
    assert found["classes"] == {"1": "cat", "3": "dog"}
    assert found["num_classes"] == 4
    assert found["model"]["num_select"] == 50
    assert found["onnx_sha256"] == sha256(onnx)
    assert found["checkpoint_sha256"] == sha256(checkpoint)
    assert (found["opset"], found["attention"]) == (17, "gridsample")
    assert found["thresholds"] == {"num_select": 50, "confidence": 0.5}
    assert (found["input"]["dtype"], found["input"]["values"]) == ("float32", "(pixel / 255 - mean) / std")
    assert found["input"]["mean"] == [0.5, 0.4, 0.3]
    assert found["input"]["std"] == [0.2, 0.3, 0.25]
    assert (found["input"]["height"], found["input"]["width"], found["input"]["batch"]) == (64, 64, -1)
    assert found["lineage"]["metrics"] == {"val_mAP50": 0.25}
    assert max(found["parity"]["logits"], found["parity"]["boxes"]) <= 1e-4
    described = sidecar.require_onnx(onnx).as_checkpoint(onnx)
    source = read_checkpoint(checkpoint)
    assert (described.spec.model, described.classes) == (source.spec.model, source.classes)


def test_sidecar_of_another_file_is_refused(onnx: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(onnx.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"must come with `model\.onnx\.json`"):
        sidecar.require_onnx(other)
    sidecar.path_of(other).write_text(sidecar.path_of(onnx).read_text())
    with pytest.raises(ValueError, match="was written for another file"):
        sidecar.read_onnx(other)
    sidecar.path_of(other).write_text(sidecar.path_of(onnx).read_text()[:100])
    with pytest.raises(ValueError, match="complete description"):
        sidecar.read_onnx(other)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"opset": 15}, "`export.opset_version` must be 16 to 20, but is 15"),
        ({"batch_size": 0}, "`export.batch_size` must be at least 1, or -1"),
        ({"attention": "deform"}, "`export.attention` must be auto or one of gridsample, gather, plugin"),
        ({"input_dtype": "int8"}, "`export.input_dtype` must be one of float32, uint8"),
    ],
)
def test_what_cannot_be_exported(checkpoint: Path, tmp_path: Path, request_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(checkpoint, tmp_path / "model.onnx", height=64, width=64, **request_)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_replaced_only_on_request(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"must not exist yet.*export.overwrite=true"):
        export_onnx(checkpoint, path, height=64, width=64)
    assert path.read_text() == "precious"
    export_onnx(checkpoint, path, height=64, width=64, overwrite=True)
    assert sidecar.require_onnx(path).size == (64, 64)


def test_nothing_is_written_when_the_graph_disagrees(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="must agree with PyTorch to 0"):
        export_onnx(checkpoint, tmp_path / "model.onnx", height=64, width=64, nvdsinfer=True)
    assert not list(tmp_path.iterdir())


def test_the_wrong_checkpoint_and_not_a_number_fail_parity(
    onnx: Path, other_checkpoint: Callable[..., Path], spec: ExperimentSpec
) -> None:
    model, _ = load_model(other_checkpoint(with_box_refine=False))
    sizes, photographs = spec.dataset.augmentation, parity.photographs(64, 64)
    with pytest.raises(ParityError, match=r"`model.onnx` must agree with PyTorch to 0.0001, but on a batch of 1 its"):
        compare(torch_predictor(model), OnnxPredictor(onnx), photographs, sizes, 50, name="model.onnx")

    def silent(pixels: torch.Tensor, mask: torch.Tensor | None) -> Prediction:
        return Prediction(torch.full((len(pixels), 100, 4), np.nan), torch.zeros(len(pixels), 100, 4))

    with pytest.raises(ParityError):
        compare(silent, OnnxPredictor(onnx), photographs, sizes, 50, name="silent")


FORMS = [
    {"attention": "gather"},
    {"attention": "plugin"},
    {"attention": "gather", "postprocess": True, "input_dtype": "uint8"},
    {"attention": "gridsample", "postprocess": True, "batch_size": 3},
]


@pytest.fixture(scope="session", params=FORMS, ids=lambda form: "-".join(map(str, form.values())))
def formed(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("form") / "model.onnx"
    export_onnx(tiny_checkpoint, path, height=64, width=96, **request.param)
    return path


@pytest.mark.parametrize("images", [1, 5])
def test_every_form_says_what_pytorch_says(formed: Path, checkpoint: Path, images: int) -> None:
    """Plain arithmetic in place of our own normalisation and selection."""
    model, source = load_model(checkpoint)
    pixels = torch.randint(0, 256, (images, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = (
        torch.tensor(each).view(3, 1, 1)
        for each in (source.spec.dataset.augmentation.input_mean, source.spec.dataset.augmentation.input_std)
    )
    normal = (pixels / 255 - mean) / std
    expected = torch_predictor(model)(normal, None)
    graph = OnnxPredictor(formed)
    found = graph.run(pixels if graph.dtype == torch.uint8 else normal)
    if graph.outputs != SELECTED:
        torch.testing.assert_close(found["pred_logits"], expected.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(found["pred_boxes"], expected.boxes, rtol=0, atol=1e-4)
        return
    assert found["scores"].shape == (images, 50)
    assert found["labels"].dtype == torch.int64
    best = top_k(expected, torch.tensor([[64, 96]] * images), 50)
    torch.testing.assert_close(found["scores"], best.scores, rtol=0, atol=1e-5)
    assert (found["labels"] == best.labels).float().mean() > 0.95  # those that tie may be swapped
    assert ((found["boxes"] - best.boxes).abs().amax(-1) < 0.01).float().mean() > 0.95


def test_every_form_holds_what_its_name_says(formed: Path) -> None:
    graph, described = onnx_format.load(formed), sidecar.require_onnx(formed)
    onnx_format.checker.check_model(graph, full_check=True)
    kinds = {node.op_type for node in graph.graph.node}
    names = {"gridsample": "GridSample", "plugin": "MultiscaleDeformableAttnPlugin_TRT"}
    assert kinds & set(names.values()) == {names[form] for form in names if form == described.attention}
    domains = {"", "trt.plugins"} if described.attention == "plugin" else {""}
    assert {each.domain for each in graph.opset_import} == domains
    types = {1: "float32", 2: "uint8"}
    (taken,) = graph.graph.input
    assert types[taken.type.tensor_type.elem_type] == described.input["dtype"]
    assert [each.name for each in graph.graph.output] == list(described.outputs)
    assert set(described.parity) >= {"scores" if "scores" in described.outputs else "logits", "boxes"}
    shapes = [[axis.dim_value for axis in each.type.tensor_type.shape.dim][1:] for each in graph.graph.output]
    assert shapes == ([[50], [50], [50, 4]] if "scores" in described.outputs else [[100, 4], [100, 4]])


def test_the_plugin_nodes_are_as_documented(formed: Path) -> None:
    graph = onnx_format.load(formed).graph
    nodes = [node for node in graph.node if node.op_type == "MultiscaleDeformableAttnPlugin_TRT"]
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    assert len(nodes) == (3 if sidecar.require_onnx(formed).attention == "plugin" else 0)  # 1 encoder, 2 decoder layers
    for node in nodes:
        assert {each.name: each.s for each in node.attribute} == {"plugin_version": b"2", "plugin_namespace": b""}
        assert len(node.input) == 5
        sizes, starts = (constants[name] for name in node.input[1:3])
        assert sizes.data_type == starts.data_type == onnx_format.TensorProto.INT32
        assert onnx_format.numpy_helper.to_array(sizes).tolist() == [[8, 12], [4, 6], [2, 3]]
        assert onnx_format.numpy_helper.to_array(starts).tolist() == [0, 96, 120]


@pytest.mark.slow
def test_tensorrt_builds_every_form_that_it_can_parse(formed: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="an engine is built where TensorRT is installed")
    if sidecar.require_onnx(formed).attention == "plugin" and trt.load().api is library:
        with pytest.raises(ValueError, match="Plugin not found"):  # TensorRT-RTX comes without plugins
            build_engine(formed, tmp_path / "model.engine")
        assert not list(tmp_path.iterdir())
        return
    assert build_engine(formed, tmp_path / "model.engine", max_batch=3).bytes > 1e6


def detections(expected: Prediction) -> Outputs:
    found = top_k(expected, torch.tensor([[64, 96]]), 3)
    return {name: value.clone() for name, value in zip(SELECTED, found, strict=True)}


def test_detections_are_held_against_the_prediction_they_come_from() -> None:
    logits = torch.tensor([[[2.0, -1.0], [2.0, 0.5], [-3.0, -4.0]]])
    boxes = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = Prediction(logits, boxes)

    def off(change: Callable[[Outputs], None]) -> parity.Differences:
        found = detections(expected)
        change(found)
        return parity.selected(expected, found, (64, 96), 3)

    def swap_ties(found: Outputs) -> None:
        found["boxes"][0, [0, 1]] = found["boxes"][0, [1, 0]]

    assert max(off(lambda found: None).values()) < 1e-6
    assert max(off(swap_ties).values()) < 1e-6
    assert off(lambda found: found["boxes"][0, 2].add_(9.6))["boxes"] == pytest.approx(0.15, abs=0.01)
    assert off(lambda found: found["labels"][0, 2].fill_(0))["boxes"] > 0.1
    assert off(lambda found: found["labels"][0, 2].fill_(7))["boxes"] == np.inf
    assert off(lambda found: found["scores"][0, 1].sub_(0.2))["scores"] == pytest.approx(0.2)
    assert not off(lambda found: found["boxes"].fill_(np.nan))["boxes"] <= 1


def test_deepstream_gets_labels_and_the_real_normalisation(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ExportSpec(
        checkpoint=str(checkpoint),
        onnx_file=str(tmp_path / "m.onnx"),
        input_height=64,
        input_width=96,
        serialize_nvdsinfer=True,
    )
    (tmp_path / "labels.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"labels\.txt` does; name another file, or set export\.overwrite=true"):
        export_action(ExperimentSpec(), wanted)
    (tmp_path / "labels.txt").unlink()
    export_action(ExperimentSpec(), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "labels.txt", "m.onnx", "m.onnx.json", "nvdsinfer_config.yaml"
    ]  # fmt: skip
    assert (tmp_path / "labels.txt").read_text() == "background\ncat\nunknown\ndog\n"
    found = yaml.safe_load((tmp_path / "nvdsinfer_config.yaml").read_text())
    own = found["property"]
    assert (own["onnx-file"], own["labelfile-path"], own["num-detected-classes"]) == ("m.onnx", "labels.txt", 4)
    assert (own["infer-dims"], own["output-blob-names"]) == ("3;64;96", "pred_logits;pred_boxes")
    assert own["net-scale-factor"] == pytest.approx(1 / (255 * 0.25))
    assert [float(each) for each in own["offsets"].split(";")] == pytest.approx([127.5, 102.0, 76.5])
    assert own["network-mode"] == 0, "FP32, as the file is and was compared; TAO writes 2, FP16"
    assert found["class-attrs-all"] == {"topk": 20, "pre-cluster-threshold": 0.5}
    assert "values differ from those of training by up to 20.0 %" in capsys.readouterr().out


def test_imagenet_gives_the_factor_that_tao_writes() -> None:
    assert deepstream.scale(AugmentationSpec().input_std) == pytest.approx(0.0173520735728)
    assert deepstream.remark((0.25, 0.25, 0.25)) == "nvinfer normalises exactly as in training."


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 8), st.sampled_from(["cat", "big\ndog"]), min_size=1), st.integers(9, 12))
def test_a_label_stands_at_its_id(classes: dict[int, str], num_classes: int) -> None:
    found = deepstream.labels(classes, num_classes)
    assert len(found) == num_classes
    assert not any("\n" in name for name in found)
    for index, name in enumerate(found):
        absent = "background" if index == 0 else "unknown"
        assert name == (" ".join(classes[index].split()) if index in classes else absent)


@pytest.mark.parametrize("key", ["postprocess", "input_dtype"])
def test_deepstream_cannot_take_every_form(checkpoint: Path, tmp_path: Path, key: str) -> None:
    wanted = {"postprocess": {"postprocess": True}, "input_dtype": {"input_dtype": "uint8"}}[key]
    with pytest.raises(ValueError, match=rf"with `export.serialize_nvdsinfer`, `export\.{key}` must be"):
        export_onnx(checkpoint, tmp_path / "m.onnx", height=64, width=64, nvdsinfer=True, **wanted)  # type: ignore[arg-type]


def test_action_takes_everything_from_the_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ExportSpec(
        checkpoint=str(checkpoint), onnx_file=str(tmp_path / "new" / "m.onnx"), input_height=64, input_width=96
    )
    path = export_action(ExperimentSpec(model_name="mine"), wanted)
    assert sidecar.require_onnx(path).size == (64, 96)
    assert sidecar.require_onnx(path).lineage["model_name"] == "mine"
    said = capsys.readouterr().out
    assert "96 x 64 pixels, opset 17, gridsample attention, any batch; takes float32, gives pred_logits" in said
    assert "for TensorRT set export.attention=gather" in said


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "`export.checkpoint` must name a file, but is unset"),
        ({"checkpoint": "x.pth"}, "`export.onnx_file` must name a file, but is unset"),
        ({"checkpoint": "x.pth", "onnx_file": "x.etlt"}, r"must end in \.onnx"),
        ({"checkpoint": "x.pth", "onnx_file": "x.onnx"}, r"no file x\.pth"),
        ({"checkpoint": "x.pth", "onnx_file": "x.onnx", "format": "xdl"}, "`export.format` must be onnx"),
    ],
)
def test_action_names_what_is_wrong(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_action(ExperimentSpec(), ExportSpec(**wanted))
