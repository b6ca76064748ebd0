"""Whole sweeps on a real Ray, with a stand-in for training: every ending, retries, and a driver killed in mid-sweep."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console as RichConsole

from hpo.console import Lines
from hpo.driver import RETRIES, Driver
from hpo.errors import RunError
from hpo.ledger import Ledger
from hpo.locks import exclusive
from hpo.result import Outcome, read_result
from hpo.sweep import resume_sweep, run_sweep
from hpo.sweep_spec import SweepSpec
from hpo.tracking import EXPERIMENT, Tracker
from model.metrics import VAL_MAP50
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace

HERE = Path(__file__).resolve().parent
LR, DECAY = "train.optim.lr", "train.optim.weight_decay"


def quiet() -> Lines:
    return Lines(RichConsole(file=io.StringIO(), force_terminal=False, width=200))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mlflow_runs(root: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def wait(condition: Callable[[], bool], seconds: float, what: str) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"{what} took over {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begun


def test_every_ending_has_its_name(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    run = tmp_path / "run"
    misfortunes = [{DECAY: kind * 1e-6} for kind in (1.0, 2.0, 3.0, 4.0)]
    # The worst comes last, when all others have been heard: whatever order they end in, one is stopped early.
    others = [{LR: value} for value in (1e-3, 8e-4, 6e-4, 5e-4, 2e-5)]
    block = SweepSpec(trials=10, points=(*misfortunes, *others), searcher="random")
    result = run_sweep(run, spec, block, space, console=quiet(), train="bowl:train")

    trials = result.trials
    assert [trial.number for trial in trials] == list(range(10))
    assert [trial.outcome for trial in trials[1:4]] == [Outcome.INFEASIBLE, Outcome.INFEASIBLE, Outcome.FAILED]
    assert [bool(trial.reason) for trial in trials] == [n in (1, 2, 3) for n in range(10)]
    assert trials[0].outcome is Outcome.COMPLETED
    assert "ZeroDivisionError: crash number 3" in (trials[3].reason or "")
    assert "Traceback" in (run / "trials/3/error.txt").read_text()
    assert trials[9].outcome is Outcome.PRUNED
    ends = Counter(trial.outcome for trial in trials[4:])
    assert set(ends) == {Outcome.COMPLETED, Outcome.PRUNED}

    # Trial 4's worker was killed with -9 in its second epoch: same number, from its checkpoint, no epoch twice.
    assert [call["resumed"] for call in lines(run / "trials/4/calls.jsonl")] == [0, 1]
    for trial in trials:
        if trial.outcome is Outcome.COMPLETED:
            assert [line["epoch"] for line in lines(run / f"trials/{trial.number}/epochs.jsonl")] == list(range(1, 9))
            assert [one.epoch for one in trial.measurements] == list(range(1, 9))
            assert trial.checkpoint is not None
            assert trial.checkpoint.exists()
    calls = [call for trial in trials for call in lines(run / f"trials/{trial.number}/calls.jsonl")]
    assert {call["cpus"] for call in calls} == {1}
    assert {count for call in calls for count in call["threads"].values()} == {1}, "two trials on two cores"
    # Two workers, one more for each that died or crashed.
    assert len({call["pid"] for call in calls}) <= 4

    best = result.best
    assert best is not None
    values = [trial.value(result.metric) for trial in trials if trial.outcome is Outcome.COMPLETED]
    assert best.value(result.metric) == max(value for value in values if value is not None)
    assert read_result(run) == result

    runs = mlflow_runs(tmp_path)
    status = Counter(run.data.tags.get("trial.status") for run in runs)
    assert status == {None: 1, "infeasible": 2, "failed": 1, **{end.value: count for end, count in ends.items()}} | {
        "completed": ends[Outcome.COMPLETED] + 1
    }
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED", "FAILED"}
    assert not (run / ".ray").exists()

    # Nothing is left to do; and a second sweep does not go into the folder.
    assert resume_sweep(run, console=quiet()) == result
    assert len(mlflow_runs(tmp_path)) == 11
    with pytest.raises(RunError, match="use `ddetr resume`"):
        run_sweep(run, spec, block, space)


class NoTracker(Tracker):
    """Tracks nothing."""

    def _say(self, event: Mapping[str, Any]) -> None:
        pass


def ends(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, *endings: str | None, searcher: str = "random"
) -> tuple[Driver, list[int]]:
    """Runs trials one after another, without Ray; each ends with a crash of that text, or completes (None)."""
    tmp_path.mkdir(exist_ok=True)
    ledger = Ledger.create(tmp_path, spec, space, searcher=searcher, seed=1, budget=20, points=(), metric=VAL_MAP50)
    driver = Driver(ledger, spec, SweepSpec(), quiet(), NoTracker(tmp_path, "x"))
    begun = []
    for crash in endings:
        number = driver.start()
        if number is None:
            break
        begun.append(number)
        if crash is None:
            one = {"epoch": 1, "values": {VAL_MAP50.name: 0.5}, "seconds": 1.0, "peak_gpu_bytes": 0}
            driver.told(number, {"final": {"outcome": "completed", "measurements": [one], "seconds": 1.0}})
        else:
            (ledger.folder(number) / "error.txt").write_text(f"Traceback\n  line 3\n{crash}\n")
        driver.ended(number)
    return driver, begun


def test_one_cause_three_times_stops_the_sweep(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    crashes = ("OSError: disk 7 is full", None, "OSError: disk 8 is full", "KeyError: 'x'", "OSError: disk 9 is full")
    driver, begun = ends(tmp_path, spec, space, *crashes, None)
    assert begun == [0, 1, 2, 3, 4]
    assert driver.diagnosis is not None
    assert driver.diagnosis.startswith("3 of the first 5 trials failed with one cause, so the sweep stopped: OSError")
    assert driver.done


def test_different_or_late_causes_stop_nothing(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    various = ("KeyError: 'a'", "ValueError: b", "OSError: c", "TypeError: d")
    assert ends(tmp_path / "a", spec, space, *various)[0].diagnosis is None
    late = (*[None] * 6, *["OSError: c"] * 4)
    assert ends(tmp_path / "b", spec, space, *late)[0].diagnosis is None


def test_a_trial_that_is_lost_again_and_again(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    driver, _ = ends(tmp_path, spec, space)
    text = "long story\nray.exceptions: x\nActorDiedError: the node went away\n"
    for _ in range(RETRIES):
        assert driver.start() == 0
        driver.ended(0, error=text)
        assert read_result(tmp_path).trials[0].outcome is None
    assert driver.start() == 0
    driver.ended(0, error=text)
    trial = read_result(tmp_path).trials[0]
    assert trial.outcome is Outcome.LOST
    assert trial.reason == "ActorDiedError: the node went away"
    assert driver.start() == 1


def test_training_without_the_metric(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    driver, _ = ends(tmp_path, spec, space)
    assert driver.start() == 0
    driver.told(0, {"epoch": 1, "values": {"train_loss": 1.0}, "seconds": 1.0, "peak_gpu_bytes": 0})
    driver.told(0, {"final": {"outcome": "completed", "measurements": [], "seconds": 1.0}})
    driver.ended(0)
    trial = read_result(tmp_path).trials[0]
    assert trial.outcome is Outcome.FAILED
    assert trial.reason == "the training reported no val_mAP50"


def test_names_are_checked_before_anything(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    for block in (SweepSpec(searcher="tep"), SweepSpec(scheduler="ahsa")):
        with pytest.raises(ValueError, match="must be one of"):
            run_sweep(tmp_path / "run", spec, block, space)
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold sweep.json"):
        resume_sweep(tmp_path)


def begin(tmp_path: Path, budget: int) -> tuple[subprocess.Popen[bytes], Path]:
    """A driver under way, at least with trial 3. It runs where a user keeps a model.py of their own: workers must not
    import that, as bowl imports ours."""
    run, cwd = tmp_path / "results" / "run", tmp_path / "cwd"
    cwd.mkdir()
    (cwd / "model.py").write_text("raise RuntimeError('the wrong model')")
    path = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
    env = {**os.environ, "PYTHONPATH": path, "BOWL_EPOCH_S": "0.1"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), str(run), str(budget)], cwd=cwd, env=env, stdout=log, stderr=log
        )
    wait(lambda: (run / "trials/3/epochs.jsonl").exists() or driver.poll() is not None, 240, "trial 3")
    assert driver.poll() is None, (tmp_path / "log").read_text()
    return driver, run


def test_driver_killed_in_mid_sweep(local_ray: None, tmp_path: Path, bowl: Any) -> None:
    budget = 8
    driver, run = begin(tmp_path, budget)
    with pytest.raises(RunError, match="in use by another driver"):
        resume_sweep(run, console=quiet())
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    before = {trial.number: trial for trial in read_result(run).trials}
    finished = [number for number, trial in before.items() if trial.outcome is not None]
    assert 1 <= len(finished) < len(before) < budget
    pids = {call["pid"] for path in run.glob("trials/*/calls.jsonl") for call in lines(path)}
    orphaned = wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "the end of orphaned workers")
    print(f"orphaned workers were gone after {orphaned:.1f} s")

    result = resume_sweep(run, console=quiet())

    assert result.finished
    assert [trial.number for trial in result.trials] == list(range(budget))
    for trial in result.trials:
        calls = lines(run / f"trials/{trial.number}/calls.jsonl")
        epochs = [line["epoch"] for line in lines(run / f"trials/{trial.number}/epochs.jsonl")]
        assert epochs == sorted(set(epochs)), "no epoch is trained twice"
        assert [one.epoch for one in trial.measurements] == list(range(1, trial.measurements[-1].epoch + 1))
        if trial.number in finished:
            assert trial == before[trial.number]
            assert len(calls) == 1
        else:
            assert len(calls) == (2 if trial.number in before else 1)
    assert len({json.dumps(dict(trial.params)) for trial in result.trials}) == budget
    runs = mlflow_runs(tmp_path / "results")
    assert Counter("trial.number" in run.data.tags for run in runs) == {True: budget, False: 1}
    assert not [run for run in runs if run.info.status == "RUNNING"]


def test_two_drivers(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    with exclusive(tmp_path / "run/.lock"), pytest.raises(RunError, match="in use by another driver"):
        run_sweep(tmp_path / "run", spec, SweepSpec(), space)


@pytest.mark.slow
def test_ctrl_c_saves(local_ray: None, tmp_path: Path, bowl: Any) -> None:
    driver, run = begin(tmp_path, 6)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) != 0
    assert "goes on" in (tmp_path / "log").read_text()
    assert {run.info.status for run in mlflow_runs(tmp_path / "results")} <= {"FINISHED", "KILLED"}
    assert not (run / ".ray").exists()
    result = resume_sweep(run, console=quiet())
    assert result.finished
    assert len(mlflow_runs(tmp_path / "results")) == 7
