"""How far a changed graph's detections are from those of the graph it was made from. Knows the outputs of a detector;
knows no truth and no metric."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto
from scipy.spatial.distance import cdist

from deploy.calibration import CalibrationImages
from deploy.tensors import run, session


class Verdict(NamedTuple):
    """Whether a changed graph may be used."""

    good: bool
    drift: float
    score: float | None
    """mAP50, where it was measured."""
    why: str
    """What was found and what is allowed, as the end of a sentence."""


class Chosen(NamedTuple):
    """A changed graph, and what was left as it was."""

    model: ModelProto
    kept: Mapping[str, str]
    """Node to reason."""
    verdict: Verdict


class Drift:
    """Called with a graph: its distance from `model` on `images`, which are kept in memory, or on the first `count` of
    them. Infinite where the graph gives what is no number.

    The distance of a detection is the largest difference of a score or of a box coordinate (both in 0..1) from the
    nearest detection of the other graph, so that an order means nothing; the mean over all detections weighs each with
    the square of its score: what nobody sees does not count.
    """

    def __init__(self, model: ModelProto, images: CalibrationImages) -> None:
        self._batches = list(images.one_by_one())
        self._scale = images.size
        self._expected = self._detections(model, None)

    def __call__(self, model: ModelProto, count: int | None = None) -> float:
        distance = weight = 0.0
        for (expected, certain), (found, _) in zip(self._expected, self._detections(model, count), strict=False):
            for one, sure, other in zip(expected, certain, found, strict=True):
                if not np.isfinite(other).all():
                    return math.inf
                distance += float((cdist(one, other, "chebyshev").min(1) * sure**2).sum())
                weight += float((sure**2).sum())
        return distance / weight

    def _detections(self, model: ModelProto, count: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        opened = session(model)
        return [detections(run(opened, batch), self._scale) for batch in self._batches[:count]]


def detections(outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, Q, F) in which 1 is a whole score, a whole image or another class; and (B, Q) scores. size: height and
    width of the input, which boxes in pixels are divided by."""
    if "pred_logits" in outputs:
        with np.errstate(over="ignore"):
            scores = 1 / (1 + np.exp(-outputs["pred_logits"].astype(np.float64)))
        return np.concatenate([scores, outputs["pred_boxes"]], -1), scores.max(-1)
    height, width = size
    scores = outputs["scores"].astype(np.float64)
    boxes = outputs["boxes"] / np.array([width, height, width, height])
    return np.concatenate([scores[..., None], outputs["labels"][..., None], boxes], -1), scores
