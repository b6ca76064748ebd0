"""The process of a probe: a few steps and validation batches of the real detector on real images, by a stop watch.

Changes its process as it likes: `model.probe` starts it and reads the answer.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from model import errors, launch, threads
from model.batch import ImageBatch, normalise
from model.data.coco import Annotations, CocoIndex
from model.data.datamodule import CocoDataModule
from model.data.records import ImageTable
from model.fit import build_model
from model.memory import Batch, is_out_of_memory
from model.metrics import CocoEvaluator
from model.module import parts
from model.network.criterion import Criterion, mean_boxes
from model.network.postprocess import top_k
from model.optim import make_optimizer, parameter_groups
from model.probe import Cost
from model.spec import ExperimentSpec

STEPS = 5
"""Training steps and validation batches that are timed, at most, after one that is not."""
SECONDS = 4.0
"""After which no further step, nor batch, is begun."""
LONG_S = 12.0
"""Of one batch, as its first image foretells it: a batch that takes longer is not tried."""


def main() -> None:
    """The process: the request on standard input, the answer as the last line of standard output."""
    asked = json.load(sys.stdin)
    try:
        answer = asdict(probe(ExperimentSpec.from_dict(asked.pop("spec")), **asked))
    except (ValueError, RuntimeError) as error:
        if not hasattr(errors, type(error).__name__):
            raise
        answer = {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, errors.SpecError):
            answer["problems"] = error.problems
    print(json.dumps(answer))


def probe(spec: ExperimentSpec, *, cpus: int, gpu_share: float, most: int | None, scratch: str) -> Cost:
    """As `measure`, in this process, which it changes: threads, random numbers, $DDETR_CACHE (now `scratch`)."""
    threads.limit(cpus)
    where = launch.place(spec.train)
    device = torch.device("cuda", where.gpu_ids[0]) if where.gpu_ids else torch.device("cpu")
    if where.gpu_ids:
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_share), device)
    data = CocoDataModule(spec, cpus=cpus)
    data.check_training()
    workers, data.workers = data.workers, 0
    steps = len(data.train_index.images) // (spec.dataset.batch_size * where.world)
    val_batches = 0
    if data.has_validation:
        val_batches = math.ceil(len(data.val_index.images) / (spec.dataset.batch_size * where.world))
    os.environ["DDETR_CACHE"] = scratch  # archives are unpacked by now; these few images are decoded for us alone
    _shrink(data, spec.dataset.batch_size * (STEPS + 1))
    train, loading = _loaded(data.train_dataloader())
    validation, val_loading = _loaded(data.val_dataloader()) if data.has_validation else ([], 0.0)
    bench = Bench(spec, device)
    first = bench.first(_one(train[0]))
    rough = first * spec.dataset.batch_size > LONG_S
    if rough:
        train, validation = [_one(train[0])], [_one(batch) for batch in validation[:1]]
    computing = first if rough and first > SECONDS else bench.training(train)
    peak = torch.cuda.max_memory_allocated(device) if where.gpu_ids else 0
    validating = bench.validation(validation, data) if validation else 0.0
    images = spec.dataset.batch_size if rough else 1
    return Cost(
        step_seconds=_together(images * computing, loading, workers),
        val_seconds=_together(images * validating, val_loading, workers),
        steps=max(1, steps),
        val_batches=val_batches,
        weights=sum(parameter.numel() for parameter in bench.model.parameters()),
        per_forward=bench.batch.per_forward,
        most_per_forward=bench.most(train, most) if most and where.gpu_ids else None,
        peak_bytes=peak,
        device=torch.cuda.get_device_name(device) if where.gpu_ids else "CPU",
        rough=rough,
    )


def _one(batch: ImageBatch) -> ImageBatch:
    """The first image of a batch, padded as the batch is."""
    return ImageBatch(batch.pixels[:1], batch.sizes[:1], batch.targets[:1])


def _together(computing: float, loading: float, workers: int) -> float:
    """Seconds of a batch: data workers load beside the computing, the process itself before it."""
    return max(computing, loading / workers) if workers else computing + loading


def _shrink(data: CocoDataModule, count: int) -> None:
    """Leaves images spread evenly over each split: `count` of them, and never less than a batch."""
    data.train_index = _part(data.train_index, count)
    if data.has_validation:
        data.val_index = _part(data.val_index, count)


def _part(index: CocoIndex, count: int) -> CocoIndex:
    kept = sorted({round(place) for place in np.linspace(0, len(index.images) - 1, min(count, len(index.images)))})
    rows = [index.annotations_of(position) for position in kept]
    return replace(
        index,
        images=ImageTable(index.images[position] for position in kept),
        annotations=Annotations(*(np.concatenate(columns) for columns in zip(*rows, strict=True))),
        first=np.concatenate([[0], np.cumsum([len(row.labels) for row in rows])]),
        shards=(len(kept),),
    )


def _loaded(loader: Iterable[Any]) -> tuple[list[ImageBatch], float]:
    """Batches of a loader, and the seconds that one takes. The first is not timed when there are others."""
    batches: list[ImageBatch] = []
    seconds: list[float] = []
    source = iter(loader)
    started = time.perf_counter()
    while len(batches) <= STEPS and (len(batches) < 2 or sum(seconds) < SECONDS):
        before = time.perf_counter()
        try:
            batches.append(next(source))
        except StopIteration:
            break
        seconds.append(time.perf_counter() - before)
    assert batches, f"no batch in {time.perf_counter() - started:.1f} s"
    return batches, _usual(seconds)


def _usual(seconds: Sequence[float]) -> float:
    """The median of what came after the first; the first where it is all there is."""
    later = sorted(seconds[1:]) or list(seconds)
    return later[len(later) // 2]


class Bench:
    """A detector as it is trained, and a stop watch."""

    def __init__(self, spec: ExperimentSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        resumed = spec.train.resume_training_checkpoint_path is not None
        self.model = build_model(spec, resumed=resumed).to(device)
        self.criterion = Criterion(spec.model, spec.dataset.num_classes).to(device)
        groups = parameter_groups(self.model, spec)
        self.optimizer = make_optimizer(groups, spec.train.optim, fused=spec.train.precision == "fp32")
        self.batch: Batch = Batch.of(spec.dataset.batch_size, spec.train.per_forward)

    def first(self, image: ImageBatch) -> float:
        """Seconds of the very first step, of one image. OutOfMemory when it does not fit."""
        before = time.perf_counter()
        try:
            self._step(_moved(image, self.device))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise _too_large(str(error)) from error
            raise
        return time.perf_counter() - before

    def training(self, batches: Sequence[ImageBatch]) -> float:
        """Seconds of a step, with as many images at once as fit. OutOfMemory when one does not."""
        while True:
            try:
                return self._timed(batches, self._step)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                refused = str(error)
            self._free()
            smaller = self.batch.smaller()
            if smaller is None:
                raise _too_large(refused)
            self.batch = smaller

    def validation(self, batches: Sequence[ImageBatch], data: CocoDataModule) -> float:
        """Seconds of a batch and its share of the scoring."""
        evaluator = CocoEvaluator(data.val_index, self.spec.dataset.eval_class_ids)
        known = {image.id for image in data.val_index.images}

        def score(batch: ImageBatch) -> None:
            output = self._forward(batch)
            self.criterion(output, batch.targets, 1.0)
            sizes = torch.tensor([target.orig_size for target in batch.targets], device=self.device)
            found = top_k(output.final, sizes, self.spec.model.num_select)
            ids = [target.image_id for target in batch.targets]
            if ids[0] in known:  # a batch may be looked at twice, an image counts once
                evaluator.update(ids, found)
                known.difference_update(ids)

        self.model.eval()
        with torch.no_grad():
            seconds = self._timed(batches, score)
        before = time.perf_counter()
        evaluator.result(by_size=False)
        return seconds + (time.perf_counter() - before) / len(batches)

    def most(self, batches: Sequence[ImageBatch], limit: int) -> int | None:
        """The largest power of two of images, up to `limit`, whose gradients fit at once; None when not one does."""
        largest = max(batches, key=lambda batch: batch.pixels.shape[-1] * batch.pixels.shape[-2])
        fitted, count = None, 1
        while count <= limit:
            rows = torch.arange(count) % len(largest.targets)
            targets = tuple(largest.targets[row] for row in rows.tolist())
            self.batch = Batch(count, count)
            try:
                self._timed([ImageBatch(largest.pixels[rows], largest.sizes[rows], targets)], self._step)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            finally:
                self._free()
            fitted, count = count, 2 * count
        return fitted

    def _timed(self, batches: Sequence[ImageBatch], work: Any) -> float:
        """The usual seconds of `work` on a batch. One batch is looked at twice, unless once took long."""
        seconds: list[float] = []
        for batch in [*batches, batches[0]]:
            before = time.perf_counter()
            work(_moved(batch, self.device))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - before)
            if sum(seconds) > SECONDS:
                break
        return _usual(seconds)

    def _step(self, whole: ImageBatch) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        count = mean_boxes(sum(len(target.labels) for target in whole.targets), self.device)
        for part in parts(whole, self.batch.per_forward):
            self.criterion(self._forward(part), part.targets, count).total.backward()
        if self.spec.train.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.train.clip_grad_norm)
        self.optimizer.step()

    def _forward(self, batch: ImageBatch) -> Any:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.spec.train.precision)
        sizes = self.spec.dataset.augmentation
        with torch.autocast(self.device.type, half, enabled=half is not None):
            return self.model(*normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std))

    def _free(self) -> None:
        self.optimizer.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _too_large(refused: str) -> errors.OutOfMemory:
    return errors.OutOfMemory(f"one image at once does not fit: {refused}; choose a smaller model or image.")


def _moved(batch: ImageBatch, device: torch.device) -> ImageBatch:
    targets = tuple(
        target._replace(labels=target.labels.to(device), boxes=target.boxes.to(device)) for target in batch.targets
    )
    return ImageBatch(batch.pixels.to(device), batch.sizes.to(device), targets)


if __name__ == "__main__":
    main()
