"""Batches for training, validation and test. Knows specs, indices and workers; knows no network and no loss.

The batch order and the augmentation of an image depend on nothing but (seed, epoch, position in the index): not on the
number of workers, not on what was drawn before. A resumed training therefore sees exactly what it would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from model.batch import ImageBatch, Target
from model.data.cache import Images, open_images
from model.data.coco import CocoIndex, read_coco
from model.data.transforms import Sample, Transform, eval_transform, padded_size, train_transform
from model.errors import DataError
from model.spec import AugmentationSpec, ExperimentSpec, Source


class Key(NamedTuple):
    """What a sampler asks for. The epoch travels with it, so that long-lived workers need not be told."""

    epoch: int
    position: int


class Item(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB, augmented, not padded
    target: Target


class CocoDataset(Dataset[Item]):
    """Augmented images of an index. Training leaves crowd annotations out; the evaluator reads the index itself."""

    def __init__(self, index: CocoIndex, images: Images, transform: Transform, seed: int) -> None:
        self.index, self._images, self._transform, self._seed = index, images, transform, seed

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, key: Key) -> Item:
        image = self._images[key.position]
        truth = self.index.annotations_of(key.position)
        rng = np.random.default_rng([self._seed, key.epoch, key.position])
        sample = self._transform(Sample(image, truth.boxes[~truth.crowd], truth.labels[~truth.crowd]), rng)
        size = (image.shape[0], image.shape[1])
        return Item(sample.image, _target(sample, self.index.images[key.position].id, size))


def _target(sample: Sample, image_id: int, size: tuple[int, int]) -> Target:
    height, width = sample.image.shape[:2]
    low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / (width, height, width, height)
    return Target(torch.from_numpy(sample.labels), torch.from_numpy(boxes).float(), image_id, size)


def collate(items: Sequence[Item], aug: AugmentationSpec | None, *, train: bool) -> ImageBatch:
    """Images side by side, zero at the right and the bottom up to the common size; `aug` None: the largest of each."""
    sizes = [item.image.shape[:2] for item in items]
    height, width = padded_size(aug, sizes, train=train) if aug else (max(side) for side in zip(*sizes, strict=True))
    pixels = np.zeros((len(items), 3, height, width), dtype=np.uint8)
    for row, item in zip(pixels, items, strict=True):
        row[:, : item.image.shape[0], : item.image.shape[1]] = item.image.transpose(2, 0, 1)
    return ImageBatch(torch.from_numpy(pixels), torch.tensor(sizes), tuple(item.target for item in items))


class ShuffledSampler(DistributedSampler[Key]):
    """A new order each epoch, the same for all processes; step by step they share one batch of the whole.

    Each process gets every `world`-th image, and as many as fill whole batches of `batch_size` in all processes.
    Lightning calls `set_epoch`, and leaves a DistributedSampler where it is.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._count = count
        self._taken = count // (batch_size * world) * batch_size

    def __len__(self) -> int:
        return self._taken

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self._count)
        mine = order[self.rank :: self.num_replicas][: self._taken]
        return iter([Key(self.epoch, position) for position in mine.tolist()])


class OrderedSampler(DistributedSampler[Key]):
    """Every image once, in order, none repeated to make the processes even."""

    def __init__(self, count: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._mine = range(rank, count, world)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Key]:
        return iter([Key(0, position) for position in self._mine])


class CocoDataModule(pl.LightningDataModule):
    """Loaders of the three splits; each split is read when first asked for, and checked then.

    `per_forward` is how many images are in memory at once; None means `dataset.batch_size`, which it must divide.
    """

    def __init__(self, spec: ExperimentSpec, *, cpus: int, per_forward: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.per_forward = per_forward or spec.dataset.batch_size
        if spec.dataset.batch_size % self.per_forward:
            raise ValueError(
                f"images per forward must divide `dataset.batch_size`, but got {self.per_forward} and "
                f"{spec.dataset.batch_size}."
            )
        self.workers = max(0, min(spec.dataset.workers, cpus - 1))
        self._seed = spec.train.seed % 2**32  # -1 is a seed too

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.check_size(self.train_index)

    @property
    def has_validation(self) -> bool:
        return any(source.json_file for source in self.spec.dataset.val_data_sources)

    @property
    def has_test(self) -> bool:
        return bool(self.spec.dataset.test_data_sources.json_file)

    @cached_property
    def train_index(self) -> CocoIndex:
        return self._read(self.spec.dataset.train_data_sources, "train_data_sources")

    @cached_property
    def val_index(self) -> CocoIndex:
        return self._read(self.spec.dataset.val_data_sources, "val_data_sources")

    @cached_property
    def test_index(self) -> CocoIndex:
        return self._read((self.spec.dataset.test_data_sources,), "test_data_sources")

    @property
    def classes(self) -> dict[int, str]:
        """Category id -> name, from the training data."""
        return self.train_index.categories

    def _read(self, sources: Sequence[Source], name: str) -> CocoIndex:
        named = [source for source in sources if source.json_file or source.image_dir]
        if not named:
            raise DataError(f"`dataset.{name}` names no data; set its image_dir and json_file.")
        return read_coco(named, self.spec.dataset.num_classes)

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
        sampler = ShuffledSampler(
            len(self.train_index.images),
            self.spec.dataset.batch_size,
            self._seed,
            rank=self._rank,
            world=self._world,
        )
        transform = train_transform(self.spec.dataset.augmentation)
        pad = partial(collate, aug=self.spec.dataset.augmentation, train=True)
        return self._loader(self.train_index, transform, sampler, self.per_forward, pad)

    def val_dataloader(self) -> DataLoader[Item] | list[DataLoader[Item]]:
        """Nothing to validate is an empty list, which Lightning takes as no validation."""
        if not self.has_validation:
            return []
        return self.eval_loader(self.val_index, self.per_forward)

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
        return self._loader(index, eval_transform(aug, size), sampler, batch, pad)

    def _loader(
        self,
        index: CocoIndex,
        transform: Transform,
        sampler: DistributedSampler[Key],
        batch: int,
        pad: Callable[[Sequence[Item]], ImageBatch],
    ) -> DataLoader[Item]:
        return DataLoader(
            CocoDataset(index, open_images(index.images), transform, self._seed),
            batch_size=batch,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=pad,
            pin_memory=self.spec.dataset.pin_memory and torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # so that iterating does not draw from the global one
        )
