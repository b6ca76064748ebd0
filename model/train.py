"""Train one detector from one spec into one folder. Knows nothing of searches: `on_epoch` is told, and may stop it.

The folder holds `experiment.yaml`, `status.json`, `model_epoch_XXX_step_YYYYY.pth` (epoch from 0), the link
`dd_model_latest.pth`, and with a validation source `model_best.pth` (weights of the best epoch, no optimizer).
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.plugins.environments import LightningEnvironment

from model.checkpoint import link, public_dict, read_raw, uses_pretrained
from model.data.datamodule import CocoDataModule
from model.errors import CheckpointError, OutOfMemory, SpecError
from model.metrics import VAL_MAP50, Measurement
from model.module import Detector, stream
from model.network.detr import DeformableDETR, build
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.weights import load_by_name

log = logging.getLogger(__name__)

LATEST = "dd_model_latest.pth"
BEST = "model_best.pth"
PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
OnEpoch = Callable[[Measurement], None]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    last: Path
    best: Path
    """The best epoch's checkpoint by val_mAP50; the last one where nothing was validated."""
    measurements: tuple[Measurement, ...]
    """One for each validated epoch, those before a resume included."""
    classes: Mapping[int, str]

    @property
    def best_measurement(self) -> Measurement | None:
        if not self.measurements:
            return None
        return max(self.measurements, key=lambda one: (one.values[VAL_MAP50.name], -one.epoch))


def train(
    spec: ExperimentSpec,
    out: Path,
    *,
    on_epoch: OnEpoch | None = None,
    cpus: int | None = None,
    resume: Path | None = None,
) -> TrainResult:
    """Trains `spec` into `out`. `cpus` bounds the data workers; `resume` goes on from a checkpoint of this very run.

    Raises SpecError, DataError or CheckpointError for what the user wrote, NonFiniteLoss when training diverges,
    OutOfMemory when a batch does not fit.
    """
    status = StatusLog(out)
    with status.action("train"):
        out.mkdir(parents=True, exist_ok=True)
        _write_spec(spec, out / "experiment.yaml")
        # Seeded inside a fork: initial weights and dropout repeat, and the caller's generator is left as it was.
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=devices):
            try:
                return _train(spec, out, status, on_epoch, cpus or os.cpu_count() or 1, resume)
            except torch.cuda.OutOfMemoryError as error:
                raise OutOfMemory(f"CUDA out of memory: reduce batch_size ({error})") from error


def _train(
    spec: ExperimentSpec, out: Path, status: StatusLog, on_epoch: OnEpoch | None, cpus: int, resume: Path | None
) -> TrainResult:
    problems = spec.problems()
    if problems:
        raise SpecError(problems)
    if spec.train.resume_training_checkpoint_path and resume is None:
        resume = Path(spec.train.resume_training_checkpoint_path)
    data = CocoDataModule(spec, cpus=cpus)
    data.check_size(data.train_index)
    torch.manual_seed(stream(spec.train.seed, -1 % 2**32, 0))
    module = Detector(_build(spec), spec, data.val_index if data.has_validation else None)
    module.classes = data.classes
    keeper = Keeper(out, status, on_epoch)
    trainer = _trainer(spec, keeper, data.has_validation)
    if resume is not None:
        status.write("RUNNING", f"Resuming training from checkpoint: {resume}")
        _check_resumable(resume)
    status.write("STARTED", "Starting Training Loop.")
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    status.write("RUNNING", "Training loop complete.")
    return TrainResult(
        last=(out / LATEST).resolve(),
        best=out / BEST if (out / BEST).exists() else (out / LATEST).resolve(),
        measurements=tuple(measured(row) for row in module.history if VAL_MAP50.name in row),
        classes=data.classes,
    )


def _build(spec: ExperimentSpec) -> DeformableDETR:
    model = build(spec.model, spec.dataset.num_classes, pretrained=uses_pretrained(spec))
    if spec.train.pretrained_model_path:
        report = load_by_name(model, Path(spec.train.pretrained_model_path), optional=("class_embed",))
        log.info("weights of %s: %s", spec.train.pretrained_model_path, report)
    elif spec.model.pretrained_backbone_path:
        report = load_by_name(model.get_submodule("backbone.0.body"), Path(spec.model.pretrained_backbone_path))
        log.info("backbone weights of %s: %s", spec.model.pretrained_backbone_path, report)
    else:
        log.info("no pretrained weights: the whole backbone trains from random ones")
    for name in spec.train.freeze:
        _freeze(model, name)
    return model


def _freeze(model: DeformableDETR, name: str) -> None:
    try:
        model.get_submodule(name).requires_grad_(False)
    except AttributeError:
        parts = ", ".join(child for child, _ in model.named_children())
        raise SpecError(
            [f"`train.freeze` must name parts of the network, but `{name}` is none; its parts are {parts}."]
        ) from None


