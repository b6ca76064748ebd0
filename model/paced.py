"""Counts a training's steps for `model.progress`. Knows Lightning's loop; knows neither loss nor checkpoint."""

from typing import Any

import pytorch_lightning as pl

from model.metrics import VAL_MAP50
from model.module import Detector
from model.progress import Progress, start


class Paced(pl.Callback):
    """Tells steps of all epochs, which epoch it is, and the metric of the one before."""

    def __init__(self) -> None:
        self._counting: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.max_epochs is not None
        steps = int(trainer.num_training_batches)
        self._counting = start("training", trainer.max_epochs * steps, "steps", trainer.current_epoch * steps)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say(_place(trainer, pl_module))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._counting is not None:
            self._counting.advance()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say(f"validating {_place(trainer, pl_module)}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _say(self, note: str) -> None:
        if self._counting is not None:
            self._counting.advance(0, note)

    def _close(self) -> None:
        if self._counting is not None:
            self._counting.close()
            self._counting = None


def _place(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    assert isinstance(pl_module, Detector)
    text = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
    known = [row[VAL_MAP50.name] for row in pl_module.history if VAL_MAP50.name in row]
    return f"{text}, {VAL_MAP50.name} {known[-1]:.4f}" if known else text
