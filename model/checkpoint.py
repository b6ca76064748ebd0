"""Checkpoints that describe themselves: weights, resolved spec, class names, format version. Knows no training loop.

A file is a Lightning checkpoint of tensors and plain values with one more entry, `ddetr`: a JSON text. It is always
read with `weights_only=True`, and it pickles no class of ours, so a renamed module cannot break an old file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.errors import CheckpointError, SpecError
from model.network.detr import DeformableDETR, build
from model.quantised import STATE, in_full
from model.spec import ExperimentSpec
from model.tensorfile import read_raw
from model.weights import load_exactly

log = logging.getLogger(__name__)

KEY = "ddetr"
FORMAT_VERSION = 1
PREFIX = "model."
"""The LightningModule holds the detector as `.model`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds, less the optimizer."""

    path: Path
    sha256: str
    spec: ExperimentSpec
    classes: Mapping[int, str]
    """Category id (the class index) to name."""
    num_classes: int
    epoch: int
    """Completed epochs, from 1."""
    metrics: Mapping[str, float]
    """Of the validation after that epoch; empty without one."""
    state: Mapping[str, Tensor]
    """The detector's state dict, in float32 whatever the file keeps."""
    quantised: Mapping[str, str] = field(default_factory=dict)
    """Layer to the type in which the file keeps its weight; empty for a checkpoint of a training."""


def describe(
    spec: ExperimentSpec, classes: Mapping[int, str], epoch: int, metrics: Mapping[str, float], **more: Any
) -> str:
    """The JSON text of the `ddetr` entry."""
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "spec": public_dict(spec),
            "classes": {str(key): name for key, name in sorted(classes.items())},
            "epoch": epoch,
            "metrics": dict(metrics),
            **more,
        }
    )


def public_dict(spec: ExperimentSpec) -> dict[str, Any]:
    """The spec as plain values with its secret masked: what may be written to a file."""
    plain = spec.to_dict()
    plain["encryption_key"] = None
    return plain


def description(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The parsed `ddetr` entry."""
    if KEY not in raw:
        raise CheckpointError(
            f"a checkpoint must carry its spec and class names, but {path} has no `{KEY}` entry; it was not written by "
            "this program. Use it as train.pretrained_model_path instead."
        )
    try:
        found = json.loads(raw[KEY])
        version = found["format_version"]
    except (ValueError, TypeError, LookupError):
        raise CheckpointError(_altered(path, f"its `{KEY}` entry is no description")) from None
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"this version reads checkpoints up to format {FORMAT_VERSION}, but {path} has format {version}; "
            "update ddetr-automl."
        )
    lacking = sorted({"spec", "classes", "epoch", "metrics"} - set(found))
    if lacking or not isinstance(raw.get("state_dict"), Mapping):
        raise CheckpointError(_altered(path, f"it lacks {', '.join(lacking) or 'its weights'}"))
    assert isinstance(found, dict)
    return found


def _altered(path: Path, how: str) -> str:
    return f"a checkpoint must be as this program wrote it, but {path} is not: {how}. Copy it again."


def read_checkpoint(path: Path) -> Checkpoint:
    raw = in_full(read_raw(path), path)
    found = description(raw, path)
    try:
        spec = ExperimentSpec.from_dict(found["spec"])
    except SpecError as error:
        raise CheckpointError(_altered(path, f"the spec in it breaks a rule of this version ({error})")) from None
    return Checkpoint(
        path=path,
        sha256=sha256(path),
        spec=spec,
        classes={int(key): name for key, name in found["classes"].items()},
        num_classes=spec.dataset.num_classes,
        epoch=found["epoch"],
        metrics=found["metrics"],
        state={name.removeprefix(PREFIX): value for name, value in raw[STATE].items()},
        quantised=found.get("quantised", {}).get("layers", {}),
    )


def load_model(path: Path) -> tuple[DeformableDETR, Checkpoint]:
    """The detector in eval mode, rebuilt from the spec that was saved with its weights; every weight must fit."""
    checkpoint = read_checkpoint(path)
    model = build(checkpoint.spec.model, checkpoint.num_classes, pretrained=uses_pretrained(checkpoint.spec))
    load_exactly(model, checkpoint.state, path)
    if checkpoint.quantised:
        kinds = ", ".join(sorted(set(checkpoint.quantised.values())))
        count = len(checkpoint.quantised)
        log.info("%s keeps the weights of %d layers as %s; they are computed with in float32", path, count, kinds)
    return model.eval(), checkpoint


def uses_pretrained(spec: ExperimentSpec) -> bool:
    """Whether backbone weights are given, so that BatchNorm, stem and first stage stay as they were learned."""
    return bool(spec.model.pretrained_backbone_path or spec.train.pretrained_model_path)


def link(target: Path, name: Path) -> None:
    """Points the relative symlink `name` at `target` in one step."""
    partial = name.with_name(f".{name.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, name)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
