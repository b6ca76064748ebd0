"""Stands in for training in a sweep whose own cost is measured: three epochs at once, and no file. Workers import it by
name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from model.metrics import VAL_MAP50, Measurement


class Result(NamedTuple):
    """What a sweep reads of a training's result."""

    best: Path
    measurements: tuple[Measurement, ...]
    adjustments: tuple[str, ...] = ()


def train(spec: Any, out: Path, *, on_epoch: Callable[[Measurement], None], **_: Any) -> Result:
    found = []
    for epoch in range(1, spec.train.num_epochs + 1):
        value = (1 - 0.7**epoch) * (0.5 + 0.0001 * (int(out.name) % 97))
        found.append(
            Measurement(epoch=epoch, values={VAL_MAP50.name: value, "val_loss": 1 - value}, seconds=float(epoch))
        )
        on_epoch(found[-1])
    return Result(out / "model_best.pth", tuple(found))
