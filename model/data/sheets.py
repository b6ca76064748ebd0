"""COCO annotation files as they stand, however wrong: every fault of every row, counted. Opens no image.

`model.data.coco` refuses the first contradiction; this goes on after it, so that a user can mend all of them at once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from model.data.coco import content_of, find_image, is_finite, size_or_unknown, stated_size
from model.data.sources import annotation_files, called, local
from model.data.transforms import short_side
from model.errors import DataError
from model.findings import Finding, Level, of_error
from model.spec import Source

FAULTS: Mapping[str, tuple[Level, str, str]] = {
    "no list": ("problem", "lists are missing", "write it as COCO does: `images`, `annotations`, `categories`"),
    "empty": ("problem", "there is no image in `images`", "name an annotation file with at least one"),
    "no category": ("problem", "there is no category in `categories`", "list each class there"),
    "image id": ("problem", "images have an id that is no whole number", "give each an integer id of its own"),
    "same image id": ("problem", "images have the id of another", "give each image an id of its own"),
    "category id": ("problem", "categories have an id that is no whole number from 0 on", "give each an integer id"),
    "same category id": ("problem", "categories have the id of another", "give each category an id of its own"),
    "no image": ("problem", "annotations name an image that is not in `images`", "correct image_id or take them out"),
    "no class": ("problem", "annotations have a category that is not in `categories`", "add it there or correct them"),
    "no box": ("problem", "annotations have no bbox of four numbers", "write [x, y, width, height] in pixels"),
    "missing": ("problem", "images are not in the image folder", "correct image_dir or file_name, or take them out"),
    "size": ("warning", "images have another size than their row says", "correct width and height, or leave both out"),
    "empty box": (
        "warning", "boxes have no width or height in their image and are left out", "correct or delete them",
    ),
    "outside": (
        "warning", "boxes reach over their image and are cut at its edge",
        "correct them; a bbox is [x, y, width, height], not corners and not fractions",
    ),
    "twice": ("warning", "annotations repeat another of their image", "delete the copies: each counts as a miss"),
}  # fmt: skip
"""Fault -> how bad, what, what to change."""


@dataclass(kw_only=True)
class Sheet:
    """One annotation file and what its rows come to."""

    split: str
    file: Path
    folder: Path
    resize: tuple[int, int]
    """Short side and longest side of an image as evaluation sees it."""
    cell: int
    """Pixels of a cell of the finest feature map."""
    images: dict[int, Path] = field(default_factory=dict)
    """Those that are there, by id."""
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Height and width as the file says; 0, 0 where it does not."""
    opened: set[int] = field(default_factory=set)
    """Images whose true size was looked up."""
    categories: dict[int, str] = field(default_factory=dict)
    boxes: Counter[int] = field(default_factory=Counter)
    """Of each category, crowds and boxes without extent left out."""
    objects: Counter[int] = field(default_factory=Counter)
    """The same of each image."""
    tiny: int = 0
    """Boxes whose sides are both below a cell of the finest feature map, as evaluation resizes the image."""
    rows: dict[str, int] = field(default_factory=dict)
    """How many there are of what a fault is of."""
    faults: dict[str, Counter[str]] = field(default_factory=dict)
    """Fault -> where it is; only the first keeps its name."""

    def true_size(self, image: int) -> tuple[int, int]:
        """As its file's header says; kept from then on. The stated size where it cannot be read."""
        self.opened.add(image)
        if image in self.images:
            stated, true = self.sizes[image], size_or_unknown(self.images[image])
            if true[0] and true != stated:
                self.add("size", f"{self.images[image].name}, {_by(stated)} there and {_by(true)} in the file")
                self.sizes[image] = true
        return self.sizes[image]

    def add(self, fault: str, where: str) -> None:
        seen = self.faults.setdefault(fault, Counter())
        seen[where if not seen else next(iter(seen))] += 1

    def findings(self) -> Iterator[Finding]:
        for fault, (level, what, change) in FAULTS.items():
            if fault in self.faults:
                (first, count), *_ = self.faults[fault].items()
                total = self.rows.get(what.partition(" ")[0], 0)
                number = f"{count:,} of {total:,} " if total else ""
                where = f", the first: {first}" if first else ""
                yield Finding("data", level, f"{self.split}: `{called(self.file)}`: {number}{what}{where}", change)


def boxes_of(sheets: Sequence[Sheet]) -> Counter[int]:
    """Boxes of each category in all of them."""
    return sum((sheet.boxes for sheet in sheets), Counter[int]())


