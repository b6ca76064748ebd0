"""What the driver tells MLflow: a parent run for each sweep, a child for each trial, one batch for each epoch.

The study is the truth and this its copy. Everything goes into a queue on disk, and a thread says it in order, so the
training never waits for a server. While the server is away the queue grows; it is heard when the server is back, from
this process or from the next one. What an event means on the server is `hpo.mlflow_runs`.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpo.mlflow_runs import EXPERIMENT, MlflowRuns, RefusedError, UnreachableError
from hpo.outbox import Outbox
from hpo.result import Outcome, SweepResult, TrialRecord
from model.metrics import VAL_MAP50, Measurement, Metric

__all__ = ["EXPERIMENT", "QUEUE", "PlainRun", "Tracker", "plain_run", "tracking_uri"]

QUEUE = "tracking.jsonl"
"""In the run folder: what the server has not heard yet."""
LONGEST_PAUSE_S = 30.0
"""Between two tries to reach a server that is away."""
FAREWELL_S = 15.0
"""How long the end of a run waits for a server that says nothing; one that is not there is not waited for."""


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the results folder `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


class Tracker:
    """One parent run and its children. `name` is the run folder's; `note` is told when the server goes, when it is
    back, and what it has not heard in the end."""

    def __init__(self, root: Path, name: str, *, uri: str | None = None, note: Callable[[str], None] = print) -> None:
        self.uri, self._root, self._name = uri or tracking_uri(root), root.resolve(), name
        self._note = note
        self._queue: Outbox | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._refused = 0

    def begin(self, params: Mapping[str, Any], metric: Metric = VAL_MAP50) -> None:
        """Finds or makes the parent run."""
        texts = {name: str(value) for name, value in params.items()}
        self._say({"do": "begin", "params": texts, "metric": dataclasses.asdict(metric)})

    def child(self, trial: TrialRecord) -> None:
        """Finds or makes the run of a trial that starts, with the epochs that are known."""
        self._say(_record(trial, "running"))

    def log(self, number: int, measurement: Measurement) -> None:
        """One batch for an epoch of a trial."""
        self._say({"do": "epoch", "number": number, "measurement": dataclasses.asdict(measurement)})

    def finish(self, trial: TrialRecord) -> None:
        """Writes what the run of a trial lacks, and closes it."""
        self._say(_record(trial, "interrupted"))

    def catch_up(self, result: SweepResult) -> None:
        """Makes the runs say what the study says."""
        for trial in (*result.trials, *result.repeats):
            self.finish(trial)

    def end(self, result: SweepResult, *, state: str) -> None:
        """Writes whatever is missing and closes the parent. `state`: finished, interrupted, failed."""
        self.catch_up(result)
        tags, metrics = {"sweep.state": state, "mlflow.note.content": result.verdict()}, {}
        if result.best is not None:
            tags["sweep.best_trial"] = str(result.best.number)
            metrics[f"best_{result.metric.name}"] = result.best.value(result.metric)
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._say({"do": "end", "tags": tags, "metrics": metrics, "step": len(result.trials), "status": status})
        self.close()

    def close(self) -> None:
        """Waits until everything is heard, as long as somebody listens. The rest stays in the queue's file."""
        queue, thread = self._queue, self._thread
        if queue is None or thread is None:
            return
        queue.seal()
        self._ending.set()
        left, patience = len(queue), time.monotonic() + FAREWELL_S
        while thread.is_alive() and time.monotonic() < patience:
            thread.join(0.1)
            if len(queue) < left:
                left, patience = len(queue), time.monotonic() + FAREWELL_S
        queue.close()
        self._queue = self._thread = None
        if len(queue):
            self._note(
                f"MLflow at {self.uri} has not heard {len(queue)} events; they are kept in {queue.path}, and sent when "
                "this run is resumed or another one beside it begins."
            )
        if self._refused + queue.dropped:
            self._note(f"MLflow at {self.uri} did not take {self._refused + queue.dropped} events.")

    def _say(self, event: Mapping[str, Any]) -> None:
        if self._queue is None:
            # Here: two threads that import large libraries at once may trip over each other.
            import mlflow  # noqa: F401

            self._queue = Outbox(self._root / self._name / QUEUE)
            self._ending.clear()
            self._thread = threading.Thread(target=self._send, args=(self._queue,), daemon=True, name="mlflow")
            self._thread.start()
        self._queue.put({"uri": self.uri, **event})

    def _send(self, queue: Outbox) -> None:
        """The thread: says what is in the queue until it is heard."""
        _send_leftovers(self.uri, self._root)
        runs = MlflowRuns(self.uri, self._root, self._name)
        failures = 0
        while (event := queue.first()) is not None:
            try:
                runs.hear(event)
            except UnreachableError as error:
                failures += 1
                if failures == 2:
                    self._note(f"MLflow at {self.uri} cannot be written ({error}); events are kept, training goes on.")
                if self._ending.is_set() and failures > 1:
                    return
                self._ending.wait(min(LONGEST_PAUSE_S, 0.25 * 2**failures))
                continue
            except RefusedError as error:
                self._refused += 1
                if self._refused == 1:
                    self._note(f"MLflow at {self.uri} refuses an event: {error}")
            if failures > 1:
                self._note(f"MLflow at {self.uri} is back; {len(queue)} events follow.")
            failures = 0
            queue.heard()


