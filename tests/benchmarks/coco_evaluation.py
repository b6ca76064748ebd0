"""COCO's numbers of 500,000 detections by hotcoco and by pycocotools: CPU seconds, memory, and how far they differ.

    python tests/benchmarks/coco_evaluation.py [--images 5000] [--rounds 3] [--threads 1]

Drawn data of the size of COCO's validation split: 100 detections an image, 80 classes, about 7 boxes an image, 1 % of
them crowds, equal scores among the detections. The two take turns, each time in a fork of this process, so that memory
counts from the same start. Timed is all from the rows of the batches to the finished result, ground truth included;
`alone` are pycocotools' own three calls within it, evaluate, accumulate and summarize.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from pycocotools.cocoeval import COCOeval

from model import scoring
from model.data.coco import Annotations, CocoIndex
from model.data.records import ImageRecord, ImageTable
from model.metrics import NUMBERS, CocoEvaluator, CocoResult

SIDE, CLASSES, BATCH = 640, 80, 8
NAMES = {False: "hotcoco", True: "pycocotools"}


class Run(NamedTuple):
    seconds: float
    alone: float
    megabytes: float
    """The most that was resident, beyond what was at the start."""
    result: CocoResult


def drawn(images: int, seed: int = 0) -> tuple[CocoIndex, list[np.ndarray]]:
    """An index, and the rows of each batch of images: its own boxes moved, some under a wrong name, and chance ones."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(7.3, images)
    total = int(counts.sum())
    boxes = _boxes(rng, total)
    records = (ImageRecord(7 + 3 * place, Path(f"/data/{place:012}.jpg"), SIDE, SIDE) for place in range(images))
    index = CocoIndex(
        images=ImageTable(records),
        annotations=Annotations(
            boxes,
            rng.integers(1, CLASSES + 1, total),
            (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(0.5, 1, total),
            rng.random(total) < 0.012,
        ),
        first=np.concatenate([[0], np.cumsum(counts)]),
        categories={key: f"class {key}" for key in range(1, CLASSES + 1)},
        shards=(images,),
    )
    found = []
    for place in range(images):
        truth = index.annotations_of(place)
        own = len(truth.boxes)
        corners, labels = _boxes(rng, 100), rng.integers(1, CLASSES + 1, 100)
        scores = rng.random(100).round(3)
        corners[:own] = truth.boxes + rng.normal(0, 5, (own, 4))
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
        labels[:own] = np.where(rng.random(own) < 0.7, truth.labels, labels[:own])
        scores[:own] += 0.3
        found.append(
            np.column_stack(
                [np.full(100, 7 + 3 * place), corners[:, :2], corners[:, 2:] - corners[:, :2], scores, labels]
            )
        )
    return index, [np.concatenate(found[start : start + BATCH]) for start in range(0, images, BATCH)]


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, SIDE * 0.8, (count, 2))
    return np.concatenate([low, np.minimum(low + np.exp(rng.uniform(2, 5.7, (count, 2))), SIDE)], axis=1)


def measured(index: CocoIndex, batches: list[np.ndarray], reference: bool, answer: Any) -> None:
    """In a process of its own; the Run goes to `answer`."""
    alone = _timed_calls() if reference else [0.0]
    if reference:
        scoring._hotcoco = lambda: None  # type: ignore[assignment]
    else:
        scoring._hotcoco()  # its import is no part of an evaluation
    at_start = _resident()
    begun = time.process_time()
    evaluator = CocoEvaluator(index)
    for rows in batches:
        evaluator.add_rows(rows)
    result = evaluator.result()
    seconds = time.process_time() - begun
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # A mapping proxy cannot be sent to another process.
    answer.put(Run(seconds, sum(alone), most - at_start, result._replace(precision50=dict(result.precision50))))


def _timed_calls() -> list[float]:
    taken: list[float] = []
    for name in ("evaluate", "accumulate", "summarize"):
        call = getattr(COCOeval, name)

        @wraps(call)
        def timed(self: COCOeval, call: Any = call) -> None:
            begun = time.process_time()
            call(self)
            taken.append(time.process_time() - begun)

        setattr(COCOeval, name, timed)
    return taken


def _resident() -> float:
    """Megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main(images: int, rounds: int) -> None:
    index, batches = drawn(images)
    print(f"{images} images, {len(index.annotations.boxes)} boxes, {sum(map(len, batches))} detections", flush=True)
    context, runs = multiprocessing.get_context("fork"), {False: [], True: []}  # type: ignore[var-annotated]
    for _ in range(rounds):
        for reference, found in runs.items():
            answer = context.SimpleQueue()
            process = context.Process(target=measured, args=(index, batches, reference, answer))
            process.start()
            run = answer.get()
            process.join()
            found.append(run)
            print(f"{NAMES[reference]}: CPU {run.seconds:.3f} s, memory added {run.megabytes:.0f} MB", flush=True)
    ours, theirs = runs.values()
    mine = statistics.median(run.seconds for run in ours)
    whole, alone = (statistics.median(getattr(run, name) for run in theirs) for name in ("seconds", "alone"))
    print(f"ratio of medians: {whole / mine:.1f} (pycocotools alone, {alone:.3f} s: {alone / mine:.1f})")
    one, other = ours[0].result, theirs[0].result
    for name in NUMBERS:
        print(f"{name}: {one.numbers[name]:.6f}, difference {abs(one.numbers[name] - other.numbers[name]):.1e}")
    pairs = [
        (one.per_class, other.per_class),
        (one.per_class50, other.per_class50),
        (one.precision50, other.precision50),
    ]
    furthest = max(float(np.abs(np.subtract(left[key], right[key])).max()) for left, right in pairs for key in left)
    print(f"classes and curves: largest difference {furthest:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of hotcoco; pycocotools has one")
    given = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(given.threads)
    main(given.images, given.rounds)
