"""The decoded images of an index: from one memory map that all processes of a node share, or decoded each time.

Knows files and pixels; knows no boxes and no augmentation.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL

from model.data.coco import ImageRecord
from model.data.store import cache_root, digest, publish
from model.data.transforms import decode
from model.errors import DataError

__all__ = ["DEFAULT_LIMIT", "CachedImages", "DecodedImages", "Images", "cache_root", "open_images"]

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 8 << 30
"""Bytes of decoded pixels that one set of images may take in the cache."""

FORMAT = f"1 pillow {PIL.__version__}"
"""Part of the key: another decoder may give other pixels."""


class Images(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not to be written to."""


class DecodedImages:
    """Decodes at each access."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._paths = [record.path for record in records]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> np.ndarray:
        path = self._paths[position]
        try:
            return decode(path)
        except (OSError, SyntaxError) as error:  # SyntaxError: PIL's word for a broken PNG
            raise DataError(f"`{path}` cannot be decoded ({error}); replace it or take it out of the set.") from error


class CachedImages:
    """Reads a folder made by `_build`: `pixels.bin`, all images one after another, and `table.npy` (N, 3) int64:
    offset in bytes, height, width. A worker process gets the folder's name, not a copy of the pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table = np.load(folder / "table.npy")
        self._pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r").view(np.ndarray)

    def __reduce__(self) -> tuple[type["CachedImages"], tuple[Path]]:
        return CachedImages, (self.folder,)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, position: int) -> np.ndarray:
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


def _build(records: Sequence[ImageRecord], folder: Path) -> None:
    images = DecodedImages(records)
    table = np.empty((len(images), 3), dtype=np.int64)
    offset = 0
    with (folder / "pixels.bin").open("wb") as file:
        for position in range(len(images)):
            image = images[position]
            table[position] = offset, *image.shape[:2]
            offset += file.write(np.ascontiguousarray(image).data)
    np.save(folder / "table.npy", table)
