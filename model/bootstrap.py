"""How sure a difference in mAP50 of two detectors is, by drawing the images anew. Knows matched detections; runs no
network.

The interval covers the choice of images alone: not the seeds of the trainings, and not that one of the two may have
been chosen because it did well on these very images.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from model.metrics import CocoEvaluator

REPLICATES = 1000
LEVEL = 0.95
AT_ONCE = 4_000_000
"""Numbers in memory at once, of each intermediate array."""


class Interval(NamedTuple):
    difference: float
    """mAP50 of the one less that of the other, on the images as they are."""
    low: float
    high: float
    level: float
    replicates: int
    images: int


class Matches(NamedTuple):
    """Detections of one class, best first, against its boxes at IoU .50, as pycocotools counts them."""

    image: np.ndarray  # (N,) places of the images
    hit: np.ndarray  # (N,) bool
    boxes: np.ndarray  # (images,) boxes to find in each


def difference(one: CocoEvaluator, other: CocoEvaluator, *, seed: int, replicates: int = REPLICATES) -> Interval:
    """Of two detectors on the images and classes of one index; both are scored on the same draws."""
    images = len(one.index.images)
    assert images == len(other.index.images)
    assert one.classes == other.classes
    pair = matches(one), matches(other)
    whole = np.ones((1, images))
    now = float((map50(pair[0], whole) - map50(pair[1], whole))[0])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=replicates).astype(float)
    differences = map50(pair[0], drawn) - map50(pair[1], drawn)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(now, low, high, LEVEL, replicates, images)


def matches(evaluator: CocoEvaluator) -> list[Matches]:
    """One for each class of the evaluator."""
    evaluation = evaluator.compared(by_size=False, thresholds=(0.5,))
    most, images = evaluation.params.maxDets[-1], len(evaluation.params.imgIds)
    records: dict[int, list[Any]] = {category: [] for category in evaluator.classes}
    for one in filter(None, evaluation.evalImgs):  # of each class in the order of the images
        records[one["category_id"]].append(one)
    found = []
    for mine in records.values():
        boxes = np.zeros(images)
        image, score, hit = [np.empty(0, int)], [np.empty(0)], [np.empty(0, bool)]
        for one in mine:
            counts = ~np.asarray(one["dtIgnore"], dtype=bool)[0, :most]
            boxes[one["image_id"]] = np.sum(np.asarray(one["gtIgnore"]) == 0)
            score.append(np.asarray(one["dtScores"][:most])[counts])
            hit.append(np.asarray(one["dtMatches"])[0, :most][counts] > 0)
            image.append(np.full(len(score[-1]), one["image_id"]))
        order = np.argsort(-np.concatenate(score), kind="mergesort")
        found.append(Matches(np.concatenate(image)[order], np.concatenate(hit)[order], boxes))
    return found


def map50(classes: list[Matches], weights: np.ndarray) -> np.ndarray:
    """weights (R, images): how often each image counts. Returns the R mAP50s; -1 where no box is drawn."""
    sums, known = np.zeros(len(weights)), np.zeros(len(weights))
    for one in classes:
        for rows, precision in _averages(one, weights):
            there = ~np.isnan(precision)
            sums[rows] += np.where(there, precision, 0.0)
            known[rows] += there
    return np.where(known > 0, sums / np.maximum(known, 1), -1.0)


def _averages(one: Matches, weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Average precision of one class for each row of weights, in parts; NaN where the row has no box of it."""
    recalls = np.linspace(0.0, 1.0, 101)
    size = max(1, AT_ONCE // max(1, len(one.image)))
    for start in range(0, len(weights), size):
        rows = slice(start, start + size)
        mine = weights[rows]
        boxes, counts = mine @ one.boxes, mine[:, one.image]
        hits = np.cumsum(counts * one.hit, axis=1)
        precision = hits / np.maximum(np.cumsum(counts, axis=1), np.finfo(float).eps)
        # At each recall the best precision there or beyond it.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = np.full(len(mine), np.nan)
        for row in np.flatnonzero(boxes):
            reached = np.searchsorted(hits[row] / boxes[row], recalls, side="left")
            found[row] = np.append(precision[row], 0.0)[reached].mean()
        yield rows, found
