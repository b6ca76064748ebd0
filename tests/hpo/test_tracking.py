"""MLflow's copy of a sweep on a real SQLite store: shape, idempotence, outages."""

import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hpo.datasets import Dataset
from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.tracking import EXPERIMENT, QUEUE, About, Tracker, plain_run
from model.metrics import VAL_MAP50, Measurement
from tests.hpo import trials


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    """One database for the module."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copy(mlflow_store / "mlflow.db", folder)
    drive(Tracker(folder, "first"))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def at(epoch: int) -> Measurement:
    values = {VAL_MAP50.name: 0.1 * epoch, "val_loss": 1.0}
    beside = {"peak_rss_bytes": 5 << 20, "images_per_second": 12.5}
    return Measurement(epoch=epoch, values=values, seconds=2.0 * epoch, **beside)


def record(number: int, outcome: Outcome | None, epochs: int, reason: str | None = None) -> TrialRecord:
    return trials.trial(
        number,
        outcome=outcome,
        reason=reason,
        sample={"lr_ratio": 0.1},
        params={"train.optim.lr": 1e-4 * (number + 1)},
        adjustments=("images at once 8 -> 4 (out of memory)",) if number == 1 else (),
        measurements=tuple(at(epoch) for epoch in range(1, epochs + 1)),
        seconds=1.0,
        checkpoint=Path("trials/0/model_best.pth"),
        gpus=2.0,
        end=None if outcome is None else number,
        sweep_gpu_seconds=36.0 * (number + 1),
    )


TRIALS = (
    record(0, Outcome.COMPLETED, 3),
    record(1, Outcome.PRUNED, 2),
    record(2, Outcome.INFEASIBLE, 0, "out of memory: one image"),
    record(3, Outcome.FAILED, 1, "ZeroDivisionError"),
)


ABOUT = About(
    spec={"train": {"seed": 7, "optim": {"lr": 1e-4}, "num_epochs": 3}, "results_dir": "/somewhere"},
    datasets=(
        Dataset(context="train", name="train/annotations", digest="a" * 32, source="/data/train/annotations.json"),
        Dataset(context="val", name="val/annotations", digest="b" * 32, source="/data/val/annotations.json"),
    ),
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
    tracker.describe(ABOUT)
    tracker.begin({"trials": 4})
    for place, trial in enumerate(TRIALS, start=1):
        tracker.child(replace(trial, outcome=None, measurements=()))
        for measurement in trial.measurements:
            tracker.log(trial.number, measurement)
        tracker.finish(trial)
        tracker.progress(result(*TRIALS[:place]))
    tracker.end(result(*TRIALS), state="finished")


def test_shape(root: Path, tmp_path: Path) -> None:
    drive(Tracker(root, "a"))
    client, found = runs(root, "a")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["trial.number"]): run for run in found if run not in parents}
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.tags["mlflow.note.content"].startswith("**Nothing beat the default")
    assert parents[0].data.params == {
        "trials": "4", "dataset.train.digest": "a" * 32, "dataset.val.digest": "b" * 32,
    }  # fmt: skip
    series = {name: client.get_metric_history(parents[0].info.run_id, name) for name in parents[0].data.metrics}
    told = {name: [(point.step, round(point.value, 6)) for point in points] for name, points in series.items()}
    assert told == {
        "best_val_mAP50": [(step, 0.3) for step in range(1, 5)],
        "trials_done": [(step, float(step)) for step in range(1, 5)],
        "gpu_hours": [(step, 0.01 * step) for step in range(1, 5)],
    }
    for run in found:
        inputs = {one.tags[0].value: (one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
        assert inputs == {"train": ("train/annotations", "a" * 32), "val": ("val/annotations", "b" * 32)}
        assert len(run.data.tags["dataset.digest"]) == 32
    tags = children[1].data.tags
    assert tags["trial.adjustments"] == "images at once 8 -> 4 (out of memory)"
    assert json.loads(tags["trial.sample"]) == {"lr_ratio": 0.1}
    assert (tags["seed"], tags["trial.is_baseline"], children[0].data.tags["trial.is_baseline"]) == (
        "7",
        "false",
        "true",
    )
    assert len({child.data.tags["trial.config_hash"] for child in children.values()}) == 4
    assert children[0].data.metrics["best_val_mAP50"] == pytest.approx(0.3)
    assert children[0].data.metrics["gpu_hours"] == pytest.approx(2 / 3600)
    assert children[0].data.metrics["images_per_second"] == 12.5
    assert children[0].data.metrics["peak_memory_bytes"] == 5 << 20
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
    """It died with trial 0 two epochs behind the study, trial 1 unfinished and trial 2 unknown to MLflow."""
    first = Tracker(root, "c")
    first.begin({"trials": 4})
    for trial in TRIALS[:2]:
        first.child(replace(trial, outcome=None, measurements=()))
        first.log(trial.number, at(1))
    first.close()
    resumed = Tracker(root, "c")
    resumed.begin({"trials": 6})  # a larger budget: MLflow keeps the first
    resumed.catch_up(result(*TRIALS))
    resumed.close()
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
    resumed.close()
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
def test_outage_stops_nothing(tmp_path: Path, uri: str) -> None:
    said: list[str] = []
    drive(Tracker(tmp_path, "e", uri=uri, note=said.append))
    assert len(said) == 2
    assert "cannot be written" in said[0]
    epochs = sum(len(trial.measurements) for trial in TRIALS)
    begin, during, end = 2, 3 * len(TRIALS) + epochs, len(TRIALS) + 3
    events = begin + during + end
    assert f"has not heard {events} events; they are kept in {tmp_path / 'e' / QUEUE}" in said[1]
    run = plain_run(tmp_path / "f", {}, uri=uri, note=said.append)
    run.log(at(1))
    run.finish(Outcome.FAILED, reason="boom")
    assert f"has not heard 4 events; they are kept in {tmp_path / 'f' / QUEUE}" in said[-1]


class Store:
    """A database whose folder is not there until `repair`; a copy of `template`, for making one takes seconds."""

    def __init__(self, tmp_path: Path, template: Path) -> None:
        self.folder = tmp_path / "store"
        self.folder.write_text("a file where the folder should be")
        self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self._copy = tmp_path / "copy"
        self._copy.mkdir()
        shutil.copy(template / "mlflow.db", self._copy)

    def repair(self) -> None:
        self.folder.unlink()
        self._copy.rename(self.folder)

    def runs(self, root: Path, name: str) -> tuple[MlflowClient, dict[int, Any]]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], f"tags.`sweep.id` = '{root / name}'")
        numbers = [int(run.data.tags.get("trial.number", -1)) for run in found]
        assert len(set(numbers)) == len(numbers), "one run for each"
        return client, dict(zip(numbers, found, strict=True))

    def check(self, root: Path, name: str, last: int = 4) -> None:
        client, found = self.runs(root, name)
        assert sorted(found) == list(range(-1, last))
        for trial in TRIALS[:last]:
            run = found[trial.number]
            assert run.data.tags["trial.status"] == (trial.outcome.value if trial.outcome else "interrupted")
            assert run.data.params == {"train.optim.lr": str(trial.params["train.optim.lr"])}
            history = client.get_metric_history(run.info.run_id, "seconds")
            assert [point.step for point in history] == [one.epoch for one in trial.measurements]
        assert not [run for run in found.values() if run.info.status == "RUNNING"]


def test_server_that_comes_back_hears_everything(root: Path, tmp_path: Path) -> None:
    store, said = Store(tmp_path, root), list[str]()
    tracker = Tracker(tmp_path, "a", uri=store.uri, note=said.append)
    tracker.begin({"trials": 4})
    for trial in TRIALS[:2]:
        tracker.child(replace(trial, outcome=None, measurements=()))
        for measurement in trial.measurements:
            tracker.log(trial.number, measurement)
        tracker.finish(trial)
    while not said:
        time.sleep(0.02)
    store.repair()
    while len(said) < 2:
        time.sleep(0.02)
    assert "is back" in said[1]
    for trial in TRIALS[2:]:
        tracker.child(replace(trial, outcome=None, measurements=()))
        tracker.finish(trial)
    tracker.end(result(*TRIALS), state="finished")
    assert len(said) == 2
    store.check(tmp_path, "a")
    assert (tmp_path / "a" / QUEUE).read_text() == ""


def test_next_process_says_what_was_kept(root: Path, tmp_path: Path) -> None:
    """Of the sweep itself when it is resumed, and of a plain run beside it, which nobody resumes."""
    store, said = Store(tmp_path, root), list[str]()
    drive(Tracker(tmp_path, "a", uri=store.uri, note=said.append))
    plain = plain_run(tmp_path / "plain", {"train.optim.lr": 0.1}, uri=store.uri, note=said.append)
    plain.log(at(1))
    plain.finish(Outcome.COMPLETED)
    store.repair()
    tracker = Tracker(tmp_path, "a", uri=store.uri, note=said.append)
    tracker.begin({"trials": 4})
    tracker.end(result(*TRIALS), state="finished")
    store.check(tmp_path, "a")
    _, found = store.runs(tmp_path, "plain")
    assert found[0].info.status == "FINISHED"
    assert found[0].data.metrics["seconds"] == 2.0
    assert [path.read_text() for path in tmp_path.glob(f"*/{QUEUE}")] == ["", ""]


def test_two_runs_of_one_trial_become_one(root: Path) -> None:
    """A request that timed out may be carried out later: the one with the numbers stays."""
    drive(Tracker(root, "g"))
    client, found = runs(root, "g")
    for run in found:
        if run.data.tags.get("trial.number") in (None, "1"):
            tags = {key: run.data.tags[key] for key in ("sweep.id", "trial.number") if key in run.data.tags}
            client.create_run(run.info.experiment_id, run_name="late", tags=tags)
    assert len(runs(root, "g")[1]) == 7
    resumed = Tracker(root, "g")
    resumed.begin({"trials": 4})
    resumed.end(result(*TRIALS), state="finished")
    _, left = runs(root, "g")
    assert sorted(run.info.run_id for run in left) == sorted(run.info.run_id for run in found)


def test_what_mlflow_refuses_holds_nothing_up(root: Path) -> None:
    said: list[str] = []
    tracker = Tracker(root, "h", note=said.append)
    tracker.begin({"trials": 4, "not@allowed": 1})
    tracker.end(result(*TRIALS), state="finished")
    assert [line.split(" ", 3)[3] for line in said][-1] == "did not take 1 events."
    assert "refuses an event: MlflowException" in said[0]
    assert Counter(run.info.status for run in runs(root, "h")[1]) == {"FINISHED": 2, "KILLED": 1, "FAILED": 2}


def test_a_run_deleted_by_hand_is_made_again(root: Path) -> None:
    said: list[str] = []
    tracker = Tracker(root, "j", note=said.append)
    tracker.begin({"trials": 4})
    tracker.child(replace(TRIALS[0], outcome=None, measurements=()))
    tracker.log(0, at(1))
    tracker.close()
    client, found = runs(root, "j")
    tracker.begin({"trials": 4})
    tracker.log(0, at(2))
    wait_until_heard(root / "j")
    for run in found:
        client.delete_run(run.info.run_id)
    tracker.log(0, at(3))
    tracker.end(result(TRIALS[0]), state="finished")
    client, found = runs(root, "j")
    assert len(found) == 2
    child = next(run for run in found if "trial.number" in run.data.tags)
    assert [point.step for point in client.get_metric_history(child.info.run_id, VAL_MAP50.name)] == [1, 2, 3]
    assert said == []


def wait_until_heard(folder: Path) -> None:
    while (folder / QUEUE).read_text():
        time.sleep(0.02)


def test_parameters_that_change(root: Path) -> None:
    """A trial of a population goes on with other values; MLflow's parameters never change."""
    tracker = Tracker(root, "k")
    tracker.begin({"trials": 4})
    tracker.child(replace(TRIALS[0], outcome=None, measurements=()))
    changed = replace(TRIALS[0], params={"train.optim.lr": 0.5})
    tracker.child(replace(changed, outcome=None))
    tracker.end(result(changed), state="finished")
    child = next(run for run in runs(root, "k")[1] if "trial.number" in run.data.tags)
    assert child.data.params == {"train.optim.lr": "0.0001"}
    assert json.loads(child.data.tags["trial.changed_params"]) == {"train.optim.lr": "0.5"}
    assert child.data.metrics["seconds"] == 6.0
