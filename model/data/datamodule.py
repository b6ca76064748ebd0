"""Batches for training, validation and test. Knows specs, indices and workers; knows no network and no loss.

The batch order and the augmentation of an image depend on nothing but (seed, epoch, position in the index): not on the
number of workers, not on what was drawn before. A resumed training therefore sees exactly what it would have seen.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, DistributedSampler

from model.batch import ImageBatch
from model.data.cache import open_images
from model.data.coco import CocoIndex, merge_categories, read_coco
from model.data.dataset import CocoDataset, Item, Parcel, collate, pack, unpack
from model.data.samplers import Key, OrderedSampler, Tall, train_sampler
from model.data.transforms import Transform, augmented_tall, eval_transform, train_transform
from model.errors import DataError, WorkerDied
from model.spec import ExperimentSpec, Source

log = logging.getLogger(__name__)


class Loader(DataLoader[Item]):
    """A DataLoader of batches that its workers hand over as parcels; their ends and errors are told in the user's
    words."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from map(unpack, super().__iter__())
        except DataError as error:
            # torch wraps what a worker raised in that worker's traceback; the sentence is at its end.
            raise DataError(str(error).rpartition("model.errors.DataError: ")[2].strip()) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerDied(
                f"a data worker died ({str(error).splitlines()[0]}); if its memory was the cause, lower "
                f"`dataset.workers` (now {self.num_workers}) or `dataset.batch_size`."
            ) from error


