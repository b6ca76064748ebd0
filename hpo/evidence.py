"""The winner once more on the validation images, for a report to show. Writes `evaluation/` of a run folder; draws no
page and chooses no winner."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.files import write_json

if TYPE_CHECKING:
    from model.metrics import CocoEvaluator, CocoResult
    from model.spec import ExperimentSpec

FOLDER = "evaluation"
SUMMARY = "evaluation.json"
"""Written last: its presence says that the folder is complete."""
TEST = "test.json"
"""Beside the folder's files: scores on the test images, which chose nothing."""


def gather(run: Path, spec: "ExperimentSpec", winner: Path, *, trial: int, default: Path | None, cpus: int) -> None:
    """Scores the checkpoint `winner` on the validation data of `spec`: metrics.json, per_class.csv, predictions.json,
    curves.json, pictures/. With `default`, the checkpoint of the default configuration, the summary also holds an
    interval of the difference. Nothing is written where the spec names no validation data."""
    from model.report import write_curves, write_numbers, write_pictures

    if not spec.dataset.has_validation:
        return
    folder = run / FOLDER
    clear(run)
    result, evaluator = _score(winner, spec, cpus)
    write_numbers(folder, result, evaluator)
    write_curves(folder, result, evaluator)
    write_pictures(folder, evaluator)
    summary: dict[str, Any] = {
        "trial": trial,
        "checkpoint": os.path.relpath(winner, run),
        "images": len(evaluator.index.images),
        "boxes": int((~evaluator.index.annotations.crowd).sum()),
        "mAP50": result.numbers["mAP50"],
    }
    if default is not None:
        from model.bootstrap import difference

        theirs, other = _score(default, spec, cpus)
        interval = difference(evaluator, other, seed=max(spec.train.seed, 0))
        summary["against_default"] = {**interval._asdict(), "default": theirs.numbers["mAP50"]}
    write_json(summary, folder / SUMMARY)


def clear(run: Path) -> None:
    """Removes what an earlier winner left, the test scores apart."""
    folder = run / FOLDER
    (folder / SUMMARY).unlink(missing_ok=True)
    for name in ("metrics.json", "per_class.csv", "predictions.json", "curves.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "pictures", ignore_errors=True)


def keep_test_scores(run: Path, scores: Mapping[str, float]) -> None:
    """`scores`: mAP50 of `winner` and, where it left a checkpoint, of `default`."""
    write_json(scores, run / FOLDER / TEST)


def _score(checkpoint: Path, spec: "ExperimentSpec", cpus: int) -> "tuple[CocoResult, CocoEvaluator]":
    from model.evaluate import evaluate_checkpoint

    dataset = spec.to_dict()["dataset"]
    data = {name: dataset[name] for name in ("val_data_sources", "eval_class_ids", "workers")}
    given = {"dataset": data, "evaluate": {"conf_threshold": 0.0}}  # as a training validates: all detections count
    return evaluate_checkpoint(checkpoint, given, split="val", cpus=cpus)
