"""A finished checkpoint meets a new spec: architecture and preprocessing come from the file, the rest from the user."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, description
from model.errors import CheckpointError
from model.spec import DatasetSpec, ExperimentSpec, ModelSpec
from model.tensorfile import read_raw
from schemas.structure import structure, unstructure

ARCHITECTURE = (
    "backbone", "num_queries", "num_feature_levels", "return_interm_indices", "with_box_refine", "nheads", "hidden_dim",
    "enc_layers", "dec_layers", "dim_feedforward", "dec_n_points", "enc_n_points", "dilation", "two_stage",
)  # fmt: skip
"""Keys of `model` that decide which weights exist or what they mean."""
RESUMABLE = (".pth", ".tlt")


def adopt(checkpoint: Checkpoint, given: Mapping[str, Any]) -> ExperimentSpec:
    """The checkpoint's own spec with the user's keys over it. `given` holds only what the user wrote; nothing here
    trains, so its `train` is passed over, and its `model` where the file is a graph, from which no network is built.

    Raises CheckpointError, naming both values, where the user's architecture contradicts the file.
    """
    own = checkpoint.spec.to_dict()
    unread = {"train"} if checkpoint.state else {"train", "model"}
    given = {name: section for name, section in given.items() if name not in unread}
    for name, value, theirs in contradictions(given, own):
        raise CheckpointError(
            f"`{name}` must be what the checkpoint was trained with, but the spec says {value} and "
            f"{checkpoint.path} says {theirs}; leave the key out."
        )
    return ExperimentSpec.from_dict(_over(own, given))


def check_resume(path: Path, spec: ExperimentSpec) -> None:
    """Raises CheckpointError unless training of `spec` can go on from the file at `path`."""
    if path.suffix not in RESUMABLE:
        raise CheckpointError(
            f"`train.resume_training_checkpoint_path` must end in {' or '.join(RESUMABLE)}, but is {path}; name the "
            "checkpoint that training wrote."
        )
    raw = read_raw(path)
    own = description(raw, path)["spec"]
    if "optimizer_states" not in raw:
        raise CheckpointError(
            f"a checkpoint to resume from must hold the optimizer's state, but {path} holds weights only; resume from "
            "dd_model_latest.pth, or use the file as train.pretrained_model_path."
        )
    for name, value, theirs in contradictions(spec.to_dict(), own):
        raise CheckpointError(
            f"`{name}` must not change within a run, but the spec says {value} and {path} says {theirs}; set it back, "
            "or use the file as train.pretrained_model_path."
        )


def contradictions(given: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Architecture keys that `given` sets to another value than `own` has: name, given value, own value."""
    for section, cls, keys in (("model", ModelSpec, ARCHITECTURE), ("dataset", DatasetSpec, ("num_classes",))):
        written = {key: value for key, value in (given.get(section) or {}).items() if key in keys and value is not None}
        meant = unstructure(structure(cls, written)[0])  # numbers in quotes, other spellings
        for key in written:
            if meant[key] != own[section].get(key):
                yield f"{section}.{key}", meant[key], own[section].get(key)


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, group by group; null leaves what is below."""
    merged = dict(base)
    for key, value in top.items():
        if value is None:
            continue
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged
