"""COCO annotation files -> one checked index of images and boxes. Reads no pixels; knows no augmentation, no batches.

Every contradiction a user can cause is found here, before the first step, and named with its file, value and fix.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from PIL import Image

from model.data.records import ImageRecord, ImageTable
from model.data.sources import annotation_files, called, local
from model.errors import DataError
from model.spec import Source

EXIF_ORIENTATION = 0x0112
LARGEST_ID, LARGEST_SIDE = (1 << 63) - 1, (1 << 31) - 1


class Annotations(NamedTuple):
    """Annotations of any number of images, one row each."""

    boxes: np.ndarray  # (N, 4) float64: x0, y0, x1, y1 in pixels, inside the image
    labels: np.ndarray  # (N,) int64: category ids
    areas: np.ndarray  # (N,) float64, square pixels
    crowd: np.ndarray  # (N,) bool


@dataclass(frozen=True, kw_only=True)
class CocoIndex:
    """Flat arrays, so that a large set is shared by forked workers instead of copied by them."""

    images: Sequence[ImageRecord]
    annotations: Annotations  # sorted by image
    first: np.ndarray  # (images + 1,) int64: the annotations of image i are first[i] to first[i + 1]
    categories: dict[int, str]
    shards: tuple[int, ...]  # images of each annotation file, in the order of `images`
    clamped: int = 0  # boxes that reached more than half a pixel over their image, and were cut
    dropped: int = 0  # boxes without extent inside their image
    notices: tuple[str, ...] = ()  # what the user should know of a file, a sentence each

    @property
    def image_ids(self) -> np.ndarray:
        """(images,) int64, without a record for each."""
        if isinstance(self.images, ImageTable):
            return self.images.ids
        return np.array([image.id for image in self.images], dtype=np.int64)

    def annotations_of(self, position: int) -> Annotations:
        rows = slice(self.first[position], self.first[position + 1])
        return Annotations(*(part[rows] for part in self.annotations))


def read_coco(sources: Sequence[Source], num_classes: int | None = None) -> CocoIndex:
    """One index over all sources. `num_classes` None skips the check of category ids against it."""
    records: list[ImageRecord] = []
    parts: list[Annotations] = []
    counts: list[np.ndarray] = []
    categories: dict[int, str] = {}
    used: set[int] = set()
    notices: list[str] = []
    clamped = dropped = 0
    for reader in (reader for source in sources for reader in _readers(source)):
        merge_categories(categories, reader.categories(num_classes), reader.called)
        images = reader.images()
        offset = max(used) + 1 - min(images) if used & images.keys() else 0
        used |= {key + offset for key in images}
        rows, count = reader.annotations(images, categories)
        records += [image._replace(id=image.id + offset) for image in images.values()]
        parts.append(rows)
        counts.append(count)
        clamped, dropped = clamped + reader.clamped, dropped + reader.dropped
        notices += reader.notices()
    return CocoIndex(
        images=ImageTable(records),
        annotations=Annotations(*(np.concatenate(columns) for columns in zip(*parts, strict=True))),
        first=np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        categories=dict(sorted(categories.items())),
        shards=tuple(len(count) for count in counts),
        clamped=clamped,
        dropped=dropped,
        notices=tuple(notices),
    )


class Summary(NamedTuple):
    """What annotation files say by themselves: no image is opened, no archive unpacked."""

    images: int
    most_objects: int
    """Boxes of one image, at most; crowds and boxes without extent do not count."""
    shortest_side: int | None
    """Of all images, pixels; None where a file leaves out the size of an image."""
    longest_side: int | None
    num_classes: int
    """The least `dataset.num_classes` that the files allow: largest category id + 1."""
    gaps: tuple[int, ...] = ()
    """Ids from 1 up to the largest that no category has."""


def summarise(sources: Sequence[Source], num_classes: int | None = None) -> Summary | None:
    """One summary over all sources that name a `json_file`; None when none does. `num_classes` as in `read_coco`."""
    readers = [
        _Reader(file, file.parent)
        for source in sources
        if source.json_file
        for file in annotation_files(source.json_file)
    ]
    if not readers:
        return None
    images, most, sides, ids = 0, 0, [], set[int]()
    for reader in readers:
        sizes = reader.sizes()
        images += len(sizes)
        most = max(most, reader.most_objects())
        sides += [side for size in sizes for side in size]
        ids |= set(reader.categories(num_classes))
    known = min(sides) > 0
    gaps = tuple(sorted(set(range(1, max(ids))) - ids))
    return Summary(images, most, min(sides) if known else None, max(sides) if known else None, max(ids) + 1, gaps)


def _readers(source: Source) -> "Iterator[_Reader]":
    if not source.json_file or not source.image_dir:
        raise DataError(f"a data source needs `image_dir` and `json_file`, but is {source}; set both.")
    folder = local(source.image_dir)
    for file in annotation_files(source.json_file):
        yield _Reader(file, folder)


def content_of(file: Path) -> dict[str, Any]:
    """The JSON object in an annotation file, whatever is in it."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"`{called(file)}` must be a COCO JSON file, but cannot be read: {why}; correct `json_file` or write it "
            "again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"`{called(file)}` must hold a JSON object, but holds a {type(content).__name__}; name a COCO annotation "
            "file."
        )
    return content


