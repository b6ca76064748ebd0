"""hotcoco's arithmetic against pycocotools' on small random sets with everything that could set them apart."""

import logging
import sys
from pathlib import Path
from unittest.mock import patch

import hotcoco
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import bootstrap, scoring
from model.data.coco import Annotations, CocoIndex, ImageRecord
from model.metrics import CocoEvaluator, CocoResult

LABELS = (2, 3, 7, 9)
# Widths and heights on both sides of the limits of sizes, 32 and 96 pixels squared.
SIDES = st.sampled_from((0.0, 1.0, 8.0, 31.0, 32.0, 33.0, 96.0, 97.0, 150.0))
BOXES = st.tuples(st.sampled_from((0.0, 2.0, 5.0, 40.0)), st.sampled_from((0.0, 3.0, 50.0)), SIDES, SIDES)
TRUTHS = st.lists(st.tuples(BOXES, st.sampled_from(LABELS[:3]), st.booleans(), st.sampled_from((0.5, 1.0))), max_size=4)
SCORES = st.sampled_from((0.0, 0.25, 0.5, 0.5000000001, 1.0))
# Label 0 is no category; 9 has no boxes.
FOUND = st.lists(st.tuples(BOXES, SCORES, st.sampled_from((0, *LABELS))), max_size=8)
IMAGES = st.lists(st.tuples(TRUTHS, FOUND), min_size=1, max_size=4)


def evaluator_of(
    images: list[tuple[list[tuple], list[tuple]]], ids: list[int], classes: list[int] | None
) -> CocoEvaluator:
    truths = [truth for truth, _ in images]
    flat = [row for truth in truths for row in truth]
    xywh = np.array([row[0] for row in flat]).reshape(-1, 4)
    index = CocoIndex(
        images=tuple(ImageRecord(key, Path("absent.jpg"), 200, 200) for key in ids),
        annotations=Annotations(
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            np.array([row[1] for row in flat], dtype=np.int64),
            xywh[:, 2:].prod(axis=1) * np.array([row[3] for row in flat]),
            np.array([row[2] for row in flat], dtype=bool),
        ),
        first=np.concatenate([[0], np.cumsum([len(truth) for truth in truths])]).astype(np.int64),
        categories={2: "cat", 3: "dog", 7: "cow", 9: "owl"},
        shards=(len(ids),),
    )
    evaluator = CocoEvaluator(index, classes)
    for key, (_, found) in zip(ids, images, strict=True):
        rows = [(key, *box, score, label) for box, score, label in found]
        evaluator.add_rows(np.array(rows, dtype=float).reshape(-1, 7))
    evaluator.add_rows(np.array([[1234.0, 0, 0, 9, 9, 0.9, 2]]))  # of no image
    return evaluator


def numbers_of(result: CocoResult) -> np.ndarray:
    parts = (result.numbers, result.per_class, result.per_class50, result.precision50)
    return np.concatenate([np.ravel(list(part.values())) for part in parts])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    IMAGES,
    st.permutations((-4, 7, 0, 9_007_199_254_740_991)),
    st.none() | st.sets(st.sampled_from(LABELS), min_size=1),
    st.booleans(),
)
def test_numbers_classes_and_curves_are_pycocotools(
    images: list[tuple[list[tuple], list[tuple]]], ids: list[int], classes: set[int] | None, by_size: bool
) -> None:
    evaluator = evaluator_of(images, list(ids)[: len(images)], sorted(classes) if classes else None)
    assert isinstance(evaluator.compared(), hotcoco.COCOeval)
    ours, matches = evaluator.result(by_size=by_size), bootstrap.matches(evaluator)
    with patch.object(scoring, "_hotcoco", lambda: None):
        theirs, reference = evaluator.result(by_size=by_size), bootstrap.matches(evaluator)
    assert numbers_of(ours).shape == numbers_of(theirs).shape
    np.testing.assert_allclose(numbers_of(ours), numbers_of(theirs), rtol=0, atol=1e-12)
    for one, other in zip(matches, reference, strict=True):
        for found, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, wanted)


def noisy(seed: int) -> CocoEvaluator:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(20):
        low = rng.uniform(0, 100, (12, 2))
        boxes = np.concatenate([low, rng.uniform(5, 100, (12, 2))], axis=1)
        labels = rng.choice(LABELS[:3], 12).tolist()
        truths = [(tuple(box), label, bool(rng.random() < 0.1), 1.0) for box, label in zip(boxes, labels, strict=True)]
        moved = boxes + rng.normal(0, 4, boxes.shape)
        found = [(tuple(box), round(rng.random(), 1), label) for box, label in zip(moved, labels, strict=True)]
        images.append((truths[:6], found))
    return evaluator_of(images, rng.permutation(1000)[:20].tolist(), None)


@pytest.mark.parametrize("seed", range(3))
def test_noisy_detections_of_every_quality(seed: int) -> None:
    evaluator = noisy(seed)
    ours = evaluator.result()
    with patch.object(scoring, "_hotcoco", lambda: None):
        theirs = evaluator.result()
    assert 0 < ours.numbers["mAP"] < 1
    np.testing.assert_allclose(numbers_of(ours), numbers_of(theirs), rtol=0, atol=1e-12)


def test_without_hotcoco_pycocotools_counts_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = noisy(0)
    wanted = evaluator.result()
    scoring._hotcoco.cache_clear()
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    try:
        with caplog.at_level(logging.WARNING):
            assert [evaluator.result() for _ in range(2)] == [wanted] * 2
            assert type(evaluator.compared()).__module__ == "pycocotools.cocoeval"
    finally:
        scoring._hotcoco.cache_clear()
    assert [record.message for record in caplog.records if "pycocotools" in record.message] == [
        "hotcoco cannot be imported (import of hotcoco halted; None in sys.modules): COCO numbers are pycocotools', "
        "the same and slower"
    ]


def test_a_score_that_is_no_number_goes_to_pycocotools() -> None:
    evaluator = noisy(0)
    rows = evaluator.rows()
    rows[3, 5] = np.nan
    assert type(scoring.compare(evaluator.index, rows, LABELS)).__module__ == "pycocotools.cocoeval"


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    for by_size in (True, False):
        noisy(0).result(by_size=by_size)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
