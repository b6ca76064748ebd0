"""The runs of one sweep on an MLflow server, or in its database. Knows what each event means there, not when it comes.

Runs are found by their tags and epochs by their step, so an event told twice changes nothing: also when the first time
nobody knows whether it arrived. The only module that imports mlflow.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hpo.result import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ddetr"
SWEEP, NUMBER, STATUS, EPOCHS = "sweep.id", "trial.number", "trial.status", "trial.epochs"
RUN_STATUS = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    Outcome.COMPLETED.value: "FINISHED",
    Outcome.PRUNED.value: "KILLED",  # MLflow has no word for it; its own Optuna storage writes KILLED too
}
"""Any other outcome is FAILED."""
REFUSALS = frozenset({
    "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND",
})  # fmt: skip
"""Answers that will be the same next time. All others may pass: a server away, starting, full, asking who we are."""
LONGEST_TEXT = 5000
"""Below every limit of MLflow on a parameter or a tag."""


class UnreachableError(Exception):
    """The server did not answer, or not now. The message is its first line."""


class RefusedError(Exception):
    """The server will not take this event, whenever it comes."""


@dataclass
class _Run:
    id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    steps: set[int] | None = None
    """Epochs that are there; None: to be asked for."""

    def says(self, status: str, tags: Mapping[str, str]) -> bool:
        """Whether this state was the last thing written, with as many epochs."""
        return self.status == status and all(self.tags.get(name) == tags[name] for name in (STATUS, EPOCHS))


class MlflowRuns:
    """The parent run `name` of the results folder `root`, and its children by number."""

    def __init__(self, uri: str, root: Path, name: str) -> None:
        self.uri, self.folder = uri, root / name
        self._root, self._name = root, name
        self._id = str(self.folder)
        """Unique over the results folders that may share a server."""
        self._api: MlflowClient | None = None
        self._experiment = ""
        self._parent: _Run | None = None
        self._children: dict[int, _Run] = {}

    def hear(self, event: Mapping[str, Any]) -> None:
        """Makes the server hold what `event` says. Raises UnreachableError, RefusedError."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            client = self._connected()
            try:
                self._tell(client, event)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self._find(client)  # somebody may have deleted a run, or emptied the store
                self._tell(client, event)
        except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
            text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            refused = self._api is not None and isinstance(error, MlflowException) and error.error_code in REFUSALS
            self._api = None  # nobody knows what arrived: look again
            raise RefusedError(text) if refused else UnreachableError(text) from error

    def _connected(self) -> "MlflowClient":
        if self._api is None:
            client = _connect(self.uri)
            self._experiment = _experiment(client, self._root, self.uri)
            self._find(client)
            self._api = client
        return self._api

    def _tell(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        match event["do"]:
            case "begin":
                self._begin(client, event["params"], event["metric"])
            case "trial":
                self._trial(client, event)
            case "epoch":
                self._epoch(client, event["number"], event["measurement"])
            case "end":
                self._end(client, event)

    def _find(self, client: "MlflowClient") -> None:
        """Learns which runs there are. A request that was given up may still have been carried out, so there may be two
        of one: the one that holds more stays."""
        groups: dict[int, list[Any]] = {}
        for run in _search(client, self._experiment, f"tags.`{SWEEP}` = '{_quoted(self._id)}'"):
            groups.setdefault(int(run.data.tags.get(NUMBER, -1)), []).append(run)
        self._parent, self._children = None, {}
        for number, runs in groups.items():
            first, *others = sorted(runs, key=lambda run: (-len(run.data.metrics), run.info.start_time))
            for other in others:
                client.delete_run(other.info.run_id)
            found = _Run(first.info.run_id, first.data.tags, first.data.params, first.info.status)
            if number < 0:
                self._parent = found
            else:
                self._children[number] = found

    def _begin(self, client: "MlflowClient", params: Mapping[str, str], metric: Mapping[str, str]) -> None:
        parent = self._ensure_parent(client)
        # A resumed sweep may have another budget, and MLflow's parameters never change.
        new = {name: value for name, value in params.items() if name not in parent.params}
        client.log_batch(parent.id, params=_params(new), tags=_tags({"sweep.state": "running"}))
        client.update_run(parent.id, status="RUNNING")
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.name", metric["name"])
        better = str(metric["goal"] == "maximize").lower()
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.greaterIsBetter", better)

    def _ensure_parent(self, client: "MlflowClient") -> _Run:
        if self._parent is None:
            self._parent = self._create(client, self._name, {})
        return self._parent

    def _create(self, client: "MlflowClient", name: str, tags: Mapping[str, str]) -> _Run:
        run = client.create_run(self._experiment, run_name=name, tags={SWEEP: self._id, **tags})
        return _Run(run.info.run_id, steps=set())

    def _trial(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        """The whole record of a trial: the run is made, its missing epochs are added, its state is set."""
        state, measurements = event["state"], event["measurements"]
        status = RUN_STATUS.get(state, "FAILED")
        tags = {STATUS: state, EPOCHS: str(len(measurements)), **event["tags"]}
        run = self._children.get(event["number"])
        if run is not None and state != "running" and run.says(status, tags):
            return
        if run is None:
            run = self._children[event["number"]] = self._create_child(client, event)
        params = {name: str(value)[:LONGEST_TEXT] for name, value in event["params"].items()}
        changed = {name: value for name, value in params.items() if run.params.get(name, value) != value}
        if changed:
            tags["trial.changed_params"] = json.dumps(changed)
        known = self._steps(client, run)
        missing = [one for one in measurements if one["epoch"] not in known]
        client.log_batch(
            run.id,
            metrics=[point for one in missing for point in _points(one)],
            params=_params({name: value for name, value in params.items() if name not in run.params}),
            tags=_tags(tags),
        )
        known.update(one["epoch"] for one in missing)
        if status == "RUNNING":
            client.update_run(run.id, status=status)
        else:
            client.set_terminated(run.id, status)
        run.status, run.tags, run.params = status, tags, {**params, **run.params}

    def _create_child(self, client: "MlflowClient", event: Mapping[str, Any]) -> _Run:
        number = event["number"]
        tags = {NUMBER: str(number)}
        if event["plain"]:
            return self._create(client, self._name, tags)
        tags["mlflow.parentRunId"] = self._ensure_parent(client).id
        return self._create(client, f"trial-{number:03d}", tags)

    def _epoch(self, client: "MlflowClient", number: int, measurement: Mapping[str, Any]) -> None:
        run = self._children.get(number)
        if run is None:
            return  # made and filled when the trial ends
        known = self._steps(client, run)
        if measurement["epoch"] not in known:
            client.log_batch(run.id, metrics=_points(measurement))
            known.add(measurement["epoch"])

    def _steps(self, client: "MlflowClient", run: _Run) -> set[int]:
        if run.steps is None:
            run.steps = {point.step for point in client.get_metric_history(run.id, LAST_POINT)}
        return run.steps

    def _end(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        self._find(client)
        parent = self._ensure_parent(client)
        for name, value in event["metrics"].items():
            client.log_metric(parent.id, name, value, step=event["step"])
        client.log_batch(parent.id, tags=_tags(event["tags"]))
        client.set_terminated(parent.id, event["status"])


LAST_POINT = "seconds"
"""Every epoch has this metric, written last: an epoch that has it is complete."""


def _points(measurement: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = dict(measurement["values"])
    if measurement["peak_gpu_bytes"]:
        values["peak_gpu_bytes"] = float(measurement["peak_gpu_bytes"])
    values[LAST_POINT] = measurement["seconds"]
    return [Metric(name, value, now, measurement["epoch"]) for name, value in values.items() if math.isfinite(value)]


def _params(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value[:LONGEST_TEXT]) for name, value in values.items()]


def _tags(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value[:LONGEST_TEXT]) for name, value in values.items()]


def _connect(uri: str) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The queue tries again itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for every trial
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


def _search(client: "MlflowClient", experiment: str, query: str) -> Iterable[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
