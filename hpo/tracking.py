"""What the driver tells MLflow: a parent run for each sweep, a child for each trial, one batch for each epoch.

The study is the truth and this its copy. Everything goes into a queue on disk, and a thread says it in order, so the
training never waits for a server. While the server is away the queue grows; it is heard when the server is back, from
this process or from the next one. What an event means on the server is `hpo.mlflow_runs`. Files travel by name: what is
heard late is what the run folder holds then.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.mlflow_runs import MlflowRuns, RefusedError, UnreachableError
from hpo.mlflow_store import EXPERIMENT, database_of, shown, tracking_uri
from hpo.outbox import Outbox
from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.sayings import About, Model
from hpo.summary import progress, summary
from model.metrics import Measurement

__all__ = ["EXPERIMENT", "QUEUE", "About", "Model", "PlainRun", "Tracker", "plain_run", "send_kept", "tracking_uri"]

QUEUE = "tracking.jsonl"
"""In the run folder: what the server has not heard yet."""
LONGEST_PAUSE_S = 30.0
"""Between two tries to reach a server that is away."""
FAREWELL_S = 15.0
"""How long the end of a run waits for a server that says nothing; one that is not there is not waited for."""
SLOW_S = 180.0
"""The same for a database here, which on a busy machine takes half a minute to be made, and is never away."""
SUMMARY_SHARE = 0.01
"""Most of the driver's time that summaries may take while the sweep runs; each lists all trials."""
FIRST_FILES = ("spec.yaml", "space.json", "datasets.json")
LAST_FILES = (*FIRST_FILES, "handoff.json", "delivery.json", "report.html", "report.md", "model.onnx.json")
"""Of the run folder, as far as they are there; model.onnx is in the logged model."""


class Tracker:
    """One parent run and its children. `name` is the run folder's; `note` is told when the server goes, when it is
    back, and what it has not heard in the end."""

    def __init__(self, root: Path, name: str, *, uri: str | None = None, note: Callable[[str], None] = print) -> None:
        self.uri, self._root, self._name = uri or tracking_uri(root), root.resolve(), name
        self._shown, self._note = shown(self.uri), note
        self._about = About()
        self._queue: Outbox | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._refused = 0
        self._next_summary = 0.0

    def describe(self, about: About) -> None:
        """What every run is to say of itself from now on."""
        self._about = about

    def begin(self, params: Mapping[str, Any]) -> None:
        """Finds or makes the parent run."""
        self._say(self._about.sweep(params))
        self.keep(FIRST_FILES)

    def child(self, trial: TrialRecord) -> None:
        """Finds or makes the run of a trial that starts, with the epochs that are known."""
        self._say(self._about.trial(trial, "running"))

    def log(self, number: int, measurement: Measurement) -> None:
        """One batch for an epoch of a trial."""
        self._say({"do": "epoch", "number": number, "measurement": dataclasses.asdict(measurement)})

    def finish(self, trial: TrialRecord) -> None:
        """Writes what the run of a trial lacks, and closes it."""
        self._say(self._about.trial(trial, "interrupted"))

    def progress(self, result: SweepResult) -> None:
        """A trial has ended: the best so far, what was spent, and the summary, where the last one is not too fresh."""
        begun, page = time.monotonic(), None
        if begun >= self._next_summary:
            page = summary(result)
            self._next_summary = begun + (time.monotonic() - begun) / SUMMARY_SHARE
        self._say_progress(progress(result)[-1:], page)

    def keep(self, files: Sequence[str], *, plain: bool = False) -> None:
        """Files of the run folder become artifacts of its run, those that are there when it is heard."""
        self._say({"do": "files", "files": list(files), "plain": plain})

    def register(self, model: Model, sha256: str, *, plain: bool = False) -> None:
        """The winner, and only it, as a logged and registered model."""
        import mlflow.onnx  # noqa: F401 - here, for the reason that `_say` has

        self._say({**self._about.winner(model, self._name, sha256), "plain": plain})

    def catch_up(self, result: SweepResult) -> None:
        """Makes the runs say what the study says."""
        for trial in (*result.trials, *result.repeats):
            self.finish(trial)
        self._say_progress(progress(result), summary(result))

    def end(self, result: SweepResult, *, state: str) -> None:
        """Writes whatever is missing and closes the parent. `state`: finished, interrupted, failed."""
        self.catch_up(result)
        self.keep(LAST_FILES)
        tags = {"sweep.state": state, "mlflow.note.content": summary(result)}
        if result.ended:
            tags["sweep.ended"] = result.ended
        if result.best is not None:
            tags["sweep.best_trial"] = str(result.best.number)
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._say({"do": "end", "tags": tags, "status": status})
        self.close()

    def close(self) -> bool:
        """Waits until everything is heard, as long as somebody listens. The rest stays in the queue's file. Whether
        nothing is left."""
        queue, thread = self._queue, self._thread
        if queue is None or thread is None:
            return True
        queue.seal()
        self._ending.set()
        longest = FAREWELL_S if database_of(self.uri) is None else SLOW_S
        left, patience = len(queue), time.monotonic() + longest
        while thread.is_alive() and time.monotonic() < patience:
            thread.join(0.1)
            if len(queue) < left:
                left, patience = len(queue), time.monotonic() + longest
        queue.close()
        self._queue = self._thread = None
        if len(queue):
            self._note(
                f"MLflow at {self._shown} has not heard {len(queue)} events; they are kept in {queue.path}, and sent "
                "when this run is compared or resumed, or another one beside it begins."
            )
        if self._refused + queue.dropped:
            self._note(f"MLflow at {self._shown} did not take {self._refused + queue.dropped} events.")
        return not len(queue) and not self._refused + queue.dropped

    def _say(self, event: Mapping[str, Any]) -> None:
        if self._queue is None:
            # Here: two threads that import large libraries at once may trip over each other.
            import mlflow  # noqa: F401

            self._queue = Outbox(self._root / self._name / QUEUE)
            self._ending.clear()
            self._thread = threading.Thread(target=self._send, args=(self._queue,), daemon=True, name="mlflow")
            self._thread.start()
        self._queue.put({"uri": self._shown, **event})

    def _say_progress(self, points: Sequence[tuple[int, Mapping[str, float]]], page: str | None) -> None:
        tags = {} if page is None else {"mlflow.note.content": page}
        self._say({"do": "progress", "points": points, "tags": tags})

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
                    self._note(
                        f"MLflow at {self._shown} cannot be written ({error}); events are kept, training goes on."
                    )
                if self._ending.is_set() and failures > 1:
                    return
                self._ending.wait(min(LONGEST_PAUSE_S, 0.25 * 2**failures))
                continue
            except RefusedError as error:
                self._refused += 1
                if self._refused == 1:
                    self._note(f"MLflow at {self._shown} refuses an event: {error}")
            if failures > 1:
                self._note(f"MLflow at {self._shown} is back; {len(queue)} events follow.")
            failures = 0
            queue.heard()