class CocoDataModule(pl.LightningDataModule):
    """Loaders of the three splits; each split is read when first asked for, and checked then."""

    def __init__(self, spec: ExperimentSpec, *, cpus: int) -> None:
        super().__init__()
        self.spec = spec
        self.workers = max(0, min(spec.dataset.workers, cpus - 1))
        self._seed = spec.train.seed % 2**32  # -1 is a seed too
        self.notices: list[str] = []
        """What the user should know of the data read so far, a sentence each; also logged, once."""

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.check_training()

    def check_training(self) -> None:
        """Everything about training and validation data that can be known before the first step."""
        self.check_size(self.train_index)
        names = dict(self.train_index.categories)
        if self.has_validation:
            merge_categories(names, self.val_index.categories, "dataset.val_data_sources")
            self._check_evaluated(self.val_index)
            if self.val_index.annotations.crowd.all():
                raise DataError(
                    "`dataset.val_data_sources` must hold boxes to score by, but its files have none, or crowds only; "
                    "correct json_file, or leave val_data_sources out to train without a metric."
                )

    @property
    def has_validation(self) -> bool:
        return self.spec.dataset.has_validation

    @property
    def has_test(self) -> bool:
        return self.spec.dataset.has_test

    @cached_property
    def train_index(self) -> CocoIndex:
        index = self._read(self.spec.dataset.train_data_sources, "train_data_sources")
        if index.annotations.crowd.all():  # true of none, too
            raise DataError(
                "`dataset.train_data_sources` must hold boxes to learn from, but its files have none, or crowds only; "
                "correct json_file."
            )
        return index

    @cached_property
    def val_index(self) -> CocoIndex:
        return self._read(self.spec.dataset.val_data_sources, "val_data_sources")

    @cached_property
    def test_index(self) -> CocoIndex:
        index = self._read((self.spec.dataset.test_data_sources,), "test_data_sources")
        self._check_evaluated(index)
        return index

    @property
    def classes(self) -> dict[int, str]:
        """Category id -> name, from the training data."""
        return self.train_index.categories

    def _read(self, sources: Sequence[Source], name: str) -> CocoIndex:
        named = [source for source in sources if source.json_file or source.image_dir]
        if not named:
            raise DataError(f"`dataset.{name}` names no data; set its image_dir and json_file.")
        index = read_coco(named, self.spec.dataset.num_classes)
        self._tell(*index.notices)
        return index

    def _tell(self, *notices: str) -> None:
        for notice in notices:
            if notice not in self.notices:
                self.notices.append(notice)
                rank_zero_only(log.warning)(notice)

    def _check_evaluated(self, index: CocoIndex) -> None:
        ids, known = self.spec.dataset.eval_class_ids, index.categories
        if not ids:
            return
        if not set(ids) <= set(known):
            raise DataError(
                f"`dataset.eval_class_ids` must be category ids of the annotations, but is {list(ids)} and they have "
                f"{sorted(known)}; leave it out to evaluate all."
            )
        if tuple(ids) == (1,) and len(known) > 1:
            self._tell(
                f"`dataset.eval_class_ids` is [1], so the metric knows `{known[1]}` alone, of {len(known)} classes; "
                "leave it out to evaluate all."
            )

    def check_size(self, index: CocoIndex) -> None:
        total = self.spec.dataset.batch_size * self._world
        if len(index.images) < total:
            raise DataError(
                f"Dataset size ({len(index.images)}) is smaller than the total batch size ({total}). Not enough data "
                "for train; reduce batch_size or num_gpus."
            )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def train_dataloader(self) -> DataLoader[Item]:
        self.check_size(self.train_index)
        aug = self.spec.dataset.augmentation
        sampler = train_sampler(
            self.spec.dataset.train_sampler,
            self.train_index.shards,
            self.spec.dataset.batch_size,
            self._seed,
            rank=self._rank,
            world=self._world,
            # Fixed padding makes a square of a mixed batch: one orientation at a time saves a third of the pixels.
            # Without it 6 %, which is no reason to make the images of a batch more alike than chance does.
            tall=self._tall if aug.fixed_padding and aug.fixed_random_crop is None else None,
        )
        pad = partial(collate, aug=aug, train=True)
        return self._loader(
            self.train_index, train_transform(aug), sampler, self.spec.dataset.batch_size, pad, "substitute"
        )

    @cached_property
    def _tall(self) -> Tall:
        aug, seed = self.spec.dataset.augmentation, self._seed
        sizes = [(max(1, image.height), max(1, image.width)) for image in self.train_index.images]

        def tall(key: Key) -> bool:
            return augmented_tall(aug, *sizes[key.position], key.generator(seed))

        return tall

    def val_dataloader(self) -> DataLoader[Item] | list[DataLoader[Item]]:
        """Nothing to validate is an empty list, which Lightning takes as no validation."""
        if not self.has_validation:
            return []
        return self.eval_loader(self.val_index, self.spec.dataset.batch_size)

    def test_dataloader(self) -> DataLoader[Item]:
        """The test split, resized to `evaluate.input_height` and `input_width` where both are set."""
        evaluate = self.spec.evaluate
        size = (evaluate.input_height, evaluate.input_width) if evaluate.input_height and evaluate.input_width else None
        batch = evaluate.batch_size if evaluate.batch_size > 0 else self.spec.dataset.batch_size
        return self.eval_loader(self.test_index, batch, size)

    def eval_loader(self, index: CocoIndex, batch: int, size: tuple[int, int] | None = None) -> DataLoader[Item]:
        """Every image of `index` in order; `size` (height, width) for a plain resize without padding."""
        aug = self.spec.dataset.augmentation
        sampler = OrderedSampler(len(index.images), rank=self._rank, world=self._world)
        pad = partial(collate, aug=None if size else aug, train=False)
        return self._loader(index, eval_transform(aug, size), sampler, batch, pad, "black")

    def _loader(
        self,
        index: CocoIndex,
        transform: Transform,
        sampler: DistributedSampler[Key],
        batch: int,
        pad: Callable[[Sequence[Item]], ImageBatch],
        unreadable: Literal["substitute", "black"],
    ) -> DataLoader[Item]:
        images = open_images(index.images)
        if images.unreadable:
            self._tell(
                f"{len(images.unreadable)} of {len(images)} images cannot be decoded and are left out: "
                + " ".join(list(images.unreadable.values())[:3])
            )
        return Loader(
            CocoDataset(index, images, transform, self._seed, unreadable=unreadable),
            batch_size=batch,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=partial(_packed, pad),
            pin_memory=self.spec.dataset.pin_memory and torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # so that iterating does not draw from the global one
        )


def _packed(pad: Callable[[Sequence[Item]], ImageBatch], items: Sequence[Item]) -> Parcel:
    return pack(pad(items))