def _send_leftovers(uri: str, root: Path) -> None:
    """Says what ended runs in the folder `root` could not; the first trouble ends it."""
    for path in sorted(root.glob(f"*/{QUEUE}")):
        if path.stat().st_size == 0:
            continue
        queue = Outbox(path)
        queue.seal()
        runs = MlflowRuns(uri, root, path.parent.name)
        try:
            while queue.held and (event := queue.first()) is not None and event["uri"] == uri:
                runs.hear(event)
                queue.heard()
        except (UnreachableError, RefusedError):
            return
        finally:
            queue.close()


class PlainRun:
    """One run without a parent, for a training without a search; the same tags and metrics as a trial's."""

    def __init__(self, tracker: Tracker, trial: TrialRecord) -> None:
        self._tracker, self._trial = tracker, trial
        tracker._say({**_record(trial, "running"), "plain": True})

    def log(self, measurement: Measurement) -> None:
        self._trial = dataclasses.replace(self._trial, measurements=(*self._trial.measurements, measurement))
        self._tracker.log(self._trial.number, measurement)

    def finish(self, outcome: Outcome, *, reason: str | None = None, checkpoint: Path | None = None) -> None:
        ended = dataclasses.replace(self._trial, outcome=outcome, reason=reason, checkpoint=checkpoint)
        self._tracker._say({**_record(ended, ""), "plain": True})
        self._tracker.close()


def plain_run(
    run_dir: Path, params: Mapping[str, Any], *, uri: str | None = None, note: Callable[[str], None] = print
) -> PlainRun:
    """The MLflow run of a training without a search in `run_dir`. `params`: the spec values worth a column."""
    record = TrialRecord(
        number=0,
        baseline=True,
        outcome=None,
        reason=None,
        sample={},
        params=params,
        adjustments=(),
        measurements=(),
        seconds=0.0,
        checkpoint=None,
    )
    return PlainRun(Tracker(run_dir.parent, run_dir.name, uri=uri, note=note), record)


def _record(trial: TrialRecord, unfinished: str) -> dict[str, Any]:
    """The event that says all that is known of a trial; `unfinished` is its state when it has no outcome."""
    tags = {"trial.is_baseline": str(trial.baseline).lower(), "trial.sample": json.dumps(dict(trial.sample))}
    if trial.reason:
        tags["trial.reason"] = trial.reason
    if trial.adjustments:
        tags["trial.adjustments"] = "; ".join(trial.adjustments)
    if trial.checkpoint is not None:
        tags["trial.checkpoint"] = str(trial.checkpoint)
    return {
        "do": "trial",
        "number": trial.number,
        "plain": False,
        "state": unfinished if trial.outcome is None else trial.outcome.value,
        "params": {name: str(value) for name, value in trial.params.items()},
        "tags": tags,
        "measurements": [dataclasses.asdict(one) for one in trial.measurements],
    }
