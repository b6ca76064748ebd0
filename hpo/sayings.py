"""What is said of a trial and of a winner, whoever listens: plain values, ready for a queue. Knows no server."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hpo.datasets import Dataset, joint_digest
from hpo.result import TrialRecord
from model.metrics import VAL_MAP50, Metric
from schemas import dotted

NOT_CONFIGURED = ("results_dir", "encryption_key", "train.results_dir", "train.seed")
"""Keys of a spec that make no other configuration."""


class Model(NamedTuple):
    """The winner, for MLflow's registry."""

    name: str
    """That it is registered under."""
    trial: int
    metrics: Mapping[str, float]
    """What it was chosen and judged by."""
    params: Mapping[str, Any] = {}
    alias: str = "champion"
    remark: str = ""
    """On which images it was judged."""
    file: str = "model.onnx"


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What every run says of itself beside its own: the spec that it changes, the metric, the data."""

    metric: Metric = VAL_MAP50
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    datasets: Sequence[Dataset] = ()

    @property
    def data_tags(self) -> dict[str, str]:
        return {"dataset.digest": joint_digest(self.datasets)} if self.datasets else {}

    @property
    def inputs(self) -> list[dict[str, str]]:
        return [dataclasses.asdict(one) for one in self.datasets]

    def sweep(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The event that begins a sweep."""
        texts = {name: str(value) for name, value in params.items()}
        texts |= {f"dataset.{one.context}.digest": one.digest for one in self.datasets}
        metric = dataclasses.asdict(self.metric)
        return {"do": "begin", "params": texts, "metric": metric, "tags": self.data_tags, "datasets": self.inputs}

    def winner(self, model: Model, run: str, sha256: str) -> dict[str, Any]:
        """The event that registers a model."""
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        tags = {"trial.number": str(model.trial), **self.data_tags, "handed_over": made}
        tags |= {name: f"{value:.6g}" for name, value in model.metrics.items()}
        params = {name: str(value) for name, value in model.params.items()}
        about = f"Trial {model.trial} of {run}. {model.remark}".strip()
        return {
            "do": "model",
            **model._asdict(),
            "params": params,
            "sha256": sha256,
            "tags": tags,
            "description": about,
        }

    def trial(self, trial: TrialRecord, unfinished: str) -> dict[str, Any]:
        """The event that says all that is known of a trial; `unfinished` is its state when it has no outcome."""
        best = trial.best(self.metric)
        metrics = list[tuple[str, float, int]]()
        if trial.outcome is not None:
            metrics.append(("gpu_hours", trial.seconds * trial.gpus / 3600, trial.epochs))
            metrics += [(name, value, trial.epochs) for name, value in trial.costs.items()]
        if trial.outcome is not None and best is not None:
            metrics.append((f"best_{self.metric.name}", best.values[self.metric.name], best.epoch))
        return {
            "do": "trial",
            "number": trial.number,
            "plain": False,
            "state": unfinished if trial.outcome is None else trial.outcome.value,
            "params": {name: str(value) for name, value in trial.params.items()},
            "tags": {**_tags(trial), **self._configuration(trial), **self.data_tags},
            "datasets": self.inputs,
            "metrics": metrics,
            "measurements": [dataclasses.asdict(one) for one in trial.measurements],
        }

    def _configuration(self, trial: TrialRecord) -> dict[str, str]:
        """Which seed and what configuration: equal hashes are equal trainings, whatever the seed and the folder."""
        if not self.spec:
            return {}
        spec = dict(self.spec)
        for name, value in trial.params.items():
            spec = dotted.put(spec, name, value)
        seed = dotted.get(spec, "train.seed") if trial.seed is None else trial.seed
        for name in NOT_CONFIGURED:
            spec = dotted.put(spec, name, None)
        text = json.dumps(spec, sort_keys=True, default=str)
        return {"seed": str(seed), "trial.config_hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _tags(trial: TrialRecord) -> dict[str, str]:
    tags = {"trial.is_baseline": str(trial.baseline).lower(), "trial.sample": json.dumps(dict(trial.sample))}
    if trial.reason:
        tags["trial.reason"] = trial.reason
    if trial.adjustments:
        tags["trial.adjustments"] = "; ".join(trial.adjustments)
    if trial.checkpoint is not None:
        tags["trial.checkpoint"] = str(trial.checkpoint)
    if trial.repeats is not None:
        tags["trial.repeats"] = str(trial.repeats)
    if trial.outcome is not None:
        tags |= {"trial.seconds": f"{trial.seconds:.3f}", "trial.gpus": f"{trial.gpus:g}"}
    return tags
