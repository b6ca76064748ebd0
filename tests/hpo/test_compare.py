"""`ddetr compare` on a real store: which columns, in which order, what is missing and how to mend it."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpo.cli import main
from hpo.compare import catch_up
from hpo.mlflow_store import tracking_uri
from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.tracking import QUEUE, About, Tracker, plain_run
from model.metrics import VAL_MAP50, Measurement
from tests.hpo.trials import trial


def tried(number: int, values: list[float], outcome: Outcome | None, lr: float, note: str | None = None) -> TrialRecord:
    params = {"train.optim.lr": lr, "train.optim.weight_decay": 1e-4}
    return trial(number, *values, outcome=outcome, reason=note, params=params, gpus=2.0, end=number)


TRIALS = (
    tried(0, [0.1, 0.3], Outcome.COMPLETED, 1e-4),
    tried(1, [0.5, 0.4], Outcome.COMPLETED, 2e-4),
    tried(2, [0.2], Outcome.PRUNED, 3e-4),
    tried(3, [], Outcome.FAILED, 4e-4, "ZeroDivisionError: [x]"),
)


def track(root: Path, name: str, *trials: TrialRecord, uri: str | None = None, state: str = "finished") -> Path:
    run = root / name
    result = SweepResult(run_dir=run, metric=VAL_MAP50, trials=trials, budget=9, space_hash="", seed=0)
    tracker = Tracker(root, name, uri=uri, note=lambda _: None)
    tracker.describe(About(spec={"train": {"seed": 7}}))
    tracker.begin({"trials": 9, "metric": VAL_MAP50.name})
    for one in trials:
        tracker.child(one)
    if state == "running":
        tracker.catch_up(SweepResult(run_dir=run, metric=VAL_MAP50, trials=(), budget=9, space_hash="", seed=0))
        tracker.close()
    else:
        tracker.end(result, state=state)
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "results"
    shutil.copytree(mlflow_store, folder)
    track(folder, "one", *TRIALS)
    track(folder, "two", tried(0, [0.35], Outcome.COMPLETED, 1e-4), tried(1, [0.9, 0.6], None, 9e-4), state="running")
    plain = plain_run(folder / "plain", {"train.optim.lr": 5e-4, "train.optim.weight_decay": 1e-4})
    plain.log(Measurement(epoch=1, values={VAL_MAP50.name: 0.45}, seconds=3.0))
    plain.finish(Outcome.COMPLETED)
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["compare", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_best_first_and_only_what_differs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, str(root / "one"))
    assert found["metric"] == {"name": "val_mAP50", "goal": "maximize"}
    assert found["parameters"] == ["train.optim.lr"], "the weight decay is the same in all"
    assert [row["trial"] for row in found["trials"]] == [1, 0, 2, 3]
    best = found["trials"][0]
    assert (best["val_mAP50"], best["outcome"], best["epochs"], best["seconds"]) == (0.5, "completed", 2, 120.0)
    assert best["to default"] == pytest.approx(0.2)
    assert best["GPU hours"] == pytest.approx(2 * 120 / 3600)
    assert best["train.optim.lr"] == "0.0002"
    assert found["trials"][3]["note"] == "ZeroDivisionError: [x]"
    assert found["runs"][0]["state"] == "finished"


def test_several_runs_and_picked_trials(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, str(root / "one/2"), str(root / "two"), str(root / "one/0"), str(root / "plain"))
    rows = [(row["run"], row["trial"], row["val_mAP50"], row["outcome"]) for row in found["trials"]]
    assert rows == [
        ("two", 1, 0.9, "running"),  # its best epoch, not its last
        ("plain", 0, 0.45, "completed"),
        ("two", 0, 0.35, "completed"),
        ("one", 0, 0.3, "completed"),
        ("one", 2, 0.2, "pruned"),
    ]
    assert [run["kind"] for run in found["runs"]] == ["search", "search", "plain"]
    gains = {(row["run"], row["trial"]): row["to default"] for row in found["trials"]}
    assert gains["one", 2] == pytest.approx(-0.1), "to the default of its own run"


def test_tables_and_the_next_command(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(root.parent)
    assert main(["compare", str(root / "one")]) == 0
    shown = capsys.readouterr().out
    assert "one: search, 4 of 4 trials ended, finished" in shown
    assert "weight_decay" not in shown
    for part in ("0 (default)", "ZeroDivisionError: [x]", "0.0002", "+0.2000", "charts: mlflow ui"):
        assert part in shown
    assert shown.rstrip().endswith("next: ddetr evaluate --from results/one/1")
    assert main(["compare", str(root / "one"), str(root / "two")]) == 0
    assert "│ one" in capsys.readouterr().out


def test_csv_is_whole_numbers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(root / "one"), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["trial"] for row in rows] == ["1", "0", "2", "3"]
    assert float(rows[0]["GPU hours"]) == 2 * 120 / 3600
    assert rows[3]["val_mAP50"] == ""


def test_a_trial_that_is_not_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(root / "one/7")]) == 2
    assert "one has no trial 7; it has 0, 1, 2, 3" in capsys.readouterr().err


def test_a_store_that_is_not_there_is_named_with_the_fix(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "lone").mkdir()
    assert main(["compare", str(tmp_path / "lone")]) == 1
    error = capsys.readouterr().err
    assert f"there is no file {tmp_path / 'mlflow.db'}" in error
    assert "MLFLOW_TRACKING_URI" in error
    assert not (tmp_path / "mlflow.db").exists(), "looking makes no database"
    (root / "silent").mkdir(exist_ok=True)
    assert main(["compare", str(root / "silent")]) == 1
    assert "it has never heard of it" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert main(["compare", str(root / "one")]) == 1
    error = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 must answer" in error
    assert "secret" not in error


def test_what_mlflow_has_not_heard_it_is_told_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The database was away while the run ended; then it is back, and nobody resumes."""
    uri = tracking_uri(root)
    aside = root / "aside.db"
    (root / "mlflow.db").rename(aside)
    (root / "mlflow.db").mkdir()
    run = track(root, "late", *TRIALS)
    queue = run / QUEUE
    left = catch_up(uri, run)
    assert left is not None
    assert f"has not heard {len(queue.read_text().splitlines())} events of late" in left
    assert "then compare again" in left
    (root / "mlflow.db").rmdir()
    aside.rename(root / "mlflow.db")
    assert [row["trial"] for row in run_json(capsys, str(run))["trials"]] == [1, 0, 2, 3]
    assert queue.read_text() == ""
