"""The LightningModule: one training step, one validation step. Knows no files and no schedule of checkpoints."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from model.batch import ImageBatch, normalise
from model.checkpoint import KEY, describe
from model.data.coco import CocoIndex
from model.errors import NonFiniteLoss
from model.metrics import CocoEvaluator
from model.network.criterion import Criterion, Losses
from model.network.detr import DeformableDETR
from model.network.postprocess import top_k
from model.optim import decay, make_optimizer, parameter_groups
from model.spec import ExperimentSpec


class Detector(pl.LightningModule):
    """Trains `model` on ImageBatches. `values` holds the last epoch's numbers: train_loss, lr, and after a validation
    val_loss, val_mAP, val_mAP50. `history` holds one such mapping per finished epoch and travels in the checkpoint."""

    def __init__(self, model: DeformableDETR, spec: ExperimentSpec, val_index: CocoIndex | None) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.classes: Mapping[int, str] = {}
        self.criterion = Criterion(spec.model, spec.dataset.num_classes)
        self.values: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._val_index = val_index
        self._evaluator: CocoEvaluator | None = None
        self._train_losses: list[Tensor] = []
        self._val_losses: list[Tensor] = []

    def forward(self, batch: ImageBatch) -> Any:
        sizes = self.spec.dataset.augmentation
        return self.model(*normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std))

    def on_train_epoch_start(self) -> None:
        # The generator's state, like the learning rate, depends on the epoch alone: resuming is exact, none is saved.
        # `train()` runs inside torch.random.fork_rng, so the caller's generator is not touched.
        torch.manual_seed(stream(self.spec.train.seed, self.current_epoch, self.global_rank))
        factor = decay(self.spec.train.optim, self.current_epoch)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self._train_losses.clear()
        self.values = {"lr": self.spec.train.optim.lr * factor}

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        losses = self.criterion(self(batch), batch.targets)
        if not bool(torch.isfinite(losses.total)):
            raise NonFiniteLoss(self._non_finite(losses, batch))
        self._train_losses.append(losses.total.detach())
        return losses.total

    def on_validation_epoch_start(self) -> None:
        assert self._val_index is not None
        self._evaluator = CocoEvaluator(self._val_index, self.spec.dataset.eval_class_ids)
        self._val_losses.clear()

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        output = self(batch)
        self._val_losses.append(self.criterion(output, batch.targets).total)
        originals = torch.tensor([target.orig_size for target in batch.targets], device=self.device)
        detections = top_k(output.final, originals, self.spec.model.num_select)
        assert self._evaluator is not None
        self._evaluator.update([target.image_id for target in batch.targets], detections)

    def on_validation_epoch_end(self) -> None:
        assert self._evaluator is not None
        numbers = self._evaluator.result(by_size=False).numbers
        self.values["val_mAP50"] = numbers["mAP50"]
        self.values["val_mAP"] = numbers["mAP"]
        self.values["val_loss"] = float(torch.stack(self._val_losses).mean())
        self._evaluator = None
        if not math.isfinite(self.values["val_loss"]):
            raise NonFiniteLoss(
                f"the validation loss must stay finite, but is {self.values['val_loss']} after epoch "
                f"{self.current_epoch + 1}; lower train.optim.lr or train.clip_grad_norm."
            )

    def on_train_epoch_end(self) -> None:
        self.values["train_loss"] = float(torch.stack(self._train_losses).mean())
        self.history.append({"epoch": self.current_epoch + 1, **self.values})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Gradient scaling of fp16 cannot clip under a fused step.
        fused = self.spec.train.precision != "fp16"
        return make_optimizer(parameter_groups(self.model, self.spec), self.spec.train.optim, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        validated = {name: value for name, value in self.values.items() if name.startswith("val_")}
        checkpoint[KEY] = describe(
            self.spec, self.classes, epoch=self.current_epoch + 1, metrics=validated, history=self.history
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = json.loads(checkpoint[KEY])["history"]

    def _non_finite(self, losses: Losses, batch: ImageBatch) -> str:
        terms = ", ".join(f"{name}={float(value):g}" for name, value in losses.terms.items())
        images = ", ".join(str(target.image_id) for target in batch.targets)
        broken = [name for name, value in losses.terms.items() if not math.isfinite(float(value))]
        return (
            f"the loss must stay finite, but {', '.join(broken) or 'its sum'} did not in epoch "
            f"{self.current_epoch + 1}, step {self.global_step} ({terms}; image ids {images}); "
            "lower train.optim.lr or train.clip_grad_norm."
        )


def stream(seed: int, epoch: int, rank: int) -> int:
    """A 63-bit seed for one epoch of one process, the same on every machine."""
    state = np.random.SeedSequence([seed % 2**64, epoch, rank]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
