import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.data.coco import Annotations, CocoIndex, ImageRecord
from model.metrics import NUMBERS, VAL_MAP50, CocoEvaluator, Measurement, Metric

SIDE = 200


class Detections(NamedTuple):
    scores: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor


def random_index(rng: np.random.Generator, images: int = 12) -> CocoIndex:
    """0 to 6 boxes an image, one in eight a crowd, of all sizes; categories 2, 3, 7, and 9 without any box."""
    counts = rng.integers(0, 7, images)
    total = int(counts.sum())
    low = rng.uniform(0, SIDE / 2, (total, 2))
    boxes = np.concatenate([low, low + rng.uniform(3, SIDE / 2, (total, 2))], axis=1)
    return CocoIndex(
        images=tuple(ImageRecord(5 + 3 * number, Path("absent.jpg"), SIDE, SIDE) for number in range(images)),
        annotations=Annotations(
            boxes,
            rng.choice([2, 3, 7], total),
            (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * rng.uniform(0.5, 1, total),
            rng.random(total) < 1 / 8,
        ),
        first=np.concatenate([[0], np.cumsum(counts)]),
        categories={2: "cat", 3: "dog", 7: "cow", 9: "owl"},
        shards=(images,),
    )


def noisy_detections(index: CocoIndex, rng: np.random.Generator, count: int) -> list[tuple[int, Detections]]:
    """For each image its own boxes, moved, and random ones; a third have a wrong label."""
    found = []
    for position, image in enumerate(index.images):
        truth = index.annotations_of(position)
        low = rng.uniform(0, SIDE / 2, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(3, SIDE / 2, (count, 2))], axis=1)
        labels = rng.choice([0, 2, 3, 7, 9], count)
        boxes[: len(truth.boxes)] = truth.boxes + rng.normal(0, 3, truth.boxes.shape)
        right = rng.random(len(truth.labels)) < 2 / 3
        labels[: len(truth.labels)][right] = truth.labels[right]
        scores = rng.random(count).round(2)  # ties
        scores[: len(truth.boxes)] += 0.5
        order = rng.permutation(count)
        parts = (torch.from_numpy(part[order])[None] for part in (scores, labels, boxes))
        found.append((image.id, Detections(*parts)))
    return found


def peer(index: CocoIndex, found: list[tuple[int, Detections]], classes: list[int] | None, folder: Path) -> np.ndarray:
    """pycocotools as its own documentation uses it: files, loadRes, the three calls."""
    truth = folder / "truth.json"
    annotations = []
    for position, image in enumerate(index.images):
        for box, label, area, crowd in zip(*index.annotations_of(position), strict=True):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image.id, "category_id": int(label), "area": float(area)}
                | {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(crowd)}
            )
    categories = [{"id": key, "name": name} for key, name in index.categories.items()]
    images = [{"id": image.id} for image in index.images]
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    results = [
        {"image_id": key, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
        for key, (scores, labels, boxes) in found
        for score, label, (x0, y0, x1, y1) in zip(scores[0], labels[0], boxes[0].tolist(), strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(results))
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        if classes:
            evaluation.params.catIds = classes
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


@pytest.mark.parametrize("classes", [None, [3], [2, 7]])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_pycocotools(
    seed: int, classes: list[int] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(seed)
    index = random_index(rng)
    found = noisy_detections(index, rng, 30)
    evaluator = CocoEvaluator(index, classes)
    for key, detections in found:
        evaluator.update([key], detections)
    result = evaluator.result()
    assert capsys.readouterr().out == ""
    assert tuple(result.numbers) == NUMBERS
    assert list(result.numbers.values()) == peer(index, found, classes, tmp_path).tolist()
    assert 0 < result.numbers["mAP"] < 1
    quick = evaluator.result(by_size=False)
    assert quick.per_class == result.per_class
    assert quick.numbers == {key: -1.0 if key[-1] in "sml" else value for key, value in result.numbers.items()}
    known = [value for value in result.per_class.values() if value >= 0]
    assert np.mean(known) == pytest.approx(result.numbers["mAP"])
    for category, value in result.per_class.items():
        assert value == peer(index, found, [category], tmp_path)[0]


def test_batches_and_rows_of_other_ranks_add_up() -> None:
    rng = np.random.default_rng(0)
    index = random_index(rng)
    found = noisy_detections(index, rng, 20)
    whole, first, second = (CocoEvaluator(index) for _ in range(3))
    whole.update([key for key, _ in found], Detections(*map(torch.cat, zip(*(part for _, part in found), strict=True))))
    for number, (key, detections) in enumerate(found):
        (first if number % 2 else second).update([key], detections)
    first.add_rows(second.rows())
    assert first.result() == whole.result()


def test_the_hundred_best_of_an_image_count() -> None:
    index = random_index(np.random.default_rng(1), images=1)
    evaluator = CocoEvaluator(index)
    scores = torch.linspace(0, 1, 300)[None]
    evaluator.update([5], Detections(scores, torch.full((1, 300), 2), torch.rand(1, 300, 4)))
    assert evaluator.rows()[:, 5].tolist() == pytest.approx(scores[0].flip(0)[:100].tolist())


def test_silence_is_zero_and_no_truth_is_minus_one() -> None:
    rng = np.random.default_rng(0)
    result = CocoEvaluator(random_index(rng)).result()
    assert result.numbers["mAP50"] == 0.0
    assert result.per_class == {2: 0.0, 3: 0.0, 7: 0.0, 9: -1.0}
    only = CocoEvaluator(random_index(rng), [9]).result()
    assert set(only.numbers.values()) == {-1.0}


def test_an_image_without_detections_lowers_recall() -> None:
    """Two images, one box each: a perfect hit on one and silence on the other is recall 1/2, so AP is 51 of 101."""
    box = np.array([[10.0, 10.0, 60.0, 60.0]] * 2)
    index = CocoIndex(
        images=(ImageRecord(1, Path("a"), SIDE, SIDE), ImageRecord(2, Path("b"), SIDE, SIDE)),
        annotations=Annotations(box, np.array([4, 4]), np.array([2500.0, 2500.0]), np.array([False, False])),
        first=np.array([0, 1, 2]),
        categories={4: "ant"},
        shards=(2,),
    )
    evaluator = CocoEvaluator(index)
    evaluator.update([1], Detections(torch.tensor([[0.9]]), torch.tensor([[4]]), torch.from_numpy(box[:1])[None]))
    numbers = evaluator.result().numbers
    assert numbers["mAP50"] == pytest.approx(51 / 101)
    assert numbers["ARmax1"] == 0.5
    assert numbers["mAPs"] == -1.0


def test_unknown_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"but got \[4\]; there are \[2, 3, 7, 9\]"):
        CocoEvaluator(random_index(np.random.default_rng(0)), [2, 4])


def test_metric_carries_its_goal() -> None:
    assert VAL_MAP50.better(0.5, 0.4)
    assert not VAL_MAP50.better(0.4, 0.4)
    assert Metric("val_loss", "minimize").better(0.4, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_measurements_are_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="`val_loss` is"):
        Measurement(epoch=1, values={"val_mAP50": -1.0, "val_loss": bad}, seconds=1.0)
    with pytest.raises(ValueError, match="`seconds` is"):
        Measurement(epoch=1, values={}, seconds=bad)
    with pytest.raises(ValueError, match="`images_per_second` is"):
        Measurement(epoch=1, values={}, seconds=1.0, images_per_second=bad)
    with pytest.raises(ValueError, match="from 1, but got 0"):
        Measurement(epoch=0, values={}, seconds=1.0)
