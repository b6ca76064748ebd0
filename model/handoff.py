"""The one file through which a finished training reaches deployment. Knows no engine and no sweep."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, public_dict
from model.errors import CheckpointError
from model.metrics import VAL_MAP50, Metric
from model.whole import write_text

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Handoff:
    """Everything that deployment needs to know of a winner. Budget keys (epochs, intervals) are no part of it."""

    schema_version: int
    checkpoint: str
    """Path relative to the file, so that a run folder can be moved."""
    checkpoint_sha256: str
    model: Mapping[str, Any]
    """The `model` section of the resolved spec."""
    num_classes: int
    classes: Mapping[str, str]
    """Category id to name."""
    preprocessing: Mapping[str, Any]
    """mean, std (of RGB in 0..1); short_side, longest_side (pixels) of the evaluation resize."""
    metric: Mapping[str, Any]
    """name, goal, value on the validation data; value None without one."""
    budget: Mapping[str, float]
    """What was spent on the winner: epochs, seconds."""
    lineage: Mapping[str, Any]
    """Run id, trial number, seed, searched values."""

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        folder: Path,
        *,
        budget: Mapping[str, float],
        lineage: Mapping[str, Any],
        metric: Metric = VAL_MAP50,
    ) -> "Handoff":
        sizes = checkpoint.spec.dataset.augmentation
        return cls(
            schema_version=SCHEMA_VERSION,
            checkpoint=os.path.relpath(checkpoint.path, folder),
            checkpoint_sha256=checkpoint.sha256,
            model=public_dict(checkpoint.spec)["model"],
            num_classes=checkpoint.num_classes,
            classes={str(key): name for key, name in checkpoint.classes.items()},
            preprocessing={
                "mean": list(sizes.input_mean),
                "std": list(sizes.input_std),
                "short_side": sizes.test_random_resize,
                "longest_side": sizes.random_resize_max_size,
            },
            metric={"name": metric.name, "goal": metric.goal, "value": checkpoint.metrics.get(metric.name)},
            budget=dict(budget),
            lineage=dict(lineage),
        )

    def write(self, path: Path) -> None:
        write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", path)

    @classmethod
    def read(cls, path: Path) -> "Handoff":
        """Raises CheckpointError when the file is not a handoff of a version known here."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            handoff = cls(**found)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"a handoff file must be complete JSON, but {path} is not ({error}).") from None
        if handoff.schema_version != SCHEMA_VERSION:
            raise CheckpointError(
                f"handoff files of version {SCHEMA_VERSION} can be read, but {path} is {handoff.schema_version}."
            )
        return handoff
