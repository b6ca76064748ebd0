"""A finished checkpoint meets a new spec: architecture and preprocessing come from the file, the rest from the user."""

from collections.abc import Mapping
from typing import Any

from model.checkpoint import Checkpoint
from model.errors import CheckpointError
from model.spec import ExperimentSpec

ARCHITECTURE = (
    "backbone", "num_queries", "num_feature_levels", "return_interm_indices", "with_box_refine", "nheads", "hidden_dim",
    "enc_layers", "dec_layers", "dim_feedforward", "dec_n_points", "enc_n_points", "dilation",
)  # fmt: skip
"""Keys of `model` that decide which weights exist or what they mean."""


def adopt(checkpoint: Checkpoint, given: Mapping[str, Any]) -> ExperimentSpec:
    """The checkpoint's own spec with the user's keys over it. `given` holds only what the user wrote.

    Raises CheckpointError, naming both values, where the user's architecture contradicts the file.
    """
    own = checkpoint.spec.to_dict()
    asked = {f"model.{key}": (given.get("model") or {}).get(key) for key in ARCHITECTURE}
    asked["dataset.num_classes"] = (given.get("dataset") or {}).get("num_classes")
    for name, value in asked.items():
        section, key = name.split(".")
        if value is not None and value != own[section][key]:
            raise CheckpointError(
                f"`{name}` must be what the checkpoint was trained with, but the spec says {value} and "
                f"{checkpoint.path} says {own[section][key]}; leave the key out."
            )
    return ExperimentSpec.from_dict(_over(own, given))


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, group by group; null leaves what is below."""
    merged = dict(base)
    for key, value in top.items():
        if value is None:
            continue
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged
