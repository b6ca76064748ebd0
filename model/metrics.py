"""What a training is judged by: metrics that carry their goal, measurements, and COCO average precision.

`model.scoring` has the arithmetic. This module knows detections and ground truth; it knows no network and no batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from model import scoring
from model.data.coco import CocoIndex
from model.data.records import UNREADABLE

if TYPE_CHECKING:
    from model.network.postprocess import Detections

NUMBERS = ("mAP", "mAP50", "mAP75", "mAPs", "mAPm", "mAPl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")
"""The twelve COCO numbers, in pycocotools' order."""

DETECTIONS_PER_IMAGE = 100
RECALLS = tuple(place / 100 for place in range(101))
"""Where pycocotools reads precision-recall curves."""


@dataclass(frozen=True)
class Metric:
    name: str
    goal: Literal["maximize", "minimize"]

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.goal == "maximize" else a < b


VAL_MAP50 = Metric("val_mAP50", "maximize")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one epoch ended with. Numbers are finite; a COCO number without ground truth is pycocotools' -1."""

    epoch: int  # completed epochs, from 1
    values: Mapping[str, float]
    seconds: float  # since the training began
    peak_gpu_bytes: int = 0
    peak_rss_bytes: int = 0  # resident memory of the training's process, without its data workers
    images_per_second: float = 0.0  # trained on by all processes; validation does not count

    @property
    def peak_memory_bytes(self) -> int:
        """Where the network lies: of the GPU, or without one of the process."""
        return self.peak_gpu_bytes or self.peak_rss_bytes

    def __post_init__(self) -> None:
        if self.epoch < 1:
            raise ValueError(f"`epoch` counts completed epochs from 1, but got {self.epoch}.")
        beside = {"seconds": self.seconds, "images_per_second": self.images_per_second}
        for name, value in {**self.values, **beside}.items():
            if not math.isfinite(value):
                raise ValueError(f"a measurement holds finite numbers only, but `{name}` is {value}.")


class CocoResult(NamedTuple):
    numbers: dict[str, float]  # the twelve NUMBERS, 0..1; -1 where no ground truth belongs to the number
    per_class: dict[int, float]  # category id -> AP at IoU .50:.95, all areas, 100 detections; -1 without ground truth
    per_class50: dict[int, float]  # the same at IoU .50
    precision50: Mapping[int, tuple[float, ...]] = MappingProxyType({})
    """Category id -> precision at IoU .50 at each of RECALLS; -1 without ground truth."""


class CocoEvaluator:
    """Collects detections of the images of `index` and compares them once, at the end.

    Every image of the index counts, with or without detections; each image keeps its 100 best over all classes. Ground
    truth is the index's: boxes cut to their image, crowd as crowd. `class_ids` None means all categories.
    """

    def __init__(self, index: CocoIndex, class_ids: Sequence[int] | None = None) -> None:
        unknown = sorted(set(class_ids or ()) - set(index.categories))
        if unknown:
            raise ValueError(
                f"`eval_class_ids` must be category ids of the annotations, but got {unknown}; "
                f"there are {sorted(index.categories)}."
            )
        self.index = index
        self.classes = sorted(set(class_ids) if class_ids else index.categories)
        self._rows: list[np.ndarray] = []

    def update(self, image_ids: Sequence[int], detections: "Detections") -> None:
        """Add a batch: scores (B, K), labels (B, K), boxes (B, K, 4) x0 y0 x1 y1 in pixels of the original image.
        What was found where an image is UNREADABLE is left out."""
        known = [place for place, image_id in enumerate(image_ids) if image_id != UNREADABLE]
        scores, labels, boxes = (part.detach().double().cpu().numpy()[known] for part in detections)
        keep = np.argsort(-scores, axis=1, kind="stable")[:, :DETECTIONS_PER_IMAGE]
        scores, labels = (np.take_along_axis(part, keep, axis=1) for part in (scores, labels))
        boxes = np.take_along_axis(boxes, keep[..., None], axis=1)
        ids = np.broadcast_to(np.asarray(image_ids, dtype=float)[known, None], scores.shape)
        xywh = np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
        rows = np.concatenate([ids[..., None], xywh, scores[..., None], labels[..., None]], axis=-1)
        self.add_rows(rows.reshape(-1, 7))

    def add_rows(self, rows: np.ndarray) -> None:
        """rows (N, 7): image id, x, y, width, height in pixels, score, category id; for what other ranks found."""
        self._rows.append(rows)

    def rows(self) -> np.ndarray:
        """All detections so far, (N, 7) float64, as in `add_rows`."""
        return np.concatenate([np.empty((0, 7)), *self._rows])

    def result(self, *, by_size: bool = True) -> CocoResult:
        """`by_size` False leaves the six numbers of small, medium and large objects at -1, in half of the time."""
        numbers, precision = scoring.summarise(self.compared(by_size=by_size))
        columns = list(enumerate(self.classes))
        return CocoResult(
            dict(zip(NUMBERS, numbers, strict=True)),
            {category: _mean_of_known(precision[:, :, column]) for column, category in columns},
            {category: _mean_of_known(precision[0, :, column]) for column, category in columns},
            {category: tuple(precision[0, :, column].tolist()) for column, category in columns},
        )

    def compared(self, *, by_size: bool = True, thresholds: Sequence[float] = ()) -> Any:
        """A COCOeval that knows which detection found what; see `scoring.compare`."""
        return scoring.compare(self.index, self.rows(), self.classes, by_size=by_size, thresholds=thresholds)


def _mean_of_known(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
