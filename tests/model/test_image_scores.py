from pathlib import Path

import numpy as np
import pytest

from model.data.coco import Annotations, CocoIndex, ImageRecord
from model.image_scores import ImageScore, image_scores
from model.scoring import compare


def index_of(boxes: list[list[tuple[int, list[float], bool]]]) -> CocoIndex:
    """Images with ids 10, 20, ...; each a list of (label, x0 y0 x1 y1, crowd)."""
    flat = [row for image in boxes for row in image]
    corners = np.array([row[1] for row in flat], dtype=float).reshape(-1, 4)
    return CocoIndex(
        images=tuple(ImageRecord(10 * (number + 1), Path("absent"), 100, 100) for number in range(len(boxes))),
        annotations=Annotations(
            corners,
            np.array([row[0] for row in flat], dtype=np.int64),
            (corners[:, 2:] - corners[:, :2]).prod(axis=1),
            np.array([row[2] for row in flat], dtype=bool),
        ),
        first=np.concatenate([[0], np.cumsum([len(image) for image in boxes])]),
        categories={1: "cat", 2: "dog"},
        shards=(len(boxes),),
    )


def row(image: int, box: list[float], score: float, label: int) -> list[float]:
    return [image, box[0], box[1], box[2] - box[0], box[3] - box[1], score, label]


BOX, OTHER = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]


def test_by_hand() -> None:
    index = index_of([[(1, BOX, False), (2, OTHER, False)], [(1, BOX, False)], [(1, BOX, True)], []])
    rows = np.array([
        row(10, BOX, 0.9, 1),  # a hit
        row(10, BOX, 0.8, 1),  # the same box again: wrong
        row(10, OTHER, 0.7, 1),  # wrong class
        row(10, OTHER, 0.6, 2),  # a hit
        row(20, [12.0, 12.0, 52.0, 52.0], 0.6, 1),  # IoU 0.82: a hit
        row(30, [12.0, 12.0, 40.0, 40.0], 0.95, 1),  # on a crowd: nothing
        row(40, BOX, 0.1, 1),  # below the best threshold
    ])  # fmt: skip
    threshold, scores = image_scores(index, rows, [1, 2])
    assert threshold == 0.6
    assert scores == [ImageScore(0, 2, 2, 0), ImageScore(1, 1, 0, 0), ImageScore(2, 0, 0, 0), ImageScore(3, 0, 0, 0)]
    assert [score.f1 for score in scores] == [pytest.approx(2 / 3), 1.0, 1.0, 1.0]
    assert image_scores(index, rows, [2])[1][0] == ImageScore(0, 1, 0, 0)
    assert image_scores(index, np.empty((0, 7)), [1, 2])[1][0] == ImageScore(0, 0, 0, 2)


@pytest.mark.parametrize("seed", range(8))
def test_hits_are_pycocotools_own_and_no_threshold_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(12):
        low = rng.uniform(0, 60, (int(rng.integers(0, 5)), 2))
        corners = np.concatenate([low, low + rng.uniform(10, 40, low.shape)], axis=1)
        boxes.append([(int(rng.integers(1, 3)), box.tolist(), bool(rng.random() < 0.2)) for box in corners])
        for box in np.repeat(corners, 3, axis=0):
            moved = (box + rng.normal(0, 4, 4)).tolist()
            moved[2:] = [max(a + 1, b) for a, b in zip(moved[:2], moved[2:], strict=True)]
            rows.append(row(10 * (image + 1), moved, round(float(rng.random()), 1), int(rng.integers(1, 3))))
    index, found = index_of(boxes), np.array(rows)
    threshold, scores = image_scores(index, found, [1, 2])

    def counted(least: float) -> np.ndarray:
        """hits, wrong, missed of each image (12, 3)."""
        rows = found[found[:, 5] >= least]
        evaluation = compare(index, rows, [1, 2], by_size=False, thresholds=[0.5], reference=True)
        total = np.zeros((12, 3), int)
        for one in filter(None, evaluation.evalImgs):
            kept = ~one["dtIgnore"][0].astype(bool)
            hits = int((one["dtMatches"][0][kept] > 0).sum())
            total[one["image_id"]] += (hits, int(kept.sum()) - hits, int((np.array(one["gtIgnore"]) == 0).sum()) - hits)
        return total

    assert counted(threshold).tolist() == [[score.hits, score.wrong, score.missed] for score in scores]

    def f1(counts: np.ndarray) -> float:
        hits, wrong, missed = counts.sum(axis=0)
        return float(2 * hits / max(1, 2 * hits + wrong + missed))

    assert f1(counted(threshold)) >= max(f1(counted(least / 10)) for least in range(11)) - 1e-12
