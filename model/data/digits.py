"""A sample detection set from real pixels that need no download: scanned digits on crops of photographs.

scikit-learn ships 1,797 scans of handwritten digits (8 x 8, UCI) and two photographs; digits are drawn at several sizes
on crops of the photographs and written as COCO sets. Knows nothing of how such sets are read.
"""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from model.progress import track
from model.whole import write_text

SPLITS = ("train", "val", "test")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_DIGITS = 3
DIGIT_SIDE = (1 / 6, 5 / 12)
"""Least and greatest side of a drawn scan, as a share of the picture's: 16 to 40 pixels of 96."""
SCANS = {"train": range(0, 1077), "val": range(1077, 1437), "test": range(1437, 1797)}
"""The scans of each split. They are in blocks by writer, so most writers are in one split only."""


class Region(NamedTuple):
    """A part of a photograph, in its pixels."""

    photo: str
    left: int
    top: int
    width: int
    height: int


REGIONS = {
    "train": (Region("china.jpg", 0, 0, 384, 427), Region("flower.jpg", 256, 0, 384, 427)),
    "val": (Region("china.jpg", 384, 0, 128, 427), Region("flower.jpg", 128, 0, 128, 427)),
    "test": (Region("china.jpg", 512, 0, 128, 427), Region("flower.jpg", 0, 0, 128, 427)),
}


class Category(NamedTuple):
    id: int
    name: str


def category(digit: int, classes: Literal["one", "ten"]) -> Category:
    """Ids have gaps, as in COCO itself: 2 for the one class; 1, 2, 4, 5, 7, 8, ... for the ten."""
    return Category(2, "digit") if classes == "one" else Category(1 + 3 * digit // 2, WORDS[digit])


def make_digits(
    out: Path | str, classes: Literal["one", "ten"] = "one", size: int = 96, images: int = 600, seed: int = 0
) -> None:
    """Write `out`/{train,val,test}/{images.tar.gz, annotations.json, label_map.txt}.

    `images` square pictures of `size` pixels for training, a quarter each for validation and test, one to three digits
    on each. The same arguments give the same bytes. Splits share neither scans nor background pixels.
    """
    if classes not in ("one", "ten"):
        raise ValueError(f"`classes` must be one or ten, but is {classes}.")
    if size < 32:
        raise ValueError(f"`size` must be at least 32 pixels, so that a digit can be read, but is {size}.")
    if images < 4:
        raise ValueError(f"`images` must be at least 4, so that validation and test get one each, but is {images}.")
    scans, digits, photos = _material()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        pictures: dict[str, bytes] = {}
        rows: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        wanted = images if split == "train" else images // 4
        for count in track(range(wanted), f"drawing {split}", wanted, "images"):
            picture, crop, drawn = _compose(split, size, scans, photos, rng)
            image_id = 1000 + 7 * count + number
            name = f"{image_id:012d}.jpg"
            pictures[name] = _jpeg(picture)
            rows.append({"id": image_id, "file_name": name, "width": size, "height": size, "crop": crop})
            for scan, (x, y, width, height) in drawn:
                annotations.append(
                    {
                        "id": 3 * len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category(int(digits[scan]), classes).id,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "scan": scan,
                    }
                )
        _write(Path(out) / split, pictures, rows, annotations, classes)


def _material() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Scans (1797, 8, 8) in 0..1, their digits (1797,), photographs (H, W, 3) uint8 by name."""
    from sklearn.datasets import load_digits, load_sample_images  # slow to import, and only this needs it

    scans = load_digits()
    samples = load_sample_images()
    photos = {Path(name).name: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    return scans.images / 16.0, scans.target, photos


def _compose(
    split: str, size: int, scans: np.ndarray, photos: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[str | int], list[tuple[int, list[int]]]]:
    """One picture (size, size, 3) uint8; where its background is from; its (scan, x y width height) in pixels."""
    region = crop_of(REGIONS[split][rng.integers(len(REGIONS[split]))], size, rng)
    photo = photos[region.photo][region.top :, region.left :][: region.height, : region.width]
    picture = np.array(Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR))
    drawn: list[tuple[int, list[int]]] = []
    for _ in range(int(rng.integers(1, MAX_DIGITS + 1))):
        scan = int(rng.choice(SCANS[split]))
        side = int(rng.integers(round(DIGIT_SIDE[0] * size), round(DIGIT_SIDE[1] * size) + 1))
        ink, box_size = _ink(scans[scan], side)
        for _ in range(20):  # a full picture takes no further digit
            x, y = (int(value) for value in rng.integers(0, (size - box_size[0] + 1, size - box_size[1] + 1)))
            box = [x, y, *box_size]
            if not any(_overlap(box, other) for _, other in drawn):
                _blend(picture, ink, x, y, rng)
                drawn.append((scan, box))
                break
    return picture, list(region), drawn


def crop_of(region: Region, size: int, rng: np.random.Generator) -> Region:
    """A square of one to two times `size`, as far as the region is that large, anywhere inside the region."""
    limit = min(region.width, region.height)
    side = int(rng.integers(min(size, limit), min(2 * size, limit) + 1))
    left = region.left + int(rng.integers(region.width - side + 1))
    top = region.top + int(rng.integers(region.height - side + 1))
    return Region(region.photo, left, top, side, side)


def _ink(scan: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The scan (8, 8) enlarged to `side` and cut to its visible ink: opacity (H, W) in 0..1, and (width, height)."""
    smooth = Image.fromarray(scan.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    opacity = np.clip(np.asarray(smooth) * 1.25, 0.0, 1.0)
    rows, columns = np.flatnonzero((opacity > 0.4).any(1)), np.flatnonzero((opacity > 0.4).any(0))
    opacity = opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return opacity, (opacity.shape[1], opacity.shape[0])


def _blend(picture: np.ndarray, opacity: np.ndarray, x: int, y: int, rng: np.random.Generator) -> None:
    """Draw in place, dark on light ground and light on dark."""
    height, width = opacity.shape
    ground = picture[y : y + height, x : x + width]
    dark = ground.mean() > 110
    color = rng.uniform(0, 50, 3) if dark else rng.uniform(205, 255, 3)
    weight = opacity[..., None]
    ground[:] = np.rint(ground * (1 - weight) + color * weight).astype(np.uint8)


def _overlap(a: list[int], b: list[int]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=92)
    return file.getvalue()


def _write(
    folder: Path,
    pictures: dict[str, bytes],
    rows: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    classes: Literal["one", "ten"],
) -> None:
    names = dict(sorted({category(digit, classes) for digit in range(10)}))
    content = {
        "info": {"description": "scikit-learn's scanned digits on its sample photographs"},
        "images": rows,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }
    write_text(json.dumps(content), folder / "annotations.json")
    # Line i names category i + 1, so ids that do not exist need a line too.
    labels = [names.get(key, "unknown") for key in range(1, max(names) + 1)]
    write_text("\n".join(labels) + "\n", folder / "label_map.txt")
    _pack(folder / "images.tar.gz", pictures)


def _pack(archive: Path, pictures: dict[str, bytes]) -> None:
    """A tar.gz without times, owners or chance in it; complete or not there."""
    unfinished = archive.with_name(archive.name + ".unfinished")
    with (
        unfinished.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in sorted(pictures.items()):
            member = tarfile.TarInfo(f"images/{name}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    shutil.move(unfinished, archive)