def read_sheets(
    split: str, sources: Sequence[Source], *, resize: tuple[int, int], cell: int
) -> tuple[list[Sheet], list[Finding]]:
    """Every annotation file of a split, and what cannot be read at all."""
    sheets, found = [], []
    for place, source in enumerate(sources):
        if not source.json_file and not source.image_dir:
            continue
        if not source.json_file or not source.image_dir:
            unset = "json_file" if source.image_dir else "image_dir"
            found.append(Finding("data", "problem", f"{split}: data source {place} has no `{unset}`", f"set {unset}"))
            continue
        try:
            folder = local(source.image_dir)
            if not folder.is_dir():
                raise DataError(f"`image_dir` must be a folder or an archive of images, but is {folder}; correct it.")
            for file in annotation_files(source.json_file):
                sheet = Sheet(split=split, file=file, folder=folder, resize=resize, cell=cell)
                _fill(sheet, content_of(file))
                sheets.append(sheet)
        except ValueError as error:
            found.append(of_error("data", f"{split}: {error}"))
    return sheets, found


def _fill(sheet: Sheet, content: dict[str, Any]) -> None:
    for key in ("images", "annotations", "categories"):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            sheet.add("no list", f"`{key}`")
            content[key] = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    sheet.rows = {key: len(content[key]) for key in ("images", "annotations", "categories")}
    sheet.rows["boxes"] = sheet.rows["annotations"]
    _images(sheet, content["images"])
    _categories(sheet, content["categories"])
    _annotations(sheet, content["annotations"])


def _images(sheet: Sheet, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        sheet.add("empty", "")
    for row in rows:
        key, name = row.get("id"), str(row.get("file_name", ""))
        if not _is_id(key):
            sheet.add("image id", f"{key!r} of {name}")
            continue
        if key in sheet.sizes:
            sheet.add("same image id", f"{key} of {name}")
        sheet.sizes[key] = stated_size(row)
        path = find_image(sheet.folder, name)
        if path is None:
            sheet.add("missing", f"`{name}` in `{sheet.folder}`")
        else:
            sheet.images[key] = path


def _categories(sheet: Sheet, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        sheet.add("no category", "")
    for row in rows:
        key = row.get("id")
        if not _is_id(key) or key < 0:
            sheet.add("category id", repr(key))
            continue
        if key in sheet.categories:
            sheet.add("same category id", str(key))
        sheet.categories[key] = str(row.get("name", key))


def _annotations(sheet: Sheet, rows: Sequence[Mapping[str, Any]]) -> None:
    known: set[tuple[Any, ...]] = set()
    for row in rows:
        image, label, box = row.get("image_id"), row.get("category_id"), row.get("bbox")
        where = f"annotation {row.get('id')} of image {image}"
        wrong = []
        if not _is_id(image) or image not in sheet.sizes:
            wrong.append(("no image", where))
        if not _is_id(label) or label not in sheet.categories:
            wrong.append(("no class", f"{where}, category {label!r}"))
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
            wrong.append(("no box", f"{where}, bbox {box!r}"))
        for fault, place in wrong:
            sheet.add(fault, place)
        if wrong:
            continue
        assert isinstance(box, list)
        if (image, label, *box) in known:
            sheet.add("twice", where)
        known.add((image, label, *box))
        _box(sheet, row, where)


def _box(sheet: Sheet, row: Mapping[str, Any], where: str) -> None:
    image: int = row["image_id"]
    x, y, width, height = row["bbox"]
    high, wide = sheet.sizes[image]
    if high and max(-x, -y, x + width - wide, y + height - high) > 0.5 and image not in sheet.opened:
        high, wide = sheet.true_size(image)
    right, bottom = (min(x + width, wide), min(y + height, high)) if high else (x + width, y + height)
    inner = right - max(0.0, x), bottom - max(0.0, y)
    what = f"{where}, bbox {row['bbox']}" + (f" in {wide} x {high} pixels" if high else "")
    if min(inner) <= 0:
        sheet.add("empty box", what)
        return
    if max(-x, -y, x + width - right, y + height - bottom) > 0.5:
        sheet.add("outside", what)
    if row.get("iscrowd"):
        return
    sheet.boxes[row["category_id"]] += 1
    sheet.objects[image] += 1
    if high:
        scale = min(short_side(high, wide, *sheet.resize)) / min(high, wide)
        sheet.tiny += max(inner) * scale < sheet.cell


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
