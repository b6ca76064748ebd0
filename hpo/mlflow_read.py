"""What MLflow says of a run, read back: its trials with parameters, metric and cost. Writes nothing; prints nothing."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.errors import TrackingError
from hpo.mlflow_store import EXPERIMENT, connect, database_of, quoted, search_runs, shown, without_secrets
from model.metrics import VAL_MAP50, Metric

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One child run, or the one run of a training without a search."""

    run: str
    """Name of the run folder."""
    number: int
    state: str
    """running, interrupted, or an Outcome's value."""
    baseline: bool
    repeats: int | None
    value: float | None
    """The metric at its best epoch."""
    epochs: int
    seconds: float
    gpu_hours: float
    params: Mapping[str, str]
    seed: str
    config_hash: str
    note: str
    """Reason and adjustments."""


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    plain: bool
    state: str
    """Of a search: running, finished, interrupted, failed; of a plain training its only trial's."""
    metric: Metric
    trials: tuple[Trial, ...]
    """In the order of numbers."""


def read_run(uri: str, run_dir: Path) -> Run:
    """Raises TrackingError where MLflow cannot be read, or has not heard of the run."""
    if (database := database_of(uri)) is not None and not database.is_file():
        raise _unknown(uri, run_dir, f"there is no file {database}")
    with _readable(uri):
        client = connect(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise _unknown(uri, run_dir, f"it has no experiment `{EXPERIMENT}`")
        query = f"tags.`sweep.id` = '{quoted(str(run_dir))}'"
        found = list(search_runs(client, experiment.experiment_id, query))
        if not found:
            raise _unknown(uri, run_dir, "it has never heard of it")
        parent = next((each for each in found if "trial.number" not in each.data.tags), None)
        metric = _metric(parent, experiment.tags)
        children = [each for each in found if "trial.number" in each.data.tags]
        trials = [_trial(client, each, run_dir.name, metric) for each in children]
    states = [trial.state for trial in trials]
    return Run(
        name=run_dir.name,
        plain=parent is None,
        state=states[0] if parent is None else parent.data.tags.get("sweep.state", "running"),
        metric=metric,
        trials=tuple(sorted(trials, key=lambda trial: trial.number)),
    )


def _metric(parent: Any, tags: Mapping[str, str]) -> Metric:
    name = VAL_MAP50.name if parent is None else parent.data.params.get("metric", VAL_MAP50.name)
    named = tags.get("mlflow.experiment.primaryMetric.name") == name
    if named and tags.get("mlflow.experiment.primaryMetric.greaterIsBetter") == "false":
        return Metric(name, "minimize")
    return Metric(name, "maximize")


def _trial(client: "MlflowClient", run: Any, name: str, metric: Metric) -> Trial:
    tags, metrics = run.data.tags, run.data.metrics
    value = metrics.get(f"best_{metric.name}")
    if value is None and metric.name in metrics:  # still running: the latest epoch need not be the best
        pick = max if metric.goal == "maximize" else min
        value = pick(point.value for point in client.get_metric_history(run.info.run_id, metric.name))
    notes = [tags[key] for key in ("trial.reason", "trial.adjustments") if key in tags]
    return Trial(
        run=name,
        number=int(tags["trial.number"]),
        state=tags.get("trial.status", "running"),
        baseline=tags.get("trial.is_baseline") == "true",
        repeats=int(tags["trial.repeats"]) if "trial.repeats" in tags else None,
        value=None if value is None or not math.isfinite(value) else value,
        epochs=int(tags.get("trial.epochs", 0)),
        seconds=float(tags.get("trial.seconds", metrics.get("seconds", 0.0))),
        gpu_hours=metrics.get("gpu_hours", 0.0),
        params={**run.data.params, **json.loads(tags.get("trial.changed_params", "{}"))},
        seed=tags.get("seed", ""),
        config_hash=tags.get("trial.config_hash", ""),
        note="; ".join(notes),
    )


def _unknown(uri: str, run_dir: Path, why: str) -> TrackingError:
    mend = (
        f"`ddetr resume {run_dir}` tells it everything again, from the run's own study"
        if (run_dir / "study.db").is_file()
        else "the run's own folder still has its numbers"
    )
    return TrackingError(
        f"MLflow at {shown(uri)} must know the run {run_dir.name}, but {why}; if the run was tracked elsewhere, set "
        f"MLFLOW_TRACKING_URI to that, else {mend}."
    )


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        text = without_secrets((str(error).splitlines() or [type(error).__name__])[0], uri)
        raise TrackingError(
            f"MLflow at {shown(uri)} must answer, but does not ({text[:200]}); start it, or set MLFLOW_TRACKING_URI to "
            "where the run was tracked."
        ) from error
