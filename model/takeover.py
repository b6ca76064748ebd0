"""Go on from another training's checkpoint as if it were one's own. Knows files; knows neither values nor searches.

Population-based training (Jaderberg et al., arXiv 1711.09846): a member of the population takes over weights, optimizer
and history of a better one, and trains on with values of its own. The other may be training meanwhile.
"""

import os
import shutil
import time
from pathlib import Path

from model.checkpoint import description, link
from model.errors import CheckpointError
from model.keeper import BEST, LATEST, measured
from model.metrics import VAL_MAP50, Measurement
from model.tensorfile import read_raw

ATTEMPTS, PAUSE_S = 5, 0.5
"""Looks at the other's folder until its best checkpoint is not ahead of its last one."""


def take_over(parent: Path, out: Path) -> list[Measurement]:
    """Puts the last and the best checkpoint of the training in `parent` in the place of those in `out`. Returns the
    epochs behind them, validated ones only. Done again it changes nothing; CheckpointError when there is none.

    Where a best epoch's checkpoint cannot be had, because it is newer than the last full one, `out` has none until an
    epoch of its own is better.
    """
    rows: list[Measurement] = []
    best: Path | None = None
    last = out / LATEST
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        source = (parent / LATEST).resolve()
        if not source.is_file():
            raise CheckpointError(f"a training to take over from must have saved a checkpoint, but {parent} has none.")
        last = _copy(source, out / source.name)
        rows = [measured(row) for row in description(read_raw(last), last)["history"] if VAL_MAP50.name in row]
        leader = max(rows, key=lambda one: (one.values[VAL_MAP50.name], -one.epoch), default=None)
        if leader is None or not (parent / BEST).is_file():
            break
        best = _copy(parent / BEST, out / f".{BEST}.taken")
        if description(read_raw(best), best)["epoch"] == leader.epoch:
            break
        best.unlink()
        best = None
    if best is None:
        (out / BEST).unlink(missing_ok=True)
    else:
        os.replace(best, out / BEST)
    link(last, out / LATEST)
    for old in out.glob("model_epoch_*.pth"):
        if old != last:
            old.unlink()
    return rows


def _copy(source: Path, target: Path) -> Path:
    """Whole or not at all; the source may be replaced meanwhile, not changed."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
    except FileNotFoundError:
        raise CheckpointError(f"{source} was there a moment ago; its training goes on.") from None
    os.replace(partial, target)
    return target
