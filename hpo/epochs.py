"""The spec of a trial whose number of epochs is not the one that its schedule was written for. Knows no search."""

from dataclasses import replace
from typing import Any, NamedTuple

from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace

VALIDATIONS = 5
"""Fewest validations of a trial, where it has as many epochs: a scheduler and the best epoch need them."""
EPOCHS_KEY = "train.num_epochs"


class Scaled(NamedTuple):
    spec: ExperimentSpec
    adjustments: tuple[str, ...]
    """What was changed and to what, a phrase each."""


def scale(spec: ExperimentSpec, epochs: int | None) -> Scaled:
    """`spec` for trials of `epochs` (None: as many as it says): drops of the learning rate, warm-up and the intervals
    of validation and checkpoints keep their share of the training, and there are at least VALIDATIONS of them.

    Applied to its own result it changes nothing.
    """
    train, written = spec.train, spec.train.num_epochs
    epochs = epochs or written
    share = epochs / written
    optim, intervals = train.optim, {"validation_interval": train.validation_interval}
    if train.checkpoint_interval_unit == "epoch":
        intervals["checkpoint_interval"] = train.checkpoint_interval
    changes: dict[str, Any] = {}
    if epochs != written:
        optim = replace(
            optim,
            lr_steps=tuple(dict.fromkeys(_shared(step, share) for step in optim.lr_steps)),
            lr_step_size=_shared(optim.lr_step_size, share),
            warmup_steps=_shared(optim.warmup_steps, share) if optim.warmup_steps else 0,
        )
        intervals = {name: max(1, int(each * share)) for name, each in intervals.items()}
        changes["num_epochs"] = epochs
    most = max(1, epochs // VALIDATIONS)
    changes |= {name: min(each, most) for name, each in intervals.items()}
    scaled = replace(spec, train=replace(train, optim=optim, **changes))
    return Scaled(scaled, _differences(spec, scaled))


def rescaled_space(space: SearchSpace, epochs: int) -> SearchSpace:
    """The space for trials of `epochs`: its coordinates are shares of a run, so only the run's length changes."""
    if EPOCHS_KEY not in space.context or space.context[EPOCHS_KEY] == epochs:
        return space
    return replace(space, context={**space.context, EPOCHS_KEY: epochs})


def _shared(count: int, share: float) -> int:
    return max(1, round(count * share))


def _differences(before: ExperimentSpec, after: ExperimentSpec) -> tuple[str, ...]:
    found = []
    for name in ("num_epochs", "validation_interval", "checkpoint_interval"):
        old, new = getattr(before.train, name), getattr(after.train, name)
        if old != new:
            found.append(f"train.{name} {old} -> {new}")
    for name in ("lr_steps", "lr_step_size", "warmup_steps"):
        old, new = getattr(before.train.optim, name), getattr(after.train.optim, name)
        if old != new:
            shown = [list(each) if isinstance(each, tuple) else each for each in (old, new)]
            found.append(f"train.optim.{name} {shown[0]} -> {shown[1]}")
    return tuple(found)
