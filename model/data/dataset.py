"""One augmented image with its boxes, and images side by side in a batch. Knows an index, pixels and a transform; knows
no order, no processes and no spec but the augmentation's."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from model.batch import ImageBatch, Target
from model.data.cache import Images, check_unreadable
from model.data.coco import CocoIndex
from model.data.records import UNREADABLE
from model.data.samplers import Key
from model.data.transforms import Sample, Transform, padded_size
from model.errors import DataError
from model.spec import AugmentationSpec

log = logging.getLogger(__name__)


BY_VALUE = 1 << 20
"""Bytes of pixels below which a copy through a pipe costs less than shared memory."""


class Item(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB, augmented, not padded
    target: Target


class CocoDataset(Dataset[Item]):
    """Augmented images of an index. Training leaves crowd annotations out; the evaluator reads the index itself.

    In the place of an unreadable image comes the next that is not (`substitute`, for training), or a black one that
    counts nowhere (`black`, for evaluation); each is reported once, and too many are a DataError.
    """

    def __init__(
        self,
        index: CocoIndex,
        images: Images,
        transform: Transform,
        seed: int,
        *,
        unreadable: Literal["substitute", "black"] = "substitute",
    ) -> None:
        self.index, self._images, self._transform, self._seed = index, images, transform, seed
        self._substitute = unreadable == "substitute"
        # In shared memory, so that each worker knows what the others met.
        self._unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()
        self._unreadable[list(images.unreadable)] = True

    def __len__(self) -> int:
        return len(self.index.images)

    def __getitem__(self, key: Key) -> Item:
        image = self._decoded(key.position)
        if image is not None:
            return self._item(key, image)
        if not self._substitute:
            return self._black(key)
        for step in range(1, len(self)):
            position = (key.position + step) % len(self)
            image = self._decoded(position)
            if image is not None:
                return self._item(key._replace(position=position), image)
        raise AssertionError("not all images can be unreadable: check_unreadable refuses that")

    def _decoded(self, position: int) -> np.ndarray | None:
        try:
            return self._images[position]
        except DataError as error:
            if not self._unreadable[position]:
                self._unreadable[position] = True
                check_unreadable(int(self._unreadable.sum()), len(self), str(error))
                log.warning("skipped: %s", error)
            return None

    def _item(self, key: Key, image: np.ndarray) -> Item:
        truth = self.index.annotations_of(key.position)
        sample = Sample(image, truth.boxes[~truth.crowd], truth.labels[~truth.crowd])
        sample = self._transform(sample, key.generator(self._seed))
        return Item(sample.image, _target(sample, self.index.images[key.position].id, image.shape[:2]))

    def _black(self, key: Key) -> Item:
        record = self.index.images[key.position]
        image = np.zeros((max(1, record.height), max(1, record.width), 3), dtype=np.uint8)
        sample = Sample(image, np.empty((0, 4)), np.empty(0, dtype=np.int64))
        return Item(
            self._transform(sample, key.generator(self._seed)).image, _target(sample, UNREADABLE, image.shape[:2])
        )


def _target(sample: Sample, image_id: int, size: tuple[int, ...]) -> Target:
    height, width = sample.image.shape[:2]
    low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / (width, height, width, height)
    return Target(torch.from_numpy(sample.labels), torch.from_numpy(boxes).float(), image_id, (size[0], size[1]))


class Parcel(NamedTuple):
    """An ImageBatch on its way from a worker. A tensor takes a file descriptor and several calls between the processes;
    eight images had eighteen of them, which was a tenth of a small step. Arrays go by value."""

    pixels: torch.Tensor | np.ndarray  # whichever is cheaper
    sizes: np.ndarray
    labels: np.ndarray  # (N,) of all images
    boxes: np.ndarray  # (N, 4)
    origins: list[tuple[int, int, tuple[int, int]]]  # of each image: boxes, id, original size


def pack(batch: ImageBatch) -> Parcel:
    labels = torch.cat([target.labels for target in batch.targets]).numpy()
    boxes = torch.cat([target.boxes for target in batch.targets]).numpy()
    origins = [(len(target.labels), target.image_id, target.orig_size) for target in batch.targets]
    pixels = batch.pixels.numpy() if batch.pixels.nbytes < BY_VALUE else batch.pixels
    return Parcel(pixels, batch.sizes.numpy(), labels, boxes, origins)


def unpack(parcel: Parcel) -> ImageBatch:
    counts = [count for count, *_ in parcel.origins]
    labels, boxes = (torch.from_numpy(part).split(counts) for part in (parcel.labels, parcel.boxes))
    targets = zip(labels, boxes, parcel.origins, strict=True)
    return ImageBatch(
        torch.as_tensor(parcel.pixels),
        torch.from_numpy(parcel.sizes),
        tuple(Target(mine, where, image_id, size) for mine, where, (_, image_id, size) in targets),
    )


def collate(items: Sequence[Item], aug: AugmentationSpec | None, *, train: bool) -> ImageBatch:
    """Images side by side, zero at the right and the bottom up to the common size; `aug` None: the largest of each."""
    sizes = [item.image.shape[:2] for item in items]
    height, width = padded_size(aug, sizes, train=train) if aug else (max(side) for side in zip(*sizes, strict=True))
    pixels = np.zeros((len(items), 3, height, width), dtype=np.uint8)
    for row, item in zip(pixels, items, strict=True):
        row[:, : item.image.shape[0], : item.image.shape[1]] = item.image.transpose(2, 0, 1)
    return ImageBatch(torch.from_numpy(pixels), torch.tensor(sizes), tuple(item.target for item in items))
