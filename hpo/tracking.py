"""MLflow, written by the driver only: a parent run for each sweep, a child for each trial, in batches while trials run.

The study is the truth and this its copy: runs are found again by their tags, so writing the same thing twice changes
nothing, and what an outage lost is written again when the sweep ends or is resumed. Trouble with the server never
reaches the training. The only module that imports mlflow.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hpo.result import Outcome, SweepResult, TrialRecord
from model.metrics import VAL_MAP50, Measurement, Metric

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ddetr"
SWEEP, NUMBER, STATUS = "sweep.id", "trial.number", "trial.status"
RUN_STATUS = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.PRUNED: "KILLED",  # MLflow has no word for it; its own Optuna storage writes KILLED too
    Outcome.INFEASIBLE: "FAILED",
    Outcome.FAILED: "FAILED",
    Outcome.LOST: "FAILED",
}
OUTAGE = 3
"""Failures in a row after which the server is left alone until the end of the sweep."""


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the results folder `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


class Tracker:
    """One parent run and its children. `name` is the run folder's; `note` is told, once, when something is lost."""

    def __init__(self, root: Path, name: str, *, uri: str | None = None, note: Callable[[str], None] = print) -> None:
        self.uri = uri or tracking_uri(root)
        self._root, self._name, self._note = root.resolve(), name, note
        self._id = str(self._root / name)
        """Unique over the results folders that may share a server."""
        self._api: MlflowClient | None = None
        self._experiment = ""
        self._parent: str | None = None
        self._children: dict[int, str] = {}
        self._failures = self._in_a_row = 0

    def begin(self, params: Mapping[str, Any], metric: Metric = VAL_MAP50) -> None:
        """Finds or makes the parent run; children of an earlier session are found too."""
        self._safely(self._begin, params, metric)

    def child(self, trial: TrialRecord) -> None:
        """Finds or makes the run of a trial."""
        self._safely(self._child, trial)

    def log(self, number: int, measurement: Measurement) -> None:
        """One batch for an epoch. A trial without a run, as after an outage, is caught up at the end."""
        if number in self._children:
            self._safely(self._log, self._children[number], measurement)

    def finish(self, trial: TrialRecord) -> None:
        self._safely(self._finish, trial)

    def end(self, result: SweepResult, *, state: str) -> None:
        """Writes whatever is missing and closes the parent. `state`: finished, interrupted, failed."""
        self._in_a_row = 0
        self._safely(self._end, result, state)
        if self._failures:
            self._note(
                f"MLflow at {self.uri}: {self._failures} writes failed; the study in the run folder is complete."
            )

    def catch_up(self, result: SweepResult) -> None:
        """Makes the runs say what the study says."""
        self._safely(self._catch_up, result)

    def _safely(self, write: Callable[..., None], *args: Any) -> None:
        if self._in_a_row >= OUTAGE:
            self._failures += 1
            return
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            write(*args)
            self._in_a_row = 0
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            self._failures += 1
            self._in_a_row += 1
            if self._failures == 1:
                reason = (str(error).splitlines() or [""])[0]
                self._note(
                    f"MLflow at {self.uri} cannot be written ({type(error).__name__}: {reason}); training goes on."
                )

    @property
    def _client(self) -> "MlflowClient":
        if self._api is None:
            self._api = _connect(self.uri)
            self._experiment = _experiment(self._api, self._root, self.uri)
        return self._api

    def _begin(self, params: Mapping[str, Any], metric: Metric) -> None:
        client = self._client
        found = self._runs(f"tags.`{SWEEP}` = '{_quoted(self._id)}'")
        self._children = {int(run.data.tags[NUMBER]): run.info.run_id for run in found if NUMBER in run.data.tags}
        parents = [run for run in found if NUMBER not in run.data.tags]
        tags = {"sweep.state": "running"}
        if parents:
            self._parent = parents[0].info.run_id
            client.update_run(self._parent, status="RUNNING")
        else:
            self._parent = self._create(self._name, tags)
            client.log_batch(self._parent, params=_params(params))
        for name, value in tags.items():
            client.set_tag(self._parent, name, value)
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.name", metric.name)
        better = str(metric.goal == "maximize").lower()
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.greaterIsBetter", better)

    def _child(self, trial: TrialRecord) -> None:
        if self._parent is None:
            return
        run = self._children.get(trial.number)
        if run is not None:
            self._client.update_run(run, status="RUNNING")
            self._client.set_tag(run, STATUS, "running")
            return
        tags = {
            NUMBER: str(trial.number),
            STATUS: "running",
            "trial.is_baseline": str(trial.baseline).lower(),
            "trial.sample": json.dumps(dict(trial.sample)),
            "mlflow.parentRunId": self._parent,
        }
        run = self._create(f"trial-{trial.number:03d}", tags)
        self._children[trial.number] = run
        self._client.log_batch(run, params=_params(trial.params))

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=name, tags={SWEEP: self._id, **tags})
        return str(run.info.run_id)

    def _log(self, run: str, measurement: Measurement) -> None:
        self._client.log_batch(run, metrics=_metrics(measurement))

    def _finish(self, trial: TrialRecord) -> None:
        if trial.number not in self._children:
            self._child(trial)
        run = self._children.get(trial.number)
        if run is None or trial.outcome is None:
            return
        tags = {STATUS: trial.outcome.value}
        if trial.reason:
            tags["trial.reason"] = trial.reason[:5000]
        if trial.adjustments:
            tags["trial.adjustments"] = "; ".join(trial.adjustments)[:5000]
        if trial.checkpoint is not None:
            tags["trial.checkpoint"] = str(trial.checkpoint)
        _close(self._client, run, tags, RUN_STATUS[trial.outcome])

    def _catch_up(self, result: SweepResult) -> None:
        for trial in result.trials:
            self._child_if_missing(trial)
            run = self._client.get_run(self._children[trial.number]) if trial.number in self._children else None
            if run is None:
                return
            self._log_missing(run, trial, result.metric)
            done = trial.outcome is not None and run.data.tags.get(STATUS) == trial.outcome.value
            if trial.outcome is not None and not (done and run.info.status == RUN_STATUS[trial.outcome]):
                self._finish(trial)

    def _child_if_missing(self, trial: TrialRecord) -> None:
        if trial.number not in self._children:
            self._child(trial)

    def _log_missing(self, run: Any, trial: TrialRecord, metric: Metric) -> None:
        if not trial.measurements or metric.name not in trial.measurements[-1].values:
            return
        known: set[int] = set()
        if metric.name in run.data.metrics:
            known = {one.step for one in self._client.get_metric_history(run.info.run_id, metric.name)}
        for measurement in trial.measurements:
            if measurement.epoch not in known:
                self._log(run.info.run_id, measurement)

    def _end(self, result: SweepResult, state: str) -> None:
        if self._parent is None:
            return
        self._catch_up(result)
        for trial in result.trials:
            if trial.outcome is None and trial.number in self._children:
                _close(self._client, self._children[trial.number], {STATUS: "interrupted"}, "KILLED")
        tags = {"sweep.state": state, "mlflow.note.content": result.verdict()}
        best = result.best
        if best is not None:
            tags["sweep.best_trial"] = str(best.number)
            value = best.value(result.metric)
            assert value is not None
            self._client.log_metric(self._parent, f"best_{result.metric.name}", value, step=len(result.trials))
        _close(
            self._client,
            self._parent,
            tags,
            "FINISHED" if state == "finished" else "FAILED" if state == "failed" else "KILLED",
        )

    def _runs(self, query: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


class PlainRun:
    """One run without a parent, for a training without a search; the same tags and metrics as a trial's."""

    def __init__(self, tracker: Tracker, trial: TrialRecord) -> None:
        self._tracker, self._number = tracker, trial.number
        tracker._safely(self._begin, trial)

    def _begin(self, trial: TrialRecord) -> None:
        tracker = self._tracker
        client = tracker._client
        found = tracker._runs(f"tags.`{SWEEP}` = '{_quoted(tracker._id)}'")
        if found:
            run = found[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            tags = {NUMBER: str(trial.number), STATUS: "running", "trial.is_baseline": "true"}
            run = tracker._create(tracker._name, tags)
            client.log_batch(run, params=_params(trial.params))
        tracker._children[trial.number] = run

    def log(self, measurement: Measurement) -> None:
        self._tracker.log(self._number, measurement)

    def finish(self, outcome: Outcome, *, reason: str | None = None, checkpoint: Path | None = None) -> None:
        run = self._tracker._children.get(self._number)
        if run is None:
            return
        tags = {STATUS: outcome.value}
        if reason:
            tags["trial.reason"] = reason[:5000]
        if checkpoint is not None:
            tags["trial.checkpoint"] = str(checkpoint)
        self._tracker._safely(_close, self._tracker._client, run, tags, RUN_STATUS[outcome])


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


def _connect(uri: str) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is away must not hold up the driver for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if urlparse(uri).scheme == "sqlite":
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def _experiment(client: "MlflowClient", root: Path, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server decides where artifacts go; for a local database the default would be the current folder.
    local = None if urlparse(uri).scheme in ("http", "https") else (root / "mlartifacts").as_uri()
    # So that the page opens on its training runs, not on its view for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(EXPERIMENT, artifact_location=local, tags=kind))


def _params(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)[:5000]) for name, value in values.items()]


def _metrics(measurement: Measurement) -> list[Any]:
    from mlflow.entities import Metric as Point

    now = int(time.time() * 1000)
    values = {**measurement.values, "seconds": measurement.seconds}
    if measurement.peak_gpu_bytes:
        values["peak_gpu_bytes"] = float(measurement.peak_gpu_bytes)
    return [Point(name, value, now, measurement.epoch) for name, value in values.items() if math.isfinite(value)]


def _close(client: "MlflowClient", run: str, tags: Mapping[str, str], status: str) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_terminated(run, status)


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
