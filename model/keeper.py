"""What a training leaves in its folder: checkpoints, the latest link, status lines. Knows when, not what, is trained.

A file gets its name only when it is whole, so a process killed in mid-write leaves the previous one in place.
"""

import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from model import interrupt, together
from model.batch import ImageBatch
from model.checkpoint import link
from model.metrics import VAL_MAP50, Measurement
from model.module import Detector
from model.status import StatusLog

log = logging.getLogger(__name__)

LATEST = "dd_model_latest.pth"
BEST = "model_best.pth"
OnEpoch = Callable[[Measurement], None]
_NOT_VALUES = ("epoch", "seconds", "peak_gpu_bytes", "peak_rss_bytes", "images_per_second")


class Pace:
    """Images that an epoch has trained on, and the seconds that took: from its start to its last step."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._images = 0

    def step(self, images: int) -> None:
        """A step is over; one of no images was passed over, and its time does not count."""
        self._last = time.monotonic()
        self._images += images
        if not images and not self._images:
            self._begun = self._last

    @property
    def images_per_second(self) -> float:
        return self._images / (self._last - self._begun) if self._last > self._begun else 0.0


class Keeper(pl.callbacks.Checkpoint):
    """Writes checkpoints and status lines at the end of each epoch, after its validation, and tells `on_epoch`.

    Lightning runs Checkpoint callbacks last, so the module's numbers of the epoch are complete here. Every process
    calls it, since sharded weights are gathered from all; only the first writes.
    """

    def __init__(self, out: Path, status: StatusLog, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self._out, self._status, self._on_epoch = out, status, on_epoch
        self._started = time.monotonic()
        self._spent = 0.0  # seconds before a resume
        self._pace = Pace()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Detector)
        interrupt.listen()
        forget_peaks()
        self._started = time.monotonic()
        if pl_module.history:
            self._spent = pl_module.history[-1]["seconds"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pace = Pace()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: ImageBatch, *args: Any
    ) -> None:
        assert isinstance(pl_module, Detector)
        self._pace.step(0 if pl_module.replaying else len(batch.targets))
        train = pl_module.spec.train
        if train.checkpoint_interval_unit != "step" or pl_module.replaying or trainer.is_last_batch:
            return
        if trainer.global_step % train.checkpoint_interval == 0:
            self._save_latest(trainer, trainer.current_epoch, train.keep_checkpoints)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Detector)
        row = pl_module.history[-1]
        row["seconds"] = round(self._spent + time.monotonic() - self._started, 3)
        row["peak_gpu_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        row["peak_rss_bytes"] = peak_rss()
        row["images_per_second"] = round(together.world() * self._pace.images_per_second, 3)
        self._report(row, trainer)
        validated = VAL_MAP50.name in row
        if validated and _is_best(pl_module.history):
            self._save(trainer, self._out / BEST, weights_only=True)
        train = pl_module.spec.train
        counted = row["epoch"] if train.checkpoint_interval_unit == "epoch" else trainer.global_step
        if row["epoch"] == trainer.max_epochs or counted % train.checkpoint_interval == 0:
            self._save_latest(trainer, row["epoch"] - 1, train.keep_checkpoints)
        pl_module.mark_boundary()
        if validated and self._on_epoch is not None and trainer.is_global_zero:
            self._on_epoch(measured(row))

    def _save_latest(self, trainer: pl.Trainer, epoch: int, keep: int) -> None:
        """`epoch` from 0."""
        path = self._out / f"model_epoch_{epoch:03d}_step_{trainer.global_step:05d}.pth"
        self._save(trainer, path, weights_only=False)
        if trainer.is_global_zero:
            link(path, self._out / LATEST)
            retain(self._out, keep)

    def _save(self, trainer: pl.Trainer, path: Path, *, weights_only: bool) -> None:
        partial = path.with_name(f".{path.name}.partial")
        trainer.save_checkpoint(partial, weights_only=weights_only)
        if trainer.is_global_zero:
            os.replace(partial, path)

    def _report(self, row: Mapping[str, Any], trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        validation = {name: row[name] for name in ("val_mAP", "val_mAP50", "val_loss") if name in row}
        if validation:
            self._status.write("RUNNING", "Eval metrics generated.", kpi=validation)
        assert trainer.max_epochs is not None
        progress = {"epoch": row["epoch"] - 1, "max_epoch": trainer.max_epochs - 1, "step": trainer.global_step}
        self._status.write("RUNNING", "Training loop in progress", kpi={"train_loss": row["train_loss"]}, **progress)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in _NOT_VALUES)
        log.info("epoch %d of %d: %s", row["epoch"], trainer.max_epochs, numbers)


def retain(folder: Path, keep: int) -> None:
    """Deletes all but the `keep` newest numbered checkpoints; -1 deletes none."""
    if keep < 0:
        return
    files = sorted(folder.glob("model_epoch_*.pth"), key=lambda path: path.stat().st_mtime_ns)
    for old in files[:-keep]:
        old.unlink()


def measured(row: Mapping[str, Any]) -> Measurement:
    """The Measurement of one row of `Detector.history`."""
    values = {name: float(value) for name, value in row.items() if name not in _NOT_VALUES}
    beside = {name: row[name] for name in _NOT_VALUES if name in row}  # a checkpoint of an earlier version has fewer
    return Measurement(values=values, **beside)


def _is_best(history: list[dict[str, Any]]) -> bool:
    *earlier, last = [row[VAL_MAP50.name] for row in history if VAL_MAP50.name in row]
    return all(VAL_MAP50.better(last, value) for value in earlier)


def forget_peaks() -> None:
    """A worker trains one detector after another: each measures its own peaks."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # no Linux, or a container that forbids it: the peak is the process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """Bytes of resident memory that this process held at most, since `forget_peaks` where the system can tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) << 10
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
