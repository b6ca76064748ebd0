"""What an evaluation leaves behind: numbers, a table of classes, all detections, a picture of extremes.

Knows finished detections and their truth; runs no network and computes no metric of its own.
"""

import csv
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from model.data.transforms import decode
from model.errors import DataError
from model.image_scores import ImageScore, image_scores
from model.metrics import RECALLS, CocoEvaluator, CocoResult
from model.pictures import Mark, Tile, draw, enlarged, grid
from model.whole import in_place, write_text

log = logging.getLogger(__name__)

TILES = 4
"""Images of the worst, and as many of the best."""
PICTURES = 12
"""Images of a report, the worst ones."""
TABLE_ROWS = 30
"""Classes of the printed table; the file has all."""


def write_result(out: Path, result: CocoResult, evaluator: CocoEvaluator) -> None:
    """What `evaluate` leaves: write_numbers, results.json, the table of classes told, and the picture of extremes."""
    write_numbers(out, result, evaluator)
    plain = {name.replace("mAP", "AP"): value for name, value in result.numbers.items()}
    write_text(json.dumps(plain, indent=2) + "\n", out / "results.json")
    for line in class_table(class_rows(result, evaluator)):
        log.info("%s", line)
    picture = worst_and_best(evaluator)
    if picture is not None:
        with in_place(out / "worst_and_best.png") as (partial,):
            picture.save(partial, "PNG")


def write_numbers(out: Path, result: CocoResult, evaluator: CocoEvaluator) -> None:
    """metrics.json, per_class.csv, predictions.json (COCO's results format)."""
    write_text(json.dumps(result.numbers, indent=2) + "\n", out / "metrics.json")
    rows = class_rows(result, evaluator)
    with in_place(out / "per_class.csv") as (partial,), partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ClassRow._fields)
        table.writeheader()
        table.writerows(row._asdict() for row in rows)
    write_text(json.dumps(coco_results(evaluator.rows().tolist())), out / "predictions.json")


def write_curves(out: Path, result: CocoResult, evaluator: CocoEvaluator) -> None:
    """curves.json: precision at IoU .50 at each of RECALLS, of every class that has boxes."""
    names = evaluator.index.categories
    classes = [
        {"category_id": key, "name": names[key], "precision": [round(value, 5) for value in precision]}
        for key, precision in result.precision50.items()
        if max(precision) >= 0
    ]
    write_text(json.dumps({"recall": RECALLS, "classes": classes}), out / "curves.json")


def write_pictures(out: Path, evaluator: CocoEvaluator, most: int = PICTURES) -> None:
    """pictures/01.jpg and on: images with true and found boxes, the lowest F1 first, none without a fault;
    pictures.json says what they are. Earlier pictures are replaced."""
    threshold, scores = image_scores(evaluator.index, evaluator.rows(), evaluator.classes)
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.jpg"):
        stale.unlink()
    told: list[dict[str, Any]] = []
    for score in ranked(scores):
        if len(told) == most or score.f1 == 1.0:
            break
        tile = _tile(evaluator, score, threshold)
        if tile is None:
            continue
        file = f"{len(told) + 1:02d}.jpg"
        with in_place(folder / file) as (partial,):
            tile.image.save(partial, "JPEG", quality=85)
        name = evaluator.index.images[score.position].path.name
        counts = {"hits": score.hits, "wrong": score.wrong, "missed": score.missed}
        told.append({"file": file, "image": name, "f1": round(score.f1, 4), **counts})
    plain = {"threshold": threshold, "images": len(scores), "pictures": told}
    write_text(json.dumps(plain, indent=2) + "\n", folder / "pictures.json")


class ClassRow(NamedTuple):
    """One class in the test set; average precisions as CocoResult has them."""

    category_id: int
    name: str
    mAP: float  # noqa: N815 - a column's name
    mAP50: float  # noqa: N815
    boxes: int


def class_rows(result: CocoResult, evaluator: CocoEvaluator) -> list[ClassRow]:
    truth = evaluator.index.annotations
    counts = Counter(truth.labels[~truth.crowd].tolist())
    names = evaluator.index.categories
    return [
        ClassRow(key, names[key], value, result.per_class50[key], counts[key])
        for key, value in result.per_class.items()
    ]


def class_table(rows: Sequence[ClassRow]) -> list[str]:
    """Lines to print: the worst classes first, those without a box in the test set last."""
    order = sorted(rows, key=lambda row: (row.boxes == 0, row.mAP, row.category_id))
    wide = max(len(row.name) for row in rows)
    lines = [f"{'class':{wide}s}   mAP  mAP50  boxes"]
    for row in order[:TABLE_ROWS]:
        numbers = f"{row.mAP:.3f}  {row.mAP50:.3f}" if row.boxes else "    -      -"
        lines.append(f"{row.name:{wide}s} {numbers}  {row.boxes:5d}")
    if len(order) > TABLE_ROWS:
        lines.append(f"and {len(order) - TABLE_ROWS} better ones in per_class.csv")
    return lines


def worst_and_best(evaluator: CocoEvaluator) -> Image.Image | None:
    """The images with the lowest F1 in the upper row, those with the highest below. None where no image can be read,
    or none holds or shows anything."""
    threshold, scores = image_scores(evaluator.index, evaluator.rows(), evaluator.classes)
    order = ranked(scores)
    half = min(TILES, -(-len(order) // 2))
    halves = {"worst": order[:half], "best": order[max(half, len(order) - half) :][::-1]}
    rows = []
    for name, some in halves.items():
        tiles = [tile for score in some if (tile := _tile(evaluator, score, threshold))]
        heading = f"The {name} by F1 at score {threshold:.2f}: true boxes green, found ones orange"
        rows += [(heading, tiles)] if tiles else []
    return grid(rows) if rows else None


def ranked(scores: Sequence[ImageScore]) -> list[ImageScore]:
    """Worst first; without the images that hold and show nothing."""
    return sorted(
        (score for score in scores if score.hits + score.wrong + score.missed),
        key=lambda score: (score.f1, score.hits - score.wrong - score.missed, score.position),
    )


def _tile(evaluator: CocoEvaluator, score: ImageScore, threshold: float) -> Tile | None:
    record, names = evaluator.index.images[score.position], evaluator.index.categories
    try:
        image = decode(record.path)
    except DataError:
        return None
    truth = evaluator.index.annotations_of(score.position)
    boxes = zip(truth.boxes.tolist(), truth.labels.tolist(), truth.crowd.tolist(), strict=True)
    marks = [
        Mark(tuple(box), "limegreen", names[label] + (" crowd" if crowd else ""))
        for box, label, crowd in boxes
        if label in evaluator.classes
    ]
    rows = evaluator.rows()
    for _, x, y, wide, high, found, label in rows[(rows[:, 0] == record.id) & (rows[:, 5] >= threshold)].tolist():
        if label in evaluator.classes:
            marks.insert(0, Mark((x, y, x + wide, y + high), "orange", f"{names[int(label)]} {found:.2f}"))
    counts = f"{score.hits} hit, {score.wrong} wrong, {score.missed} missed"
    caption = f"F1 {score.f1:.2f}: {counts}, {record.path.name}"
    return Tile(draw(*enlarged(image, marks), outline=2), caption)


def coco_results(rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """rows: image id, x, y, width, height, score, category id; as COCO's results format has them."""
    return [
        {"image_id": int(image), "category_id": int(label), "bbox": box, "score": score}
        for image, *box, score, label in rows
    ]
