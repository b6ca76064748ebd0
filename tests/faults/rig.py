"""What the fault tests share: a driver in a process of its own, and what must hold after whatever was done to it."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.mlflow_runs import RUN_STATUS
from hpo.mlflow_store import EXPERIMENT
from hpo.result import Outcome, SweepResult, read_result
from hpo.summary import progress

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BOWL = HERE.parent / "hpo"


def wait(condition: Callable[[], Any], seconds: float, what: str, step: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took over {seconds:g} s"
        time.sleep(step)


def environment(**more: str) -> dict[str, str]:
    """Of a process that finds our packages, the stand-in training and these helpers."""
    path = os.pathsep.join([str(ROOT), str(BOWL), str(HERE)])
    found = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    found.pop("RAY_ADDRESS", None)
    return found


class Driver:
    """`tests/faults/one_sweep.py` on the run folder `results/run`, as often as it takes."""

    def __init__(self, folder: Path, *, trials: int = 6, epochs: int = 6, epoch_s: float = 0.1, **env: str) -> None:
        self.run, self.trials, self.epochs = folder / "results" / "run", trials, epochs
        self.log = folder / "log"
        self._env = environment(BOWL_EPOCH_S=str(epoch_s), **env)
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        what = "resume" if (self.run / "sweep.json").exists() else "begin"
        command = [sys.executable, str(HERE / "one_sweep.py"), what, str(self.run), str(self.trials), str(self.epochs)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*command, *arguments], env=self._env | env, stdout=log, stderr=log)
        return self.process

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 300.0) -> None:
        """Waits while the driver is at work; it must not end before."""

        def met() -> Any:
            found = condition()
            assert found or self.alive, f"the driver ended before {what}:\n{self.log.read_text()[-4000:]}"
            return found

        wait(met, seconds, what, step=0.1)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = 400.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            raise AssertionError(f"the driver took over {seconds:g} s:\n{self.log.read_text()[-4000:]}") from None

    def succeed(self) -> SweepResult:
        """Waits for the end, which must be a good one."""
        assert self.end() == 0, self.log.read_text()[-6000:]
        return read_result(self.run)

    def epochs_trained(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self.run.glob("trials/*/epochs.jsonl"))

    def calls(self, number: int) -> list[dict[str, Any]]:
        return lines(self.run / f"trials/{number}/calls.jsonl")

    def workers(self) -> set[int]:
        """Process ids of all that ever trained here."""
        return {call["pid"] for path in self.run.glob("trials/*/calls.jsonl") for call in lines(path)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(run: Path) -> list[int]:
    """Numbers of the trials whose end is in the study."""
    if not (run / "sweep.json").exists():
        return []
    ended = """SELECT number FROM trials JOIN trial_user_attributes USING (trial_id)
               WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL') AND key = 'outcome' ORDER BY number"""
    with opened(run) as study:
        return [number for (number,) in study.execute(ended)]


@contextlib.contextmanager
def opened(run: Path) -> Iterator[sqlite3.Connection]:
    """The study. Not read-only: after a kill in mid-write SQLite first takes back what was half written."""
    with contextlib.closing(sqlite3.connect(run / "study.db", timeout=60)) as study:
        yield study


TABLES = {
    "trials": "number, state, datetime_start, datetime_complete",
    "trial_params": "param_name, param_value, distribution_json",
    "trial_values": "objective, value, value_type",
    "trial_user_attributes": "key, value_json",
    "trial_system_attributes": "key, value_json",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
}
LEFT_OUT = (".lock",)


def bits(run: Path, numbers: Iterable[int]) -> dict[int, str]:
    """A digest of all that the study and the folders hold of these trials."""
    found = {}
    with opened(run) as study:
        for number in numbers:
            digest = hashlib.sha256()
            for table, columns in TABLES.items():
                query = f"SELECT {columns} FROM {table} WHERE trial_id = (SELECT trial_id FROM trials WHERE number = ?)"
                digest.update(repr(sorted(study.execute(query, (number,)))).encode())
            folder = run / "trials" / str(number)
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name not in LEFT_OUT:
                    digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
            found[number] = digest.hexdigest()
    return found


def mlflow_runs(uri: str, run: Path) -> dict[int, Any]:
    """By trial number, the parent as -1; fails when there are two of one."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`sweep.id` = '{run}'", max_results=1000)
    numbers = [int(each.data.tags.get("trial.number", -1)) for each in found]
    assert len(set(numbers)) == len(numbers), f"MLflow has two runs of one trial: {sorted(numbers)}"
    return dict(zip(numbers, found, strict=True))


def check_mlflow(run: Path, uri: str | None = None) -> None:
    """One closed run for each trial and one for the sweep, and every epoch is in them."""
    from mlflow import MlflowClient

    uri = uri or f"sqlite:///{run.parent / 'mlflow.db'}"
    found, client = mlflow_runs(uri, run), MlflowClient(uri)
    trials = read_result(run).trials
    assert sorted(found) == [-1, *(trial.number for trial in trials)]
    for trial in trials:
        assert trial.outcome is not None
        info, data = found[trial.number].info, found[trial.number].data
        assert info.status == RUN_STATUS.get(trial.outcome.value, "FAILED"), trial
        for name in {name for one in trial.measurements for name in one.values}:
            # By step: an epoch whose report was lost with a driver is told when its trial ends.
            history = client.get_metric_history(info.run_id, name)
            told = sorted((point.step, point.value) for point in history)
            assert told == [(one.epoch, one.values[name]) for one in trial.measurements], (trial.number, name)
        assert data.params == {name: str(value) for name, value in trial.params.items()}
        assert data.tags["trial.status"] == trial.outcome.value
        assert {"seed", "trial.config_hash", "trial.sample", "trial.is_baseline"} <= set(data.tags)
    assert found[-1].info.status == "FINISHED"
    assert {"spec.yaml", "space.json"} <= {each.path for each in client.list_artifacts(found[-1].info.run_id)}
    for name in ("trials_done", f"best_{read_result(run).metric.name}", "gpu_hours"):
        history = client.get_metric_history(found[-1].info.run_id, name)
        steps = [(step, {"trials_done": float(step), **values}) for step, values in progress(read_result(run))]
        expected = [(step, values[name]) for step, values in steps if name in values]
        assert sorted((point.step, point.value) for point in history) == expected, name


def check_whole(run: Path, budget: int, before: Mapping[int, str], *, retrained: int = 0) -> SweepResult:
    """What holds at the end of every sweep, whatever happened: `before` is what `bits` said of the trials that were
    finished then; `retrained` epochs, at most, may have been trained twice in one trial."""
    result = read_result(run)
    assert result.finished
    assert [trial.number for trial in result.trials] == list(range(budget)), "one record for each trial of the budget"
    assert bits(run, before) == dict(before), "finished trials are as they were"
    assert len({json.dumps(dict(trial.params)) for trial in result.trials}) == budget, "no configuration twice"
    for trial in result.trials:
        epochs = [one.epoch for one in trial.measurements]
        assert epochs == list(range(1, len(epochs) + 1)), (trial.number, epochs)
        trained = [line["epoch"] for line in lines(run / f"trials/{trial.number}/epochs.jsonl")]
        assert len(trained) - len(set(trained)) <= retrained, (trial.number, trained)
        if trial.outcome is Outcome.COMPLETED:
            assert trial.checkpoint is not None
            assert trial.checkpoint.exists()
    assert not (run / ".ray").exists()
    return result


def gone(pids: Iterable[int], seconds: float = 60.0) -> None:
    """Waits until none of the processes is left."""
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds, "the end of orphaned workers")
