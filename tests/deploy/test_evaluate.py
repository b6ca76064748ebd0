import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.evaluate import evaluate_action, evaluate_file
from deploy.export import export_onnx
from deploy.inference import inference_action
from model.checkpoint import load_model
from model.errors import CheckpointError, SpecError
from model.evaluate import evaluate_checkpoint
from model.spec import Source


def asked(pictures: Source, batch_size: int = 4, **more: Any) -> dict[str, Any]:
    data = {"image_dir": pictures.image_dir, "json_file": pictures.json_file}
    return {"dataset": {"test_data_sources": data, "val_data_sources": [data], "batch_size": batch_size}, **more}


def test_onnx_scores_as_pytorch_does_under_the_same_protocol(checkpoint: Path, onnx: Path, pictures: Source) -> None:
    given = asked(pictures, evaluate={"input_width": 64, "input_height": 64})
    expected, _ = evaluate_checkpoint(checkpoint, given)
    found, evaluator = evaluate_file(onnx, given, threads=1)
    assert 0.1 < expected.numbers["mAP50"] < 0.99
    assert found.numbers == pytest.approx(expected.numbers, abs=1e-3)
    assert found.per_class == pytest.approx(expected.per_class, abs=1e-3)
    assert set(evaluator.rows()[:, 0]) == {10, 20, 30, 40, 50, 60, 70}


def test_every_image_counts_for_any_batch(checkpoint: Path, onnx: Path, pictures: Source, tmp_path: Path) -> None:
    whole, _ = evaluate_file(onnx, asked(pictures, batch_size=7))
    single, _ = evaluate_file(onnx, asked(pictures, evaluate={"batch_size": 1}), split="val")
    assert single.numbers == pytest.approx(whole.numbers, abs=1e-3)
    export_onnx(checkpoint, tmp_path / "fixed.onnx", height=64, width=64, batch_size=3)
    fixed, evaluator = evaluate_file(tmp_path / "fixed.onnx", asked(pictures, batch_size=5))
    assert fixed.numbers == pytest.approx(whole.numbers, abs=1e-3)
    assert len(evaluator.rows()) == 7 * 50


def test_action_writes_what_the_evaluation_of_a_checkpoint_writes(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    result, latency = evaluate_action(asked(pictures, evaluate={"checkpoint": str(onnx)}), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.numbers
    assert latency is not None
    assert {path.name for path in tmp_path.iterdir()} == {
        "latency.json", "metrics.json", "per_class.csv", "predictions.json", "results.json", "status.json",
        "worst_and_best.png",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "status.json").read_text().splitlines()]
    assert lines[-1]["status"] == "SUCCESS"
    assert {"test_mAP": result.numbers["mAP"], "test_mAP50": result.numbers["mAP50"]} in [x.get("kpi") for x in lines]


@pytest.mark.parametrize("sizes", [[], [1]])
def test_a_checkpoint_is_opened_once(
    checkpoint: Path, pictures: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    opened: list[Path] = []

    def load(path: Path) -> Any:
        opened.append(path)
        return load_model(path)

    monkeypatch.setattr("model.evaluate.load_model", load)
    keys = {"checkpoint": str(checkpoint), "latency_batch_sizes": sizes, "input_width": 64, "input_height": 64}
    _, latency = evaluate_action(asked(pictures, evaluate=keys), tmp_path)
    assert opened == [checkpoint]
    assert (latency is None, (tmp_path / "latency.json").exists()) == (not sizes, bool(sizes))


def test_what_the_file_contradicts(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"`evaluate.input_width` must be that of the file, but is 96 .* takes 64"):
        evaluate_file(onnx, asked(pictures, evaluate={"input_width": 96}))
    with pytest.raises(CheckpointError, match=r"`dataset.num_classes` .* says 5 and .*model\.onnx says 4"):
        evaluate_file(onnx, {"dataset": {"num_classes": 5}})
    with pytest.raises(SpecError, match=r"`evaluate.checkpoint` must end in one of \.pth, .*, but is a\.txt"):
        evaluate_action({"evaluate": {"checkpoint": "a.txt"}}, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_inference_labels_and_draws_every_picture(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    given = {
        "dataset": {"batch_size": 4, "infer_data_sources": {"image_dir": [pictures.image_dir]}},
        "inference": {"checkpoint": str(onnx), "conf_threshold": 0.0},
    }
    assert inference_action(given, tmp_path) == 7
    for number in range(1, 8):
        with Image.open(tmp_path / "images_annotated" / f"{number}.png") as drawn:
            assert drawn.size == (110 - 8 * number, 60 + 7 * number)
        lines = [line.split() for line in (tmp_path / "labels" / f"{number}.txt").read_text().splitlines()]
        assert lines
        assert all(len(line) == 16 and line[0] in ("cat", "dog") for line in lines)
