"""Run folders as searches leave them, filled by hand: real studies, real pictures, no training."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hpo.delivery import DELIVERY, Delivery, Row
from hpo.evidence import FOLDER, SUMMARY, keep_test_scores
from hpo.files import write_json, write_spec
from hpo.ledger import Ledger
from hpo.result import Outcome
from model.bootstrap import difference
from model.data.coco import Annotations, CocoIndex
from model.data.records import ImageRecord
from model.metrics import VAL_MAP50, CocoEvaluator, Measurement
from model.report import write_curves, write_numbers, write_pictures
from model.spec import ExperimentSpec
from search_spaces.space import Dropped, Parameter, SearchSpace

EVIL = "<script>alert(1)</script>"
LR, DROPOUT, QUERIES, OPTIMIZER = (
    "train.optim.lr", "model.dropout_ratio", "model.num_queries", "train.optim.optimizer"
)  # fmt: skip
SPACE = SearchSpace(
    parameters=(
        Parameter(name=LR, kind="float", low=2e-5, high=2e-3, scale="log", default=2e-4),
        Parameter(name=DROPOUT, kind="float", low=0.0, high=0.4, default=0.1),
        Parameter(name=QUERIES, kind="int", low=100, high=900, step=100, default=300),
        Parameter(name=OPTIMIZER, kind="categorical", choices=("AdamW", "SGD"), default="AdamW"),
    ),
    dropped=(Dropped("train.optim.momentum", "train.optim.optimizer is AdamW"), Dropped("a.b", "it's <fixed>")),
    tier="narrow",
)
SPEC = ExperimentSpec.from_dict({"train": {"num_epochs": 4, "seed": 3}})


def begin(run: Path, trials: int = 18) -> Ledger:
    """A search without a trial, its request written."""
    run.mkdir(parents=True, exist_ok=True)
    write_spec(SPEC.to_dict(), run / "spec.yaml")
    write_json(SPACE.to_dict(), run / "space.json")
    write_json({"sweep": {"searcher": "random", "scheduler": "asha"}, "train": "bowl:train"}, run / "sweep.json")
    return Ledger.create(run, SPEC, SPACE, searcher="random", seed=1, budget=trials, points=(), metric=VAL_MAP50)


def train(ledger: Ledger, epochs: int = 4, value: float | None = None) -> int:
    """The next trial, on one of two workers, up to an epoch; what it reaches depends on its learning rate."""
    number = ledger.next()
    assert number is not None
    ledger.begun(number, pid=4000 + number % 2, node="a1")
    lr = ledger.record_of(number).params.get(LR, 2e-4)
    top = value if value is not None else 0.6 - 0.15 * (np.log10(lr) + 3.3) ** 2
    for epoch in range(1, epochs + 1):
        values = {VAL_MAP50.name: float(top * (1 - 0.5**epoch)), "val_loss": float(2 - top)}
        ledger.record(number, Measurement(epoch=epoch, values=values, seconds=30.0 * epoch + number))
    return number


def end(ledger: Ledger, number: int, outcome: Outcome = Outcome.COMPLETED, **facts: object) -> None:
    ledger.left(number)
    ledger.finish(number, outcome, seconds=120.0 + number, **facts)


def finished_search(run: Path, trials: int = 18, *, evil: bool = True) -> Path:
    """Every ending, a winner that was handed over and evaluated; class and file names that want to be markup."""
    ledger = begin(run, trials)
    for place in range(trials):
        number = train(ledger, 2 if place % 5 == 4 else 4)
        if place == 3:
            end(ledger, number, Outcome.FAILED, reason=f"ZeroDivisionError: crash {EVIL} (traceback in /x/error.txt)")
        elif place in (6, 11):
            end(ledger, number, Outcome.INFEASIBLE, reason=f"out of memory: {place} GB do not fit")
        else:
            end(ledger, number, Outcome.PRUNED if place % 5 == 4 else Outcome.COMPLETED)
    ledger.keep_time(3600.0, 0.0)
    ledger.end(f"{trials} of {trials} trials", [f"{trials} of {trials} trials"])
    hand_over(run, ledger.result().best.number, evil=evil)  # type: ignore[union-attr]
    return run


def hand_over(run: Path, winner: int, *, evil: bool = True) -> None:
    (run / "handoff.json").write_text("{}")
    word = EVIL if evil else "TensorRT is missing"
    rows = (
        Row("PyTorch", run / f"trials/{winner}/model_best.pth", 2_000_000, {"val": 0.44, "test": 0.4321}, 0.0, 12.5),
        Row("ONNX FP32", run / "model.onnx", 2_100_000, {"val": 0.4398, "test": 0.4319}, 0.0002, 9.5),
        Row("ONNX FP16", run / "model.fp16.onnx", 1_100_000, {"val": 0.43, "test": 0.42}, 0.01, 9.25, f"3 of 9 {word}"),
        Row("tensorrt_rtx FP32", run / "model.engine", 3_100_000, {}),
    )
    failures = (f"INT8: loses too much {word}",)
    Delivery(rows, (f"No engine was built: {word}",), failures).write(run / DELIVERY)
    evaluate(run, winner, evil=evil)
    keep_test_scores(run, {"default": 0.31, "winner": 0.42})


def evaluate(run: Path, winner: int, *, evil: bool = True) -> None:
    """What `hpo.evidence.gather` writes, of a detector that finds most boxes of six small pictures."""
    folder = run / FOLDER
    good, bad = detectors(run.parent / "pictures", EVIL if evil else "seven")
    result = good.result()
    write_numbers(folder, result, good)
    write_curves(folder, result, good)
    write_pictures(folder, good)
    interval = {**difference(good, bad, seed=0, replicates=100)._asdict(), "default": 0.1}
    told = {"trial": winner, "checkpoint": "x", "images": len(good.index.images), "boxes": 18, "mAP50": 0.4}
    (folder / SUMMARY).write_text(json.dumps({**told, "against_default": interval}))


def detectors(folder: Path, name: str) -> tuple[CocoEvaluator, CocoEvaluator]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for number in range(6):
        path = folder / f"{'evil & <b>' if number == 0 else 'picture'}-{number}.png"
        Image.fromarray(rng.integers(60, 190, (64, 96, 3), dtype=np.uint8)).save(path)
        images.append(ImageRecord(number + 1, path, 64, 96))
        boxes += [[x, 10 + 4 * number, x + 20, 36 + 4 * number] for x in (4.0, 36.0, 68.0)]
    corners = np.array(boxes)
    index = CocoIndex(
        images=tuple(images),
        annotations=Annotations(
            corners, np.tile([1, 2, 1], 6), (corners[:, 2:] - corners[:, :2]).prod(1), np.zeros(18, bool)
        ),
        first=np.arange(0, 19, 3),
        categories={1: name, 2: "eight", 3: "never seen"},
        shards=(6,),
    )
    good, bad = CocoEvaluator(index), CocoEvaluator(index)
    for place, (x0, y0, x1, y1) in enumerate(boxes):
        row = [place // 3 + 1, x0 + rng.normal(0, 2), y0, x1 - x0, y1 - y0, rng.random(), 1 if place % 3 != 1 else 2]
        if rng.random() < 0.8:
            good.add_rows(np.array([row]))
        if rng.random() < 0.4:
            bad.add_rows(np.array([row]))
    return good, bad


def plain_run(run: Path, *, finished: bool = True) -> Path:
    from hpo.reporting.facts import keep_epoch

    (run / "trials" / "0").mkdir(parents=True)
    write_spec(SPEC.to_dict(), run / "spec.yaml")
    for epoch in range(1, 5 if finished else 3):
        values = {VAL_MAP50.name: 0.1 * epoch, "train_loss": 3.0 / epoch, "val_loss": 4.0 / epoch, "lr": 1e-4}
        keep_epoch(run, Measurement(epoch=epoch, values=values, seconds=20.0 * epoch))
    if finished:
        hand_over(run, 0)
        summary = json.loads((run / FOLDER / SUMMARY).read_text())
        (run / FOLDER / SUMMARY).write_text(json.dumps({**summary, "against_default": None}))
        keep_test_scores(run, {"winner": 0.42})
    return run


def confirmed_search(run: Path) -> Path:
    """Three configurations; the best and the default ran with two more seeds each."""
    ledger = begin(run, 3)
    for value in (0.40, 0.50, 0.30):
        end(ledger, train(ledger, value=value))
    ledger.confirm([1, 0], [4, 5])
    for value in (0.52, 0.48, 0.42, 0.38):
        end(ledger, train(ledger, value=value))
    ledger.end("confirmed", [])
    return run
