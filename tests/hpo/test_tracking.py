"""MLflow's copy of a sweep on a real SQLite store: shape, idempotence, outages."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.tracking import EXPERIMENT, Tracker, plain_run
from model.metrics import VAL_MAP50, Measurement


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: creating one takes seconds."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def at(epoch: int) -> Measurement:
    return Measurement(epoch=epoch, values={VAL_MAP50.name: 0.1 * epoch, "val_loss": 1.0}, seconds=2.0 * epoch)


def record(number: int, outcome: Outcome | None, epochs: int, reason: str | None = None) -> TrialRecord:
    return TrialRecord(
        number=number,
        baseline=number == 0,
        outcome=outcome,
        reason=reason,
        sample={"lr_ratio": 0.1},
        params={"train.optim.lr": 1e-4 * (number + 1)},
        adjustments=(),
        measurements=tuple(at(epoch) for epoch in range(1, epochs + 1)),
        seconds=1.0,
        checkpoint=Path("trials/0/model_best.pth"),
    )


TRIALS = (
    record(0, Outcome.COMPLETED, 3),
    record(1, Outcome.PRUNED, 2),
    record(2, Outcome.INFEASIBLE, 0, "out of memory: one image"),
    record(3, Outcome.FAILED, 1, "ZeroDivisionError"),
)


def result(*trials: TrialRecord) -> SweepResult:
    return SweepResult(run_dir=Path("x"), metric=VAL_MAP50, trials=trials, budget=4, space_hash="", seed=0)


def runs(root: Path, name: str) -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    sweep = str(root / name)
    return client, list(client.search_runs([experiment.experiment_id], f"tags.`sweep.id` = '{sweep}'"))


def drive(tracker: Tracker) -> None:
    tracker.begin({"trials": 4})
    for trial in TRIALS:
        tracker.child(replace(trial, outcome=None, measurements=()))
        for measurement in trial.measurements:
            tracker.log(trial.number, measurement)
        tracker.finish(trial)
    tracker.end(result(*TRIALS), state="finished")


def test_shape(root: Path, tmp_path: Path) -> None:
    drive(Tracker(root, "a"))
    client, found = runs(root, "a")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["trial.number"]): run for run in found if run not in parents}
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.tags["mlflow.note.content"].startswith("Nothing beat the default")
    assert [children[n].info.status for n in range(4)] == ["FINISHED", "KILLED", "FAILED", "FAILED"]
    assert [children[n].data.tags["trial.status"] for n in range(4)] == ["completed", "pruned", "infeasible", "failed"]
    assert children[2].data.tags["trial.reason"] == "out of memory: one image"
    assert children[1].data.params == {"train.optim.lr": "0.0002"}
    history = client.get_metric_history(children[0].info.run_id, VAL_MAP50.name)
    assert [(point.step, round(point.value, 6)) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == VAL_MAP50.name
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "true"
    assert experiment.artifact_location.startswith(root.as_uri())
    assert not list(tmp_path.iterdir()), "nothing in the working directory"


def test_again_adds_nothing(root: Path) -> None:
    drive(Tracker(root, "b"))
    resumed = Tracker(root, "b")
    resumed.begin({"trials": 4})
    resumed.catch_up(result(*TRIALS))
    resumed.end(result(*TRIALS), state="finished")
    client, found = runs(root, "b")
    assert len(found) == 5
    child = next(run for run in found if run.data.tags.get("trial.number") == "0")
    assert len(client.get_metric_history(child.info.run_id, VAL_MAP50.name)) == 3


def test_killed_driver_is_caught_up(root: Path) -> None:
    """It died with trial 0 one epoch behind the study, trial 1 unfinished and trial 2 unknown to MLflow."""
    first = Tracker(root, "c")
    first.begin({"trials": 4})
    for trial in TRIALS[:2]:
        first.child(replace(trial, outcome=None))
        first.log(trial.number, at(1))
    resumed = Tracker(root, "c")
    resumed.begin({"trials": 4})
    resumed.catch_up(result(*TRIALS))
    client, found = runs(root, "c")
    status = Counter(run.data.tags.get("trial.status") for run in found)
    assert status == {None: 1, "completed": 1, "pruned": 1, "infeasible": 1, "failed": 1}
    child = next(run for run in found if run.data.tags.get("trial.number") == "0")
    assert [point.step for point in client.get_metric_history(child.info.run_id, VAL_MAP50.name)] == [1, 2, 3]


def test_interrupted_sweep_leaves_nothing_running(root: Path) -> None:
    tracker = Tracker(root, "i")
    tracker.begin({"trials": 4})
    running = record(1, None, 1)
    for trial in (TRIALS[0], running):
        tracker.child(replace(trial, outcome=None))
    tracker.end(result(TRIALS[0], running), state="interrupted")
    _, found = runs(root, "i")
    assert Counter(run.info.status for run in found) == {"FINISHED": 1, "KILLED": 2}
    resumed = Tracker(root, "i")
    resumed.begin({"trials": 4})
    resumed.child(running)
    _, found = runs(root, "i")
    assert Counter(run.info.status for run in found) == {"FINISHED": 1, "RUNNING": 2}


def test_plain_run_has_a_trials_shape(root: Path) -> None:
    for _ in range(2):  # a plain training that is resumed keeps its run
        run = plain_run(root / "d", {"train.optim.lr": 2e-4})
        run.log(at(1))
        run.finish(Outcome.COMPLETED, checkpoint=Path("model_best.pth"))
    _, found = runs(root, "d")
    assert len(found) == 1
    assert found[0].info.status == "FINISHED"
    assert found[0].data.tags["trial.status"] == "completed"
    assert "mlflow.parentRunId" not in found[0].data.tags
    assert found[0].data.metrics[VAL_MAP50.name] == pytest.approx(0.1)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db", "nonsense://"])
def test_outage_is_said_once_and_stops_nothing(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    drive(Tracker(tmp_path, "e", uri=uri, note=said.append))
    assert len(said) == 2
    assert "cannot be written" in said[0]
    assert "writes failed; the study in the run folder is complete" in said[1]
    run = plain_run(tmp_path / "f", {}, uri=uri, note=said.append)
    run.log(at(1))
    run.finish(Outcome.FAILED, reason="boom")
