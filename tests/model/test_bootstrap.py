"""The interval of a difference, against pycocotools on images that are really doubled."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.bootstrap import difference, map50, matches
from model.data.coco import Annotations, CocoIndex, ImageRecord
from model.metrics import CocoEvaluator

SIDE = 100


def random_index(rng: np.random.Generator, images: int = 12) -> CocoIndex:
    """0 to 5 boxes an image, one in eight a crowd; a category 9 without any box."""
    counts = rng.integers(0, 6, images)
    low = rng.uniform(0, SIDE / 2, (counts.sum(), 2))
    boxes = np.concatenate([low, low + rng.uniform(5, SIDE / 2, low.shape)], axis=1)
    return CocoIndex(
        images=tuple(ImageRecord(5 + 3 * number, Path("absent.jpg"), SIDE, SIDE) for number in range(images)),
        annotations=Annotations(
            boxes, rng.choice([2, 3], len(boxes)), (boxes[:, 2:] - boxes[:, :2]).prod(1), rng.random(len(boxes)) < 1 / 8
        ),
        first=np.concatenate([[0], np.cumsum(counts)]),
        categories={2: "cat", 3: "dog", 9: "owl"},
        shards=(images,),
    )


def detector(index: CocoIndex, seed: int) -> CocoEvaluator:
    """Finds every box, moved, a third of them under the wrong name, and things that are not there."""
    rng, evaluator, rows = np.random.default_rng(seed), CocoEvaluator(index), []
    for position, record in enumerate(index.images):
        truth = index.annotations_of(position)
        for box, label in zip(truth.boxes + rng.normal(0, 3, truth.boxes.shape), truth.labels, strict=True):
            named = label if rng.random() < 2 / 3 else rng.choice([2, 3, 9])
            rows.append([record.id, *box[:2], *(box[2:] - box[:2]), rng.random() + 0.3, named])
        rows += [[record.id, *rng.uniform(0, 50, 4), rng.random(), rng.choice([2, 3, 9])] for _ in range(3)]
    evaluator.add_rows(np.array(rows))
    return evaluator


def drawn(evaluator: CocoEvaluator, counts: np.ndarray) -> CocoEvaluator:
    """The same detections on an index that holds each image as often as it counts, under ids of its own."""
    index, rows = evaluator.index, evaluator.rows()
    images, boxes, labels, areas, crowd, first, found = [], [], [], [], [], [0], []
    for position in np.repeat(np.arange(len(counts)), counts):
        record, truth = index.images[position], index.annotations_of(position)
        images.append(record._replace(id=len(images) + 1))
        for part, kept in zip(truth, (boxes, labels, areas, crowd), strict=True):
            kept.extend(part)
        first.append(len(boxes))
        mine = rows[rows[:, 0] == record.id].copy()
        mine[:, 0] = len(images)
        found.append(mine)
    annotations = Annotations(np.array(boxes), np.array(labels), np.array(areas), np.array(crowd))
    made = CocoEvaluator(
        CocoIndex(
            images=tuple(images),
            annotations=annotations,
            first=np.array(first),
            categories=index.categories,
            shards=(len(images),),
        )
    )
    made.add_rows(np.concatenate(found))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_images_drawn_as_often(seed: int) -> None:
    rng = np.random.default_rng(seed)
    evaluator = detector(random_index(rng), seed)
    ones = np.ones((1, len(evaluator.index.images)))
    whole = evaluator.result().numbers["mAP50"]
    assert map50(matches(evaluator), ones)[0] == pytest.approx(whole, abs=1e-12)
    counts = rng.multinomial(12, ones[0] / 12, size=5)
    found = map50(matches(evaluator), counts.astype(float))
    for row, value in zip(counts, found, strict=True):
        assert value == pytest.approx(drawn(evaluator, row).result().numbers["mAP50"], abs=1e-9)


def test_interval_of_a_difference() -> None:
    index = random_index(np.random.default_rng(5), images=40)
    good, bad = detector(index, 1), CocoEvaluator(index)
    rows = good.rows()
    bad.add_rows(rows[np.random.default_rng(2).random(len(rows)) < 0.3])
    found = difference(good, bad, seed=0, replicates=300)
    expected = good.result().numbers["mAP50"] - bad.result().numbers["mAP50"]
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert 0 < found.low < expected < found.high
    assert found == difference(good, bad, seed=0, replicates=300)
    same = difference(good, good, seed=0, replicates=50)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_no_box_at_all() -> None:
    index = dataclasses.replace(random_index(np.random.default_rng(0), images=3), categories={9: "owl"})
    assert map50(matches(detector(index, 0)), np.ones((2, 3))).tolist() == [-1, -1]


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = detector(random_index(np.random.default_rng(7)), 7)
    weights = np.random.default_rng(1).integers(0, 3, (20, 12)).astype(float)
    whole = map50(matches(evaluator), weights)
    monkeypatch.setattr("model.bootstrap.AT_ONCE", 150)
    np.testing.assert_array_equal(map50(matches(evaluator), weights), whole)
