"""Measurements, parameters and tags as MLflow takes them. Knows its limits; knows no run and no connection."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_TEXT = 5000
"""Below every limit of MLflow on a parameter or a tag."""
LAST_POINT = "seconds"
"""Every epoch has this metric, written last: an epoch that has it is complete."""
LAST_STEP = "trials_done"
"""The same of the parent, whose steps are finished trials."""


def points(measurement: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = dict(measurement["values"])
    # An event of an earlier version has fewer.
    beside = {name: measurement.get(name) for name in ("images_per_second", "peak_gpu_bytes", "peak_rss_bytes")}
    values |= {name: float(value) for name, value in beside.items() if value}
    if "peak_gpu_bytes" in values or "peak_rss_bytes" in values:
        values["peak_memory_bytes"] = values.get("peak_gpu_bytes") or values["peak_rss_bytes"]
    values[LAST_POINT] = measurement["seconds"]
    return [Metric(name, value, now, measurement["epoch"]) for name, value in values.items() if math.isfinite(value)]


def sweep_points(step: int, values: Mapping[str, float]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in [*values.items(), (LAST_STEP, float(step))]]


def single(name: str, value: float, step: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, int(time.time() * 1000), step)] if math.isfinite(value) else []


def closing(event: Mapping[str, Any]) -> list[Any]:
    """The numbers of a trial as a whole, when it has ended."""
    return [point for name, value, step in event.get("metrics", ()) for point in single(name, value, step)]


def contexts(run: Any) -> frozenset[str]:
    """Of the datasets that a run of MLflow has: train, val, test."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return frozenset(tag.value for one in inputs for tag in one.tags if tag.key == "mlflow.data.context")


def params(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value[:LONGEST_TEXT]) for name, value in values.items()]


def tags(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value[:LONGEST_TEXT]) for name, value in values.items()]


def dataset_inputs(datasets: Iterable[Mapping[str, str]]) -> list[Any]:
    """`datasets`: name, digest, source and context of each."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(one["name"], one["digest"], "local", one["source"]),
            [InputTag("mlflow.data.context", one["context"])],
        )
        for one in datasets
    ]