def _send_leftovers(uri: str, root: Path) -> None:
    """Says what ended runs in the folder `root` could not; the first trouble ends it."""
    for path in sorted(root.glob(f"*/{QUEUE}")):
        try:
            send_kept(uri, path.parent)
        except (UnreachableError, RefusedError):
            return


def send_kept(uri: str, run_dir: Path) -> int:
    """Says what an earlier process of this run could not, unless one is at work. How many events were heard; raises
    UnreachableError, RefusedError."""
    path, heard = run_dir / QUEUE, 0
    if not path.is_file() or path.stat().st_size == 0:
        return 0
    queue = Outbox(path)
    queue.seal()
    runs = MlflowRuns(uri, run_dir.parent, run_dir.name)
    try:
        while queue.held and (event := queue.first()) is not None and event["uri"] in (uri, shown(uri)):
            runs.hear(event)
            queue.heard()
            heard += 1
    finally:
        queue.close()
    return heard


class PlainRun:
    """One run without a parent, for a training without a search; the same tags and metrics as a trial's."""

    def __init__(self, tracker: Tracker, trial: TrialRecord) -> None:
        self._tracker, self._trial = tracker, trial
        tracker._say({**tracker._about.trial(trial, "running"), "plain": True})
        tracker.keep(FIRST_FILES, plain=True)

    def log(self, measurement: Measurement) -> None:
        self._trial = dataclasses.replace(self._trial, measurements=(*self._trial.measurements, measurement))
        self._tracker.log(self._trial.number, measurement)

    def finish(
        self,
        outcome: Outcome,
        *,
        reason: str | None = None,
        checkpoint: Path | None = None,
        adjustments: Sequence[str] = (),
    ) -> None:
        seconds = self._trial.measurements[-1].seconds if self._trial.measurements else 0.0
        ended = dataclasses.replace(
            self._trial,
            outcome=outcome,
            reason=reason,
            checkpoint=checkpoint,
            adjustments=tuple(adjustments),
            seconds=seconds,
        )
        self._tracker._say({**self._tracker._about.trial(ended, ""), "plain": True})
        self._tracker.close()


def plain_run(
    run_dir: Path,
    params: Mapping[str, Any],
    *,
    about: About | None = None,
    gpus: float = 0.0,
    uri: str | None = None,
    note: Callable[[str], None] = print,
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
        gpus=gpus,
    )
    tracker = Tracker(run_dir.parent, run_dir.name, uri=uri, note=note)
    tracker.describe(about or About())
    return PlainRun(tracker, record)
