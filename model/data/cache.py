"""The decoded images of an index: from one memory map that all processes of a node share, or decoded each time.

Knows files and pixels; knows no boxes and no augmentation.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL

from model.data.records import ImageRecord
from model.data.store import cache_root, digest, publish
from model.data.transforms import decode
from model.errors import DataError
from model.progress import track

__all__ = ["DEFAULT_LIMIT", "CachedImages", "DecodedImages", "Images", "cache_root", "open_images"]

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 8 << 30
"""Bytes of decoded pixels that one set of images may take in the cache."""

UNREADABLE_SHARE = 0.01
"""Of a set of images, how many may be unreadable and are skipped; one always may."""

FORMAT = f"2 pillow {PIL.__version__}"
"""Part of the key: another decoder may give other pixels."""


class Images(Protocol):
    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is known of images that cannot be decoded: position -> sentence."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not to be written to. Raises DataError for an image that cannot be decoded."""


class DecodedImages:
    """Decodes at each access."""

    unreadable: Mapping[int, str] = {}

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> np.ndarray:
        return decode(self._records[position].path)


class CachedImages:
    """Reads a folder made by `_build`: `pixels.bin`, all images one after another; `table.npy` (N, 3) int64:
    offset in bytes, height, width; and `unreadable.json`. A worker process gets the folder's name, not a copy of the
    pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = np.load(folder / "table.npy")
        self._pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r").view(np.ndarray)
        self.unreadable = {int(key): why for key, why in json.loads((folder / "unreadable.json").read_text()).items()}

    def __reduce__(self) -> tuple[type["CachedImages"], tuple[Path]]:
        return CachedImages, (self.folder,)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> np.ndarray:
        if position in self.unreadable:
            raise DataError(self.unreadable[position])
        offset, height, width = self._table[position].tolist()
        return self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)


def open_images(records: Sequence[ImageRecord], limit: int = DEFAULT_LIMIT) -> Images:
    """The images of an index, in its order: cached when they fit into `limit` bytes and half of the free disk.

    The cache is built by the first process that asks, while the others wait, and keyed by the files' paths, sizes and
    modification times.
    """
    root = cache_root() / "pixels"
    expected = sum(record.height * record.width * 3 for record in records)
    try:
        root.mkdir(parents=True, exist_ok=True)
        target = root / digest((record.path for record in records), FORMAT)
        if not target.exists() and expected > min(limit, shutil.disk_usage(root).free // 2):
            log.info("images are decoded each time: %d MB do not fit into the cache %s", expected >> 20, root)
            return DecodedImages(records)
        return CachedImages(publish(target, lambda folder: _build(records, folder)))
    except OSError as error:
        log.warning("images are decoded each time: the cache %s cannot be used (%s)", root, error)
        return DecodedImages(records)


def check_unreadable(count: int, total: int, first: str) -> None:
    """Raises DataError when more than UNREADABLE_SHARE of `total` images are unreadable, and more than one, or all."""
    if count > max(1, int(total * UNREADABLE_SHARE)) or count == total:
        raise DataError(
            f"{count} of {total} images cannot be decoded, and more than {UNREADABLE_SHARE:.0%} are no accident. The "
            f"first: {first}"
        )


def _build(records: Sequence[ImageRecord], folder: Path) -> None:
    images = DecodedImages(records)
    table = np.zeros((len(images), 3), dtype=np.int64)
    unreadable: dict[int, str] = {}
    offset = 0
    with (folder / "pixels.bin").open("wb") as file:
        for position in track(range(len(images)), "decoding into the cache", len(images), "images"):
            try:
                image = images[position]
            except DataError as error:
                unreadable[position] = str(error)
                check_unreadable(len(unreadable), len(images), next(iter(unreadable.values())))
                continue
            table[position] = offset, *image.shape[:2]
            offset += file.write(np.ascontiguousarray(image).data)
    np.save(folder / "table.npy", table)
    (folder / "unreadable.json").write_text(json.dumps(unreadable), encoding="utf-8")
