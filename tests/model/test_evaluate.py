"""Scoring of a finished checkpoint."""

import csv
import io
import json
import re
import tarfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.batch import ImageBatch
from model.errors import CheckpointError, SpecError
from model.evaluate import Detector, evaluate, evaluate_detector
from model.network.postprocess import Detections
from model.progress import heard_by
from model.spec import ExperimentSpec
from model.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def checkpoint(trained: Path, digits_spec: dict[str, Any]) -> str:
    if not (trained / "model_best.pth").exists():
        train(ExperimentSpec.from_dict({**digits_spec, "train": {"num_epochs": 1}}), trained, cpus=1)
    return str(trained / "model_best.pth")


def test_evaluate_writes_what_pycocotools_says(checkpoint: str, digits_spec: dict[str, Any], tmp_path: Path) -> None:
    given = {"dataset": {"test_data_sources": digits_spec["dataset"]["test_data_sources"]}}
    result = evaluate({**given, "evaluate": {"checkpoint": checkpoint}}, tmp_path)
    truth_file = Path(digits_spec["dataset"]["test_data_sources"]["json_file"])

    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        reference = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    written = json.loads((tmp_path / "metrics.json").read_text())
    of_tao = json.loads((tmp_path / "results.json").read_text())
    names = "AP AP50 AP75 APs APm APl ARmax1 ARmax10 ARmax100 ARs ARm ARl"
    assert of_tao == dict(zip(names.split(), written.values(), strict=True))
    assert list(written.values()) == pytest.approx(reference.stats.tolist(), abs=1e-12)
    assert written == result.numbers

    kpi = json.loads((tmp_path / "status.json").read_text().splitlines()[-2])["kpi"]
    assert kpi == {"test_mAP": written["mAP"], "test_mAP50": written["mAP50"]}
    (row,) = csv.DictReader((tmp_path / "per_class.csv").open())
    assert (row["category_id"], row["name"]) == ("2", "digit")
    assert (float(row["mAP"]), float(row["mAP50"])) == pytest.approx((written["mAP"], written["mAP50"]))
    assert int(row["boxes"]) == len(json.loads(truth_file.read_text())["annotations"])
    with Image.open(tmp_path / "worst_and_best.png") as picture:
        assert picture.size == (8 + 3 * 488, 2 * 536)  # six test images: three worst, three best


def test_the_batch_size_changes_nothing(checkpoint: str, digits_spec: dict[str, Any], tmp_path: Path) -> None:
    scores = []
    for size in (1, 7):
        given = {"evaluate": {"checkpoint": checkpoint, "batch_size": size}}
        scores.append(list(evaluate(given, tmp_path / str(size)).numbers.values()))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_fixed_size_reaches_the_network(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()

    def noted(detect: Detector, *others: Any) -> Any:
        def noting(batch: ImageBatch) -> Detections:
            shapes.add((tuple(batch.pixels.shape), tuple(map(tuple, batch.sizes.tolist()))))
            return detect(batch)

        return evaluate_detector(noting, *others)

    monkeypatch.setattr("model.evaluate.evaluate_detector", noted)
    given = {"checkpoint": checkpoint, "batch_size": 4, "input_height": 40, "input_width": 56}
    evaluate({"evaluate": given}, tmp_path)
    assert shapes == {((4, 3, 40, 56), ((40, 56),) * 4), ((2, 3, 40, 56), ((40, 56),) * 2)}
    with pytest.raises(SpecError, match=r"`evaluate.input_width` must be set together, but are 40 and None"):
        evaluate({"evaluate": {"checkpoint": checkpoint, "input_height": 40}}, tmp_path)


def test_a_long_evaluation_says_how_far_it_is(
    checkpoint: str, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("model.progress.EVERY_S", 0.0)
    with caplog.at_level("INFO", logger="model"), heard_by(heard):
        evaluate({"evaluate": {"checkpoint": checkpoint, "batch_size": 3}}, tmp_path)
    assert [(one.what, one.done, one.total) for one in heard.moves if one.what == "evaluating"] == [
        ("evaluating", 3, 6), ("evaluating", 6, 6), ("evaluating", 6, 6),
    ]  # fmt: skip
    assert re.search(r"class +mAP +mAP50 +boxes\n.*digit +0\.\d{3} +0\.\d{3} +\d+", caplog.text)


def test_an_unreadable_test_image_counts_and_stops_nothing(
    checkpoint: str, digits_spec: dict[str, Any], tmp_path: Path
) -> None:
    source = digits_spec["dataset"]["test_data_sources"]
    with tarfile.open(source["image_dir"]) as tar:
        tar.extractall(tmp_path, filter="data")
    first, *_ = sorted((tmp_path / "images").iterdir())
    whole = {"image_dir": str(tmp_path / "images"), "json_file": source["json_file"]}
    given = {"dataset": {"test_data_sources": whole}, "evaluate": {"checkpoint": checkpoint}}
    images = {row["id"]: row["file_name"] for row in json.loads(Path(source["json_file"]).read_text())["images"]}
    before = evaluate(given, tmp_path / "before").numbers
    first.write_bytes(b"gone")
    after = evaluate(given, tmp_path / "after").numbers
    assert after["ARmax100"] <= before["ARmax100"]
    rows = json.loads((tmp_path / "after/predictions.json").read_text())
    assert {images[row["image_id"]] for row in rows} == {Path(name).name for name in images.values()} - {first.name}


def test_a_threshold_drops_detections_and_no_image(checkpoint: str, tmp_path: Path) -> None:
    result = evaluate({"evaluate": {"checkpoint": checkpoint, "conf_threshold": 0.99}}, tmp_path)
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert result.numbers["mAP50"] == 0.0


def test_a_contradicting_architecture_names_both_values(checkpoint: str, tmp_path: Path) -> None:
    given = {"model": {"hidden_dim": 256}, "evaluate": {"checkpoint": checkpoint}}
    with pytest.raises(CheckpointError, match=r"`model.hidden_dim`.* says 256 and .* says 32"):
        evaluate(given, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"
    with pytest.raises(SpecError, match="is unset"):
        evaluate({"evaluate": {"checkpoint": "???"}}, tmp_path)
