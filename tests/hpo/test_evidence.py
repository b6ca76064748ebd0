"""What a run keeps of its winner on the validation images."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from hpo.evidence import FOLDER, SUMMARY, TEST, gather, keep_test_scores
from hpo.reporting.facts import _evaluation
from model.evaluate import evaluate_checkpoint
from model.spec import DatasetSpec, ExperimentSpec, Source

pytestmark = pytest.mark.usefixtures("own_cache")


def test_winner_on_the_validation_images(tiny_checkpoint: Path, tiny_pictures: Source, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "trials" / "1").mkdir(parents=True)
    winner = run / "trials" / "1" / "model_best.pth"
    shutil.copy(tiny_checkpoint, winner)
    spec = ExperimentSpec(dataset=DatasetSpec(val_data_sources=(tiny_pictures,)))
    keep_test_scores(run, {"winner": 0.5})
    gather(run, spec, winner, trial=1, default=winner, cpus=1)

    test_split = {"dataset": {"test_data_sources": spec.to_dict()["dataset"]["val_data_sources"][0]}}
    expected, _ = evaluate_checkpoint(winner, test_split)
    folder = run / FOLDER
    assert json.loads((folder / "metrics.json").read_text()) == pytest.approx(expected.numbers)
    summary = json.loads((folder / SUMMARY).read_text())
    against = summary["against_default"]
    assert (against["difference"], against["low"], against["high"]) == (0, 0, 0), "it was compared with itself"
    assert against["default"] == summary["mAP50"] == pytest.approx(expected.numbers["mAP50"])
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    for curve in json.loads((folder / "curves.json").read_text())["classes"]:
        ap50 = next(float(row["mAP50"]) for row in rows if int(row["category_id"]) == curve["category_id"])
        assert sum(curve["precision"]) / 101 == pytest.approx(ap50, abs=1e-5), "the area under its curve"
    told = json.loads((folder / "pictures" / "pictures.json").read_text())["pictures"]
    assert [each["f1"] for each in told] == sorted(each["f1"] for each in told)
    assert all((folder / "pictures" / each["file"]).is_file() for each in told)
    assert all(each["wrong"] + each["missed"] for each in told)
    assert _evaluation(folder) is not None

    gather(run, spec, winner, trial=2, default=None, cpus=1)
    again = json.loads((folder / SUMMARY).read_text())
    assert again["trial"] == 2
    assert "against_default" not in again
    assert json.loads((folder / TEST).read_text()) == {"winner": 0.5}, "the test scores are another evaluation's"


def test_nothing_without_validation_data(tmp_path: Path) -> None:
    gather(tmp_path, ExperimentSpec(), tmp_path / "absent.pth", trial=0, default=None, cpus=1)
    assert list(tmp_path.iterdir()) == []
