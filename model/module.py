"""The LightningModule: one training step, one validation step. Knows no files and no schedule of checkpoints.

Everything random or scheduled in a step is a pure function of (seed, epoch, step, rank), so no generator and no
scheduler is saved, and a resumed run has nothing of the kind to restore.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from model import together
from model.batch import ImageBatch, normalise
from model.checkpoint import KEY, describe
from model.data.coco import CocoIndex
from model.errors import NonFiniteLoss
from model.memory import Batch
from model.metrics import CocoEvaluator
from model.network.criterion import Criterion, Losses, mean_boxes
from model.network.detr import DeformableDETR
from model.network.postprocess import top_k
from model.optim import factor, make_optimizer, parameter_groups, settings
from model.spec import ExperimentSpec


class Detector(pl.LightningModule):
    """Trains `model` on ImageBatches of `batch.per_step` images, of which `batch.per_forward` are in memory at once.

    `values` holds the last epoch's numbers: train_loss, lr, and after a validation val_loss, val_mAP, val_mAP50.
    `history` holds one such mapping per finished epoch and travels in the checkpoint.
    """

    def __init__(
        self, model: DeformableDETR, spec: ExperimentSpec, val_index: CocoIndex | None, batch: Batch | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.batch = batch or Batch.of(spec.dataset.batch_size, spec.train.per_forward)
        self.classes: Mapping[int, str] = {}
        self.criterion = Criterion(spec.model, spec.dataset.num_classes)
        self.values: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._val_index = val_index
        self._evaluator: CocoEvaluator | None = None
        self._train_losses: list[Tensor] = []
        self._val_sums: list[Tensor] = []  # (2,): loss times objects, objects
        self._boundary: dict[str, Any] = {}  # Lightning's loops as they were when the epoch began
        self._done = 0  # steps of the running epoch that the loaded weights have behind them
        self._now = 0
        self._sharded = False
        self.shard: Callable[[DeformableDETR, Any], None] | None = None
        """Set for FSDP: distributes the parameters over a device mesh."""

    def configure_model(self) -> None:
        if self.shard is not None:
            self.shard(self.model, self.device_mesh)
            self.shard, self._sharded = None, True

    def forward(self, batch: ImageBatch) -> Any:
        sizes = self.spec.dataset.augmentation
        # Lightning's mixed precision does not go with its sharding.
        half = self.spec.train.precision == "bf16" and self.trainer.precision == "32-true"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return self.model(*normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std))

    @property
    def replaying(self) -> bool:
        """Whether the running step is behind the loaded weights already."""
        return self._now < self._done

    def on_train_start(self) -> None:
        # A checkpoint brings the values it was trained with; after a takeover the spec has others, and counts.
        kept = {group["name"]: group for group in self._optimizer().param_groups}
        for group in parameter_groups(self.model, self.spec):
            kept[group["name"]] |= settings(self.spec.train.optim, group)
        if not self._boundary:
            self.mark_boundary()

    def mark_boundary(self) -> None:
        """Remembers where Lightning's loops stand between two epochs."""
        self._boundary = copy.deepcopy(self.trainer.fit_loop.state_dict())

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        # `fit` runs inside torch.random.fork_rng, so the caller's generator is not touched.
        torch.manual_seed(stream(self.spec.train.seed, self.current_epoch, self.global_rank, batch_idx))
        self._now = batch_idx
        epochs, batches = self.trainer.max_epochs or 1, self.trainer.num_training_batches
        progress = (self.current_epoch + batch_idx / batches) / epochs
        now = factor(self.spec.train.optim, self.current_epoch, progress=progress, step=self.global_step)
        for group in self._optimizer().param_groups:
            group["lr"] = group["peak_lr"] * now
        self.values = {"lr": self.spec.train.optim.lr * now}

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        if self.replaying:
            return torch.stack([0.0 * parameter.sum() for parameter in self._trainable()]).sum()
        # The objects of all parts and processes: how a batch is split must not change what is learnt from it.
        num_boxes = mean_boxes(sum(len(target.labels) for target in batch.targets), self.device)
        self._optimizer().zero_grad()
        total = torch.zeros((), device=self.device)
        *early, last = parts(batch, self.batch.per_forward)
        for part in early:
            loss = self._loss(part, num_boxes)
            total += loss.detach()
            # Inside the forward of DDP, which only adds these gradients up, and exchanges them with the last part's.
            self.trainer.strategy.backward(loss, None)
        loss = self._loss(last, num_boxes)
        self._train_losses.append(total + loss.detach())
        return loss

    def _loss(self, batch: ImageBatch, num_boxes: float | Tensor) -> Tensor:
        losses = self.criterion(self(batch), batch.targets, num_boxes)
        if not bool(torch.isfinite(losses.total)):
            raise NonFiniteLoss(self._non_finite(losses, batch))
        return losses.total

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Nothing: Lightning clears gradients after training_step, when the earlier parts have left theirs."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.replaying:
            optimizer_closure()  # counts as a step, and leaves weights and optimizer alone
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_validation_epoch_start(self) -> None:
        assert self._val_index is not None
        together.share_buffers(self.model)
        self._evaluator = CocoEvaluator(self._val_index, self.spec.dataset.eval_class_ids)
        self._val_sums.clear()

    def validation_step(self, whole: ImageBatch, _: int) -> None:
        """No process waits for another here: they may have different numbers of batches."""
        assert self._evaluator is not None
        for batch in parts(whole, self.batch.per_forward):
            output = self(batch)
            loss = self.criterion(output, batch.targets, 1.0).total
            objects = sum(len(target.labels) for target in batch.targets)
            self._val_sums.append(torch.stack([loss.double(), torch.tensor(objects, device=self.device).double()]))
            originals = torch.tensor([target.orig_size for target in batch.targets], device=self.device)
            detections = top_k(output.final, originals, self.spec.model.num_select)
            self._evaluator.update([target.image_id for target in batch.targets], detections)

    def on_validation_epoch_end(self) -> None:
        zero = torch.zeros((1, 2), dtype=torch.double, device=self.device)
        loss, objects = together.summed(torch.cat([zero, *(one[None] for one in self._val_sums)]).sum(0)).tolist()
        rows = together.gathered(self._evaluator.rows()) if self._evaluator is not None else []

        def score() -> dict[str, float]:
            assert self._val_index is not None
            evaluator = CocoEvaluator(self._val_index, self.spec.dataset.eval_class_ids)
            for found in rows:
                evaluator.add_rows(found)
            return evaluator.result(by_size=False).numbers

        numbers = together.from_first(score)
        self.values["val_mAP50"] = numbers["mAP50"]
        self.values["val_mAP"] = numbers["mAP"]
        self.values["val_loss"] = loss / max(objects, 1.0)
        self._evaluator = None
        if not math.isfinite(self.values["val_loss"]):
            raise NonFiniteLoss(
                f"the validation loss must stay finite, but is {self.values['val_loss']} after epoch "
                f"{self.current_epoch + 1}; lower train.optim.lr or train.clip_grad_norm."
            )

    def on_train_epoch_end(self) -> None:
        together.share_buffers(self.model)
        losses = torch.stack([loss.to(self.device) for loss in self._train_losses])
        mean = together.summed(losses.mean()) / together.world()
        self._train_losses.clear()
        self._done = 0
        self.values["train_loss"] = float(mean)
        self.history.append({"epoch": self.current_epoch + 1, **self.values})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Lightning's mixed precision cannot clip before a fused step, and sharded parameters do not all have one.
        fused = self.spec.train.precision == "fp32" and not self._sharded
        return make_optimizer(parameter_groups(self.model, self.spec), self.spec.train.optim, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint in mid-epoch says that it stands at the epoch's start, and how many steps its weights are ahead:
        a resumed run passes over these without computing them."""
        validated = {name: value for name, value in self.values.items() if name.startswith("val_")}
        finished = len(self._train_losses) == 0
        more: dict[str, Any] = {"history": self.history}
        if not finished:
            checkpoint["loops"]["fit_loop"] = self._boundary
            losses = together.summed(torch.stack([loss.to(self.device) for loss in self._train_losses]))
            more |= {"steps": self._now + 1, "losses": (losses / together.world()).tolist()}
        epoch = self.current_epoch + finished
        checkpoint[KEY] = describe(self.spec, self.classes, epoch=epoch, metrics=validated, **more)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = json.loads(checkpoint[KEY])
        self.history = found["history"]
        self._done = found.get("steps", 0)
        self._train_losses = [torch.tensor(loss) for loss in found.get("losses", ())]
        self._boundary = copy.deepcopy(checkpoint["loops"]["fit_loop"])

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _trainable(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _non_finite(self, losses: Losses, batch: ImageBatch) -> str:
        terms = ", ".join(f"{name}={float(value):g}" for name, value in losses.terms.items())
        images = ", ".join(str(target.image_id) for target in batch.targets)
        broken = [name for name, value in losses.terms.items() if not math.isfinite(float(value))]
        return (
            f"the loss must stay finite, but {', '.join(broken) or 'its sum'} did not in epoch "
            f"{self.current_epoch + 1}, step {self.global_step} ({terms}; image ids {images}); "
            "lower train.optim.lr or train.clip_grad_norm."
        )


def parts(batch: ImageBatch, size: int) -> Iterator[ImageBatch]:
    """`batch` in pieces of at most `size` images, padded as the whole is."""
    for start in range(0, len(batch.targets), size):
        piece = slice(start, start + size)
        yield ImageBatch(batch.pixels[piece], batch.sizes[piece], batch.targets[piece])


def stream(*of: int) -> int:
    """A 63-bit seed for the seed, epoch, rank and step given, the same on every machine."""
    state = np.random.SeedSequence([part % 2**64 for part in of]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
