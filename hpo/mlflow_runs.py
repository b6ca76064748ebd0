"""The runs of one sweep on an MLflow server, or in its database. Knows what each event means there, not when it comes.

Runs are found by their tags and epochs by their step, so an event told twice changes nothing: also when the first time
nobody knows whether it arrived.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import mlflow_models
from hpo import mlflow_values as values
from hpo.mlflow_store import connect, database_of, experiment_of, quoted, search_runs, without_secrets
from hpo.mlflow_values import LAST_POINT, LAST_STEP
from hpo.result import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient

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


POINTS_AT_ONCE = 900
"""Metrics in one request; MLflow takes a thousand."""


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
    """Epochs, or of the parent finished trials, that are there; None: to be asked for."""
    datasets: frozenset[str] = frozenset()
    """Contexts of the inputs that are there."""

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
            text = without_secrets(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", self.uri)
            refused = self._api is not None and isinstance(error, MlflowException) and error.error_code in REFUSALS
            self._api = None  # nobody knows what arrived: look again
            raise RefusedError(text) if refused else UnreachableError(text) from error

    def _connected(self) -> "MlflowClient":
        if self._api is None:
            client = connect(self.uri)
            self._experiment = experiment_of(client, self._root, self.uri)
            self._find(client)
            self._api = client
        return self._api

    def _tell(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        match event["do"]:
            case "begin":
                self._begin(client, event)
            case "trial":
                self._trial(client, event)
            case "epoch":
                self._epoch(client, event["number"], event["measurement"])
            case "progress":
                self._progress(client, event)
            case "files":
                self._files(client, event)
            case "model":
                self._model(client, event)
            case "end":
                self._end(client, event)

    def _find(self, client: "MlflowClient") -> None:
        """Learns which runs there are. A request that was given up may still have been carried out, so there may be two
        of one: the one that holds more stays."""
        groups: dict[int, list[Any]] = {}
        for run in search_runs(client, self._experiment, f"tags.`{SWEEP}` = '{quoted(self._id)}'"):
            groups.setdefault(int(run.data.tags.get(NUMBER, -1)), []).append(run)
        self._parent, self._children = None, {}
        for number, runs in groups.items():
            first, *others = sorted(runs, key=lambda run: (-len(run.data.metrics), run.info.start_time))
            for other in others:
                client.delete_run(other.info.run_id)
            found = _Run(first.info.run_id, first.data.tags, first.data.params, first.info.status)
            found.datasets = values.contexts(first)
            if number < 0:
                self._parent = found
            else:
                self._children[number] = found

    def _begin(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        parent, params, metric = self._ensure_parent(client), event["params"], event["metric"]
        tags = {"sweep.state": "running", **event.get("tags", {})}
        # A resumed sweep may have another budget, and MLflow's parameters never change.
        new = {name: value for name, value in params.items() if name not in parent.params}
        changed = {name: value for name, value in params.items() if parent.params.get(name, value) != value}
        if changed:
            tags["sweep.changed_params"] = json.dumps(changed)
        client.log_batch(parent.id, params=values.params(new), tags=values.tags(tags))
        parent.params = {**params, **parent.params}
        client.update_run(parent.id, status="RUNNING")
        self._inputs(client, parent, event)
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.name", metric["name"])
        better = str(metric["goal"] == "maximize").lower()
        client.set_experiment_tag(self._experiment, "mlflow.experiment.primaryMetric.greaterIsBetter", better)

    def _inputs(self, client: "MlflowClient", run: _Run, event: Mapping[str, Any]) -> None:
        new = [one for one in event.get("datasets", ()) if one["context"] not in run.datasets]
        if new:
            client.log_inputs(run.id, datasets=values.dataset_inputs(new))
            run.datasets |= {one["context"] for one in new}

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
        params = {name: str(value)[: values.LONGEST_TEXT] for name, value in event["params"].items()}
        changed = {name: value for name, value in params.items() if run.params.get(name, value) != value}
        if changed:
            tags["trial.changed_params"] = json.dumps(changed)
        known = self._steps(client, run)
        missing = [one for one in measurements if one["epoch"] not in known]
        client.log_batch(
            run.id,
            metrics=[*(point for one in missing for point in values.points(one)), *values.closing(event)],
            params=values.params({name: value for name, value in params.items() if name not in run.params}),
            tags=values.tags(tags),
        )
        known.update(one["epoch"] for one in missing)
        self._inputs(client, run, event)
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
            client.log_batch(run.id, metrics=values.points(measurement))
            known.add(measurement["epoch"])

    def _steps(self, client: "MlflowClient", run: _Run, last: str = LAST_POINT) -> set[int]:
        if run.steps is None:
            run.steps = {point.step for point in client.get_metric_history(run.id, last)}
        return run.steps

    def _progress(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        parent = self._ensure_parent(client)
        known = self._steps(client, parent, LAST_STEP)
        missing = [(step, found) for step, found in event["points"] if step not in known]
        points = [point for step, found in missing for point in values.sweep_points(step, found)]
        for start in range(0, max(len(points), 1), POINTS_AT_ONCE):
            client.log_batch(parent.id, metrics=points[start : start + POINTS_AT_ONCE], tags=values.tags(event["tags"]))
        known.update(step for step, _ in missing)

    def _whole(self, client: "MlflowClient", event: Mapping[str, Any]) -> _Run | None:
        """The run that stands for the whole folder: the parent, or a plain training's own."""
        return self._children.get(0) if event["plain"] else self._ensure_parent(client)

    def _files(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        """Those that are there. Whatever is wrong with a store of files, the numbers after it must get through."""
        run = self._whole(client, event)
        if run is None:
            return
        for name in event["files"]:
            if (self.folder / name).is_file():
                with _stored(name):
                    client.log_artifact(run.id, str(self.folder / name))

    def _model(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        run = self._whole(client, event)
        if run is None:
            return
        tags = {**event["tags"], SWEEP: self._id}
        about = {**event, "tags": tags, "served": database_of(self.uri) is None}
        with _stored(event["file"]):
            address = mlflow_models.register(client, self._experiment, run.id, self.folder, about)
        if address is not None:
            known = client.get_run(run.id).data.metrics
            points = [point for name, value in event["metrics"].items() if known.get(name) != value
                      for point in values.single(name, value, event["trial"])]  # fmt: skip
            model = {
                "sweep.model": address,
                "sweep.model_alias": event["alias"],
                "sweep.model_trial": str(event["trial"]),
            }
            client.log_batch(run.id, metrics=points, tags=values.tags(model))

    def _end(self, client: "MlflowClient", event: Mapping[str, Any]) -> None:
        self._find(client)
        parent = self._ensure_parent(client)
        client.log_batch(parent.id, tags=values.tags(event["tags"]))
        client.set_terminated(parent.id, event["status"])


@contextmanager
def _stored(name: str) -> Iterator[None]:
    """What goes wrong in a store of files has the type of whatever library reaches it."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError):
        raise
    except Exception as error:
        raise RefusedError(f"{name} cannot be stored ({type(error).__name__}: {error})") from error
