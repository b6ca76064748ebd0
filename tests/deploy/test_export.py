import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime as ort
import pytest
import torch

from deploy import parity, sidecar
from deploy.export import export_action, export_onnx
from deploy.parity import ParityError, compare
from deploy.runtime import OnnxPredictor
from deploy.spec import ExportSpec
from model.checkpoint import load_model, read_checkpoint, sha256
from model.evaluate import torch_predictor
from model.network.detr import Prediction
from model.spec import ExperimentSpec


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
    compare(made, tmp_path / "other.onnx", noise(2, 64, 96))


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
    assert predictor.batch == 4
    model, _ = load_model(checkpoint)
    for batch in (1, 4, 6):
        assert max(parity.difference(torch_predictor(model)(noise(batch), None), predictor(noise(batch)))) < 1e-4


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
        ({"attention": "plugin"}, "`export.attention` must be auto or one of gridsample"),
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
        export_onnx(checkpoint, tmp_path / "model.onnx", height=64, width=64)
    assert not list(tmp_path.iterdir())


def test_the_wrong_checkpoint_and_not_a_number_fail_parity(
    spec: ExperimentSpec, onnx: Path, other_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ParityError, match=r"`model.onnx` must agree with PyTorch to 0.0001"):
        compare(other_checkpoint(with_box_refine=False), onnx, noise(2))

    def silent(pixels: torch.Tensor, mask: torch.Tensor | None) -> Prediction:
        return Prediction(torch.full((len(pixels), 5, 4), np.nan), torch.zeros(len(pixels), 5, 4))

    with pytest.raises(ParityError):
        parity.compare_predictors(silent, silent, noise(1), name="silent")


def test_action_takes_everything_from_the_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ExportSpec(
        checkpoint=str(checkpoint), onnx_file=str(tmp_path / "new" / "m.onnx"), input_height=64, input_width=96
    )
    path = export_action(ExperimentSpec(model_name="mine"), wanted)
    assert sidecar.require_onnx(path).size == (64, 96)
    assert sidecar.require_onnx(path).lineage["model_name"] == "mine"
    assert "96 x 64 pixels, opset 17, gridsample attention" in capsys.readouterr().out


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
