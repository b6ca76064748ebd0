"""One attempt at a training, in this process: build, fit, return what it measured. Knows no retry and no other rank."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import launch
from model.checkpoint import uses_pretrained
from model.data.datamodule import CocoDataModule
from model.errors import SpecError
from model.keeper import Keeper, OnEpoch
from model.memory import Batch
from model.module import Detector, stream
from model.network.detr import DeformableDETR, build
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.weights import start

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one attempt needs to know."""

    spec: ExperimentSpec
    out: Path
    cpus: int
    """Of this node, for all its processes."""
    resume: Path | None
    place: launch.Place
    per_forward: int | None = None
    """Most images in memory at once; None: what the spec says."""

    @property
    def batch(self) -> Batch:
        return Batch.of(self.spec.dataset.batch_size, self.per_forward or self.spec.train.per_forward)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a finished attempt leaves beside its files."""

    history: list[dict[str, Any]]
    """One mapping for each epoch."""
    classes: Mapping[int, str]


def fit(job: Job, status: StatusLog, on_epoch: OnEpoch | None) -> Fitted:
    """Trains until the last epoch. The caller's random generators are left as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if job.place.gpu_ids else ()):
        data = CocoDataModule(job.spec, cpus=max(1, job.cpus // job.place.processes))
        data.check_training()
        torch.manual_seed(stream(job.spec.train.seed, -1 % 2**32, 0))
        model = build_model(job.spec, resumed=job.resume is not None)
        module = Detector(model, job.spec, data.val_index if data.has_validation else None, job.batch)
        module.classes = data.classes
        if job.place.world > 1 and job.spec.train.distributed_strategy == "fsdp":
            module.shard = launch.shard
        _introduce(model, data.classes, job)
        keeper = Keeper(job.out, status, on_epoch)
        trainer = launch.make_trainer(job.spec, job.place, keeper, validates=data.has_validation)
        trainer.fit(module, data, ckpt_path=job.resume, weights_only=True)
        return Fitted(history=module.history, classes=data.classes)


def build_model(spec: ExperimentSpec, *, resumed: bool = False) -> DeformableDETR:
    """The network with the weights that the spec names, and its frozen parts frozen. A resumed run has its weights from
    its checkpoint, and needs no other file."""
    model = build(
        spec.model,
        spec.dataset.num_classes,
        pretrained=uses_pretrained(spec),
        activation_checkpoint=spec.train.activation_checkpoint,
    )
    if not resumed:
        start(model, spec)
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


def _introduce(model: DeformableDETR, classes: Mapping[int, str], job: Job) -> None:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    log.info("parameters: %d, of which %d train", sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))
    shown = ", ".join(f"{name} ({key})" for key, name in list(classes.items())[:10])
    log.info("classes: %s%s", shown, " ..." if len(classes) > 10 else "")
    at_once = "" if job.batch.per_forward == job.batch.per_step else f", {job.batch.per_forward} at once"
    log.info("device: %s; %d images a step on each%s", job.place, job.batch.per_step, at_once)
