"""Detections of images without annotations: 16-column label files and annotated pictures. Knows no metric."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor

from model.adopt import adopt
from model.batch import Target
from model.checkpoint import load_model
from model.data.dataset import Item, collate
from model.data.transforms import Sample, decode, eval_transform
from model.errors import DataError, SpecError
from model.evaluate import Detector, detector, device, torch_predictor
from model.infer_sources import Picture, class_names, find_pictures
from model.network.postprocess import Detections
from model.pictures import Mark, class_colour, draw
from model.progress import track
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.whole import in_place, write_text

log = logging.getLogger(__name__)

QUALITY = 95
"""Of annotated JPEG and WebP files."""


def inference(given: Mapping[str, Any], out: Path, *, cpus: int = 1) -> int:
    """The `inference` action on a PyTorch checkpoint. Returns the number of images."""
    status = StatusLog(out)
    with status.action("inference"):
        path = (given.get("inference") or {}).get("checkpoint")
        if not path or path == "???":
            raise SpecError(
                ["`inference.checkpoint` must name a checkpoint, but is unset; set it, or give --from RUN."]
            )
        return infer_checkpoint(Path(path), given, out)


def infer_checkpoint(path: Path, given: Mapping[str, Any], out: Path) -> int:
    """The detections of the checkpoint at `path` on the images that `given` names. Returns the number of images."""
    model, checkpoint = load_model(path)
    spec = adopt(checkpoint, given)
    names = class_names(spec, checkpoint.classes)
    model.to(device(spec.inference.gpu_ids))
    return infer(detector(torch_predictor(model), spec), find_pictures(spec), names, spec, out)


def infer(
    detect: Detector, pictures: Sequence[Picture], names: Mapping[int, str], spec: ExperimentSpec, out: Path
) -> int:
    """Writes `labels/<name>.txt` and `images_annotated/<name>` below `out` for every picture that can be read, any last
    batch. Returns their number; the others are named in the log and in status.json, and are an error if they are all.
    """
    colours = _colours(spec, names)
    pictures = [one for one in pictures if not _written_here(one.path, out)]
    batch_size = spec.inference.batch_size if spec.inference.batch_size > 0 else spec.dataset.batch_size
    padding = None if spec.inference.input_height and spec.inference.input_width else spec.dataset.augmentation
    broken: list[str] = []
    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    for batch in track(batches, "labelling", len(pictures), "images", size=len):
        readable = list(_readable(batch, broken))
        if not readable:
            continue
        items = [_item(image, spec) for _, image in readable]
        found = detect(collate(items, padding, train=False))
        for place, (picture, image) in enumerate(readable):
            lines = list(_lines(found, place, names, spec.inference.conf_threshold))
            _write(out, picture, image, lines, colours, spec.inference.outline_width)
    if len(broken) == len(pictures):
        raise DataError(f"none of {len(pictures)} images can be decoded; the first: {broken[0] if broken else '-'}")
    if broken:
        StatusLog(out).write("RUNNING", f"{len(broken)} of {len(pictures)} images skipped: {' '.join(broken[:3])}")
    return len(pictures) - len(broken)


def _written_here(path: Path, out: Path) -> bool:
    """Whether an earlier run drew this: the results may lie below the images."""
    return path.absolute().is_relative_to(out.absolute()) and "images_annotated" in path.parts


class Line(NamedTuple):
    """One detection: class name, x0, y0, x1, y1 in pixels of the original image, score."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    label: int

    def __str__(self) -> str:
        """KITTI's 16 columns, of which a detector knows the class, the box and the score."""
        corners = " ".join(f"{value:.3f}" for value in self.box)
        name = "_".join(self.name.split())
        return f"{name} 0.00 0 0.00 {corners} 0.00 0.00 0.00 0.00 0.00 0.00 0.00 {self.score:.3f}"


def _colours(spec: ExperimentSpec, names: Mapping[int, str]) -> dict[int, tuple[int, ...] | str]:
    """A colour for each class: that of `inference.color_map`, or one of its own."""
    chosen = spec.inference.color_map or {}
    problems = []
    for name, colour in chosen.items():
        try:
            ImageColor.getrgb(colour)
        except (ValueError, AttributeError):
            problems.append(f"`inference.color_map` must give colours, but `{name}` is {colour!r}; try red or #ff0000.")
        if name not in names.values():
            log.warning("`inference.color_map`: there is no class `%s`", name)
    if problems:
        raise SpecError(problems)
    return {label: chosen.get(name) or class_colour(label) for label, name in names.items()}


def _readable(pictures: Sequence[Picture], broken: list[str]) -> Iterator[tuple[Picture, np.ndarray]]:
    for picture in pictures:
        try:
            image = decode(picture.path)
        except DataError as error:
            log.warning("skipped: %s", error)
            broken.append(str(error))
        else:
            yield picture, image


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
            yield Line(names[label], tuple(box), score, label)


def _write(
    out: Path,
    picture: Picture,
    image: np.ndarray,
    lines: Sequence[Line],
    colours: Mapping[int, tuple[int, ...] | str],
    outline: int,
) -> None:
    text, drawn = out / picture.label, out / picture.drawn
    write_text("".join(f"{line}\n" for line in lines), text)
    marks = [Mark(line.box, colours[line.label], f"{line.name}: {line.score:.2f}") for line in lines]
    with in_place(drawn) as (partial,):
        kind = Image.registered_extensions()[drawn.suffix.lower()]
        draw(image, marks, outline).save(partial, kind, quality=QUALITY)
