"""Keys that are accepted so that other programs' spec files run as they are, and that nothing here reads.

No key is silently ignored: each that a user sets to something else than its default gives a line. Knows no action.
"""

from collections.abc import Mapping
from typing import Any

from model.spec import DEPLOY_SECTIONS, ExperimentSpec
from schemas import dotted
from schemas.structure import structure, unstructure

UNUSED: Mapping[str, str] = {
    "encryption_key": "nothing is encrypted here, and the key is never written",
    "wandb": "runs are tracked in MLflow",
    "model.clip_max_norm": "train.clip_grad_norm clips the gradient",
    "model.dld_model_dir_path": "no action reads it",
    "train.input_width": "dataset.augmentation decides the size of training images",
    "train.input_height": "dataset.augmentation decides the size of training images",
    "train.verbose": "status.json and the console always hold all there is",
    "train.optim.monitor_name": "no schedule here follows a metric",
    "dataset.dataset_type": "either way one compact index is shared by all workers",
    "evaluate.num_gpus": "evaluation runs on one device",
    "evaluate.gpu_ids": "evaluation runs on one device",
    "evaluate.num_nodes": "evaluation runs on one device",
    "inference.num_gpus": "inference runs on one device",
    "inference.gpu_ids": "inference runs on one device",
    "inference.num_nodes": "inference runs on one device",
}
"""Key, or group of keys, to the reason."""


def notices(given: Mapping[str, Any]) -> list[str]:
    """One line for each reason, with the keys of `given` (nested, as the user wrote it) that it holds for."""
    meant = unstructure(structure(ExperimentSpec, given, ignore=DEPLOY_SECTIONS)[0])
    return lines(given, meant, ExperimentSpec().to_dict(), UNUSED)


def lines(
    given: Mapping[str, Any], meant: Mapping[str, Any], defaults: Mapping[str, Any], unused: Mapping[str, str]
) -> list[str]:
    """`notices` for any nested spec: `meant` is `given` as it was understood, `unused` maps keys to reasons."""
    found: dict[str, list[str]] = {}
    for name, _ in dotted.leaves(given):
        reason = next((unused[key] for key in unused if f"{name}.".startswith(f"{key}.")), None)
        if reason and dotted.get(meant, name) != dotted.get(defaults, name):
            found.setdefault(reason, []).append(name)
    return [f"accepted and not used: {', '.join(names)}; {reason}" for reason, names in found.items()]