def _trainer(spec: ExperimentSpec, keeper: "Keeper", validates: bool) -> pl.Trainer:
    short = spec.train.is_dry_run
    gpu = torch.cuda.is_available()
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=list(spec.train.gpu_ids)[: spec.train.num_gpus] if gpu else 1,
        precision=PRECISIONS[spec.train.precision],  # type: ignore[arg-type]
        max_epochs=1 if short else spec.train.num_epochs,
        limit_train_batches=1 if short else None,
        limit_val_batches=(1 if short else None) if validates else 0,
        check_val_every_n_epoch=1 if short else spec.train.validation_interval,
        gradient_clip_val=spec.train.clip_grad_norm or None,
        num_sanity_val_steps=0,
        callbacks=[keeper],
        plugins=[LightningEnvironment()],  # a Ray worker on a Slurm node must not be taken for a Slurm task
        deterministic="warn" if spec.train.cudnn.deterministic and gpu else None,
        benchmark=spec.train.cudnn.benchmark,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Keeper(pl.callbacks.Checkpoint):
    """Writes checkpoints and status lines at the end of each epoch, after its validation, and tells `on_epoch`.

    Lightning runs Checkpoint callbacks last, so the module's numbers of the epoch are complete here.
    """

    def __init__(self, out: Path, status: StatusLog, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self._out, self._status, self._on_epoch = out, status, on_epoch
        self._started = time.monotonic()
        self._spent = 0.0  # seconds before a resume

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Detector)
        self._started = time.monotonic()
        if pl_module.history:
            self._spent = pl_module.history[-1]["seconds"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Detector)
        row = pl_module.history[-1]
        row["seconds"] = round(self._spent + time.monotonic() - self._started, 3)
        self._report(row, trainer)
        validated = VAL_MAP50.name in row
        if validated and _is_best(pl_module.history):
            self._save(trainer, self._out / BEST, weights_only=True)
        train = pl_module.spec.train
        last = row["epoch"] == trainer.max_epochs
        if last or (train.checkpoint_interval_unit == "epoch" and row["epoch"] % train.checkpoint_interval == 0):
            self._save_latest(trainer, row["epoch"])
        if validated and self._on_epoch is not None:
            self._on_epoch(measured(row))

    def _save_latest(self, trainer: pl.Trainer, epoch: int) -> None:
        path = self._out / f"model_epoch_{epoch - 1:03d}_step_{trainer.global_step:05d}.pth"
        self._save(trainer, path, weights_only=False)
        link(path, self._out / LATEST)
        for old in self._out.glob("model_epoch_*.pth"):
            if old != path:
                old.unlink()

    def _save(self, trainer: pl.Trainer, path: Path, *, weights_only: bool) -> None:
        partial = path.with_name(f".{path.name}.partial")
        trainer.save_checkpoint(partial, weights_only=weights_only)
        os.replace(partial, path)

    def _report(self, row: Mapping[str, Any], trainer: pl.Trainer) -> None:
        validation = {name: row[name] for name in ("val_mAP", "val_mAP50", "val_loss") if name in row}
        if validation:
            self._status.write("RUNNING", "Eval metrics generated.", kpi=validation)
        assert trainer.max_epochs is not None
        progress = {"epoch": row["epoch"] - 1, "max_epoch": trainer.max_epochs - 1, "step": trainer.global_step}
        self._status.write("RUNNING", "Training loop in progress", kpi={"train_loss": row["train_loss"]}, **progress)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds"))
        log.info("epoch %d of %d: %s", row["epoch"], trainer.max_epochs, numbers)


def measured(row: Mapping[str, Any]) -> Measurement:
    """The Measurement of one row of `Detector.history`."""
    values = {name: float(value) for name, value in row.items() if name not in ("epoch", "seconds")}
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Measurement(epoch=row["epoch"], values=values, seconds=row["seconds"], peak_gpu_bytes=peak)


def _is_best(history: list[dict[str, Any]]) -> bool:
    *earlier, last = [row[VAL_MAP50.name] for row in history if VAL_MAP50.name in row]
    return all(VAL_MAP50.better(last, value) for value in earlier)


def _check_resumable(path: Path) -> None:
    if "optimizer_states" not in read_raw(path):
        raise CheckpointError(
            f"a checkpoint to resume from must hold the optimizer's state, but {path} holds weights only; resume from "
            f"{LATEST}, or use the file as train.pretrained_model_path."
        )


def _write_spec(spec: ExperimentSpec, path: Path) -> None:
    path.write_text(yaml.safe_dump(public_dict(spec), sort_keys=False), encoding="utf-8")