def find_image(folder: Path, name: str) -> Path | None:
    """`file_name` is relative to the image folder; many files repeat the folder's own name in it."""
    candidates = [folder / name, folder / "images" / name]
    if name.startswith(folder.name + "/"):
        candidates.append(folder.parent / name)
    # Path.is_file raises for a name that no file system takes.
    return next((path for path in candidates if name and os.path.isfile(path)), None)


def true_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is seen, after its EXIF orientation, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"`{path}` is not a readable image ({error}); replace it or take it out of the set.") from error
    return (width, height) if turned else (height, width)


def size_or_unknown(path: Path) -> tuple[int, int]:
    """As `true_size`; 0, 0 for what cannot be read. Whoever wants its pixels reports it."""
    try:
        return true_size(path)
    except DataError:
        return 0, 0


class _Reader:
    """One annotation file and its image folder."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.called, self.folder = called(file), folder
        self.clamped = self.dropped = 0
        self._first_over: str | None = None
        self._content = content_of(file)

    def _rows(self, key: str) -> list[dict[str, Any]]:
        rows = self._content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"`{self.called}` needs a list of objects `{key}`; it is not a COCO annotation file.")
        return rows

    def categories(self, num_classes: int | None) -> dict[int, str]:
        rows = self._rows("categories")
        found = {self._integer(row, "id", "categories"): str(row.get("name", row["id"])) for row in rows}
        if not found:
            raise DataError(f"`{self.called}` has no categories; a detector needs at least one.")
        if min(found) < 0:
            raise DataError(f"`{self.called}`: category ids must not be negative, but there is {min(found)}.")
        if num_classes is not None and max(found) >= num_classes:
            raise DataError(
                f"`{self.called}`: every category id must be below `dataset.num_classes`, but there is id {max(found)} "
                f"(`{found[max(found)]}`) and num_classes={num_classes}; set dataset.num_classes={max(found) + 1} "
                "(max id + 1)."
            )
        return found

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image as the file says them; 0, 0 where it does not."""
        return [stated_size(row) for row in self._images()]

    def most_objects(self) -> int:
        """Boxes with extent of one image, at most; crowds do not count."""
        objects = Counter(
            row.get("image_id")
            for row in self._rows("annotations")
            if not row.get("iscrowd") and _has_extent(row.get("bbox"))
        )
        return max(objects.values(), default=0)

    def _images(self) -> list[dict[str, Any]]:
        rows = self._rows("images")
        if not rows:
            raise DataError(f"`{self.called}` has no images; name an annotation file with at least one.")
        return rows

    def images(self) -> dict[int, ImageRecord]:
        """The file's images by their own id, in the file's order."""
        rows = self._images()
        found: dict[int, ImageRecord] = {}
        missing = []
        for row in rows:
            key = self._integer(row, "id", "images")
            path = find_image(self.folder, str(row.get("file_name", "")))
            if key in found:
                raise DataError(f"`{self.called}`: image ids must be unique, but {key} is there twice.")
            if path is None:
                missing.append(row.get("file_name"))
                continue
            height, width = stated_size(row)
            if not height:
                height, width = size_or_unknown(path)
            found[key] = ImageRecord(key, path, height, width)
        if missing:
            raise DataError(
                f"`{self.called}` names {len(rows)} images, but {len(missing)} are not in `{self.folder}`, the first "
                f"`{missing[0]}`; correct `image_dir` or the file names."
            )
        return found

    def annotations(self, images: dict[int, ImageRecord], categories: dict[int, str]) -> tuple[Annotations, np.ndarray]:
        """All annotations sorted by image, and how many each image has (images,) int64."""
        position = {key: number for number, key in enumerate(images)}
        per_image: list[list[tuple[list[float], int, float, bool]]] = [[] for _ in images]
        for row in self._rows("annotations"):
            key, label = (self._integer(row, name, "annotations") for name in ("image_id", "category_id"))
            this = f"`{self.called}`: annotation {row.get('id')}"
            if key not in images:
                raise DataError(f"{this} names image {key}, which is not in `images`; correct its image_id.")
            if label not in categories:
                raise DataError(f"{this} has category {label}, which is not in `categories`; add it there.")
            box = self._box(row, images[key])
            if box is not None:
                given = row.get("area")
                area = float(given) if is_finite(given) else (box[2] - box[0]) * (box[3] - box[1])
                per_image[position[key]].append((box, label, area, bool(row.get("iscrowd", 0))))
        rows = [row for image in per_image for row in image]
        boxes, labels, areas, crowd = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Annotations(
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(areas, dtype=np.float64),
            np.array(crowd, dtype=bool),
        ), np.array([len(image) for image in per_image], dtype=np.int64)

    def _box(self, row: dict[str, Any], image: ImageRecord) -> list[float] | None:
        """x0, y0, x1, y1 cut to the image; None without extent. A box that reaches over makes us look at the image."""
        given = row.get("bbox")
        if not isinstance(given, list) or len(given) != 4 or not all(is_finite(value) for value in given):
            raise DataError(
                f"`{self.called}`: annotation {row.get('id')} needs a bbox of four numbers, but has {given}."
            )
        x, y, width, height = map(float, given)
        wanted = [x, y, x + width, y + height]
        high, wide = image.height or math.inf, image.width or math.inf
        if max(-x, -y, wanted[2] - wide, wanted[3] - high) > 0.5:
            high, wide = size_or_unknown(image.path)
            high, wide = high or image.height, wide or image.width
        limits = (wide, high, wide, high)
        box = [min(max(value, 0.0), float(limit)) for value, limit in zip(wanted, limits, strict=True)]
        empty = box[2] <= box[0] or box[3] <= box[1]
        cut = not empty and max(abs(a - b) for a, b in zip(box, wanted, strict=True)) > 0.5
        self.dropped += empty
        self.clamped += cut
        if (empty or cut) and self._first_over is None:
            self._first_over = f"annotation {row.get('id')} of {image.path.name}"
        return None if empty else box

    def notices(self) -> list[str]:
        """What was done to boxes that do not lie in their images."""
        if self._first_over is None:
            return []
        return [
            f"`{self.called}`: {self.clamped} boxes reach over their image and are cut, {self.dropped} have no extent "
            f"in it and are left out; the first is {self._first_over}."
        ]

    def _integer(self, row: dict[str, Any], key: str, where: str) -> int:
        value = row.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"`{self.called}`: each of `{where}` needs an integer `{key}`, but there is {value!r}.")
        if abs(value) > LARGEST_ID:
            raise DataError(
                f"`{self.called}`: `{key}` of each of `{where}` must fit into 64 bits, but there is {value}."
            )
        return value


def stated_size(row: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in a row of `images`; 0, 0 unless both are there and can be those of an image."""
    height, width = row.get("height"), row.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        return 0, 0
    if max(height, width) > LARGEST_SIDE:
        return 0, 0
    return height, width


def _has_extent(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(is_finite(side) and side > 0 for side in box[2:])


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number with room for sums; a whole one may be too long for a float."""
    return isinstance(value, int | float) and -1e300 < value < 1e300


def merge_categories(known: dict[int, str], new: Mapping[int, str], file: Path | str) -> None:
    """Adds `new` to `known`. Raises DataError where one id has two names."""
    for key, name in new.items():
        if known.setdefault(key, name) != name:
            raise DataError(
                f"`{file}`: category {key} is `{name}`, but an earlier source calls it `{known[key]}`; "
                "give both files the same categories."
            )
