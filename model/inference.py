"""Detections of images without annotations: 16-column label files and annotated pictures. Knows no metric."""

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from model.adopt import adopt
from model.batch import Target
from model.checkpoint import load_model
from model.data.datamodule import Item, collate
from model.data.sources import local
from model.data.transforms import Sample, decode, eval_transform
from model.errors import DataError, SpecError
from model.evaluate import Predictor, detect, torch_predictor
from model.network.postprocess import Detections
from model.spec import ExperimentSpec
from model.status import StatusLog

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))


class Picture(NamedTuple):
    path: Path
    relative: Path
    """Below its image folder: outputs keep it, so equal names in two folders do not collide."""


def inference(given: Mapping[str, Any], out: Path, *, cpus: int = 1) -> int:
    """The `inference` action on a PyTorch checkpoint. Returns the number of images."""
    status = StatusLog(out)
    with status.action("inference"):
        path = (given.get("inference") or {}).get("checkpoint")
        if not path or path == "???":
            raise SpecError(
                ["`inference.checkpoint` must name a checkpoint, but is unset; set it, or give --from RUN."]
            )
        model, checkpoint = load_model(Path(path))
        spec = adopt(checkpoint, given)
        names = class_names(spec, checkpoint.classes)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return infer(torch_predictor(model), find_pictures(spec), names, spec, out)


def infer(
    predict: Predictor, pictures: Sequence[Picture], names: Mapping[int, str], spec: ExperimentSpec, out: Path
) -> int:
    """Writes `labels/<name>.txt` and `images_annotated/<name>` below `out` for every picture, any last batch."""
    batch_size = spec.inference.batch_size if spec.inference.batch_size > 0 else spec.dataset.batch_size
    for start in range(0, len(pictures), batch_size):
        some = pictures[start : start + batch_size]
        images = [decode(picture.path) for picture in some]
        items = [_item(image, spec) for image in images]
        padding = None if spec.inference.input_height and spec.inference.input_width else spec.dataset.augmentation
        found = detect(predict, collate(items, padding, train=False), spec)
        for place, (picture, image) in enumerate(zip(some, images, strict=True)):
            lines = list(_lines(found, place, names, spec.inference.conf_threshold))
            _write(out, picture, image, lines, spec)
    return len(pictures)


class Line(NamedTuple):
    """One detection: class name, x0, y0, x1, y1 in pixels of the original image, score."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    label: int

    def __str__(self) -> str:
        """KITTI's 16 columns, of which a detector knows the class, the box and the score."""
        corners = " ".join(f"{value:.3f}" for value in self.box)
        return f"{self.name} 0.00 0 0.00 {corners} 0.00 0.00 0.00 0.00 0.00 0.00 0.00 {self.score:.3f}"


def find_pictures(spec: ExperimentSpec) -> list[Picture]:
    """All images below `dataset.infer_data_sources.image_dir`, sorted; a path may also be one image or an archive."""
    given = spec.dataset.infer_data_sources.image_dir
    if not given:
        raise DataError("`dataset.infer_data_sources.image_dir` must name images, but is unset; set it.")
    pictures: list[Picture] = []
    for entry in given:
        path = Path(entry)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            pictures.append(Picture(path, Path(path.name)))
            continue
        folder = local(entry)
        found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"`dataset.infer_data_sources.image_dir` must hold images, but {entry} holds none.")
        root = Path() if len(given) == 1 else Path(folder.name)
        pictures += [Picture(each, root / each.relative_to(folder)) for each in found]
    return pictures


def class_names(spec: ExperimentSpec, own: Mapping[int, str]) -> dict[int, str]:
    """The checkpoint's class names, or those of `infer_data_sources.classmap`, whose line i names category i + 1."""
    file = spec.dataset.infer_data_sources.classmap
    if file is None:
        return dict(own)
    path = Path(file)
    if not path.is_file():
        raise DataError(f"`dataset.infer_data_sources.classmap` must be a text file, but there is no {path}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def _item(image: np.ndarray, spec: ExperimentSpec) -> Item:
    height, width = spec.inference.input_height, spec.inference.input_width
    transform = eval_transform(spec.dataset.augmentation, (height, width) if height and width else None)
    nothing = Sample(image, np.empty((0, 4)), np.empty(0, dtype=np.int64))
    sample = transform(nothing, np.random.default_rng(0))  # evaluation draws nothing from it
    target = Target(torch.empty(0, dtype=torch.int64), torch.empty(0, 4), 0, (image.shape[0], image.shape[1]))
    return Item(sample.image, target)


def _lines(found: Detections, place: int, names: Mapping[int, str], threshold: float) -> Iterator[Line]:
    for score, label, box in zip(*(part[place].tolist() for part in found), strict=True):
        if score >= threshold and label in names:
            yield Line(names[label].replace(" ", "_"), tuple(box), score, label)


def _write(out: Path, picture: Picture, image: np.ndarray, lines: Sequence[Line], spec: ExperimentSpec) -> None:
    text = (out / "labels" / picture.relative).with_suffix(".txt")
    drawn = out / "images_annotated" / picture.relative
    for path in (text, drawn):
        path.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    draw(image, lines, spec.inference.outline_width, spec.inference.color_map or {}).save(drawn)


def draw(image: np.ndarray, lines: Sequence[Line], outline: int, colours: Mapping[str, str]) -> Image.Image:
    """The image with a box, the class name and the score of each detection, the best on top."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for line in reversed(lines):
        colour = colours.get(line.name) or _colour(line.label)
        x0, y0, x1, y1 = line.box
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=outline)
        text = f"{line.name}: {line.score:.2f}"
        pen.rectangle(pen.textbbox((x0, y0), text), fill=colour)
        pen.text((x0, y0), text, fill="black")
    return canvas


def _colour(label: int) -> tuple[int, int, int]:
    """A colour that depends on the class alone; golden-ratio steps keep neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
