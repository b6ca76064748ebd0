"""One training of the real detector that ends after so many CPU seconds or when told to, and what it scored. Knows no
search.

The clock counts this process's CPU time from reading the data on, loading of images included, validation not: how
often a training is scored must not change how far it gets.
"""

import gc
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from model import launch
from model.data.datamodule import CocoDataModule
from model.errors import NonFiniteLoss
from model.fit import build_model
from model.memory import Batch
from model.metrics import VAL_MAP50
from model.module import Detector, stream
from model.spec import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The validations of one training: after every epoch, and where it was stopped."""

    curve: tuple[Mapping[str, float], ...]
    """epochs (passes over the data, with the fraction of the last), cpu_s (without validation), val_mAP50."""
    epochs: float
    steps: int
    cpu_s: float
    validation_cpu_s: float
    diverged: str | None = None

    @property
    def best(self) -> float | None:
        return max((one[VAL_MAP50.name] for one in self.curve), default=None)

    @property
    def last(self) -> float | None:
        return self.curve[-1][VAL_MAP50.name] if self.curve else None


Judge = Callable[[Mapping[str, float]], bool]
"""Told each validation, as it stands in the curve; whether the training should stop."""


class _Stop(pl.Callback):
    """Ends the fit in mid-epoch when its CPU seconds are spent (Lightning then validates once more), or at a validation
    when the judge says so."""

    def __init__(self, cpu_s: float, judge: Judge | None) -> None:
        self._limit, self._judge, self._began = cpu_s, judge, time.process_time()
        self._validating = 0.0
        self.excluded = 0.0
        self.steps, self.epochs = 0, 0.0
        self.curve: list[Mapping[str, float]] = []

    @property
    def spent(self) -> float:
        return time.process_time() - self._began - self.excluded

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps = trainer.global_step
        self.epochs = self.steps / float(trainer.num_training_batches)
        if self.spent >= self._limit:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = time.process_time()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Detector)
        self.excluded += time.process_time() - self._validating
        value = pl_module.values[VAL_MAP50.name]
        if not math.isfinite(value):
            return
        self.curve.append({"epochs": self.epochs, "cpu_s": round(self.spent, 2), VAL_MAP50.name: value})
        if self._judge is not None and self._judge(self.curve[-1]):
            trainer.should_stop = True


def train_for(spec: ExperimentSpec, cpu_s: float = math.inf, judge: Judge | None = None) -> Scored:
    """Trains `spec` in this process until `cpu_s`, the judge's word or its last epoch. Writes no file."""
    quiet()
    stop = _Stop(cpu_s, judge)
    diverged = None
    with torch.random.fork_rng(devices=()):
        data = CocoDataModule(spec, cpus=1)
        data.check_training()
        torch.manual_seed(stream(spec.train.seed, -1 % 2**32, 0))
        batch = Batch.of(spec.dataset.batch_size, spec.train.per_forward)
        module = Detector(build_model(spec), spec, data.val_index, batch)
        trainer = launch.make_trainer(spec, launch.place(spec.train), stop, validates=True)
        try:
            trainer.fit(module, data)
        except NonFiniteLoss as error:
            diverged = str(error)
        del trainer, module, data
    gc.collect()  # the network hangs together in cycles
    return Scored(
        curve=tuple(stop.curve),
        epochs=round(stop.epochs, 3),
        steps=stop.steps,
        cpu_s=round(stop.spent, 2),
        validation_cpu_s=round(stop.excluded, 2),
        diverged=diverged,
    )


def quiet() -> None:
    """Lightning's banner and our own notices, once a trial, say nothing here."""
    for name in ("pytorch_lightning", "model"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
