"""How well each single image went: hits, wrong and missed boxes at one threshold. Knows detections and ground truth;
draws nothing and judges no training by it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask

from model.data.coco import CocoIndex

LEAST_IOU = 0.5


class ImageScore(NamedTuple):
    position: int  # in the index
    hits: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + wrong + missed); 1 where there is nothing to find and nothing was found."""
        total = 2 * self.hits + self.wrong + self.missed
        return 2 * self.hits / total if total else 1.0


def image_scores(index: CocoIndex, rows: np.ndarray, classes: Sequence[int]) -> tuple[float, list[ImageScore]]:
    """rows (N, 7) as CocoEvaluator.rows. Returns the score threshold with the best F1 over all images, and each image's
    count at it: a detection is a hit when it overlaps a box of its class, not yet hit, by an IoU of 0.5. What lies on a
    crowd is neither hit nor wrong.
    """
    rows = rows[np.isin(rows[:, 6], classes)]
    rows = rows[np.argsort(-rows[:, 5], kind="stable")]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ids = index.image_ids.astype(float)
    low, high = (np.searchsorted(rows[:, 0], ids, side=side) for side in ("left", "right"))
    found = [_judge(index, position, rows[low[position] : high[position]], classes) for position in range(len(ids))]
    truth = np.array([boxes for _, boxes in found])
    judged = np.concatenate([np.empty((0, 2)), *(verdicts for verdicts, _ in found)])
    threshold = _best_threshold(judged, int(truth.sum()))
    scores = []
    for position, (verdicts, boxes) in enumerate(found):
        kept = verdicts[verdicts[:, 0] >= threshold, 1]
        hits = int((kept == 1).sum())
        scores.append(ImageScore(position, hits, int((kept == 0).sum()), boxes - hits))
    return threshold, scores


def _judge(index: CocoIndex, position: int, rows: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, int]:
    """rows: of one image, best first. Returns verdicts (N, 2) float64: score, and 1 for a hit, 0 for wrong; and the
    number of boxes to find."""
    truth = index.annotations_of(position)
    verdict = np.zeros(len(rows))
    for label in set(rows[:, 6].astype(int).tolist()) & set(truth.labels.tolist()):
        mine, theirs = np.flatnonzero(rows[:, 6] == label), np.flatnonzero(truth.labels == label)
        boxes, crowd = truth.boxes[theirs], truth.crowd[theirs]
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        overlap = mask.iou(np.ascontiguousarray(rows[mine, 1:5]), xywh, crowd.astype(np.uint8).tolist())
        free = ~crowd
        for row, overlaps in zip(mine, overlap, strict=True):
            best = int(np.argmax(np.where(free, overlaps, -1.0)))
            if free[best] and overlaps[best] >= LEAST_IOU:
                free[best] = False
                verdict[row] = 1
            elif (overlaps[crowd] >= LEAST_IOU).any():
                verdict[row] = np.nan
    judged = np.stack([rows[:, 5], verdict], axis=1)
    wanted = int((~truth.crowd & np.isin(truth.labels, classes)).sum())
    return judged[~np.isnan(verdict)], wanted


def _best_threshold(judged: np.ndarray, wanted: int) -> float:
    """The score at and above which F1 over all `judged` (N, 2) is best; 0.5 where nothing is ever hit."""
    judged = judged[np.argsort(-judged[:, 0], kind="stable")]
    hits = np.cumsum(judged[:, 1])
    if not len(hits) or not hits[-1]:
        return 0.5
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + wanted)
    # A threshold keeps all detections of equal score: only the last of them is a place to cut.
    last = np.append(judged[1:, 0] != judged[:-1, 0], True)
    return float(judged[int(np.argmax(np.where(last, f1, -1.0))), 0])
