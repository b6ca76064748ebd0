"""Everything that a report is made from, read from a run folder. Words and plots are elsewhere.

A part that is not there, or not yet, is None or empty: a report is made of a run in any state.
"""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from hpo.delivery import DELIVERY
from hpo.errors import RunError
from hpo.evidence import FOLDER, SUMMARY, TEST
from hpo.result import Outcome, SweepResult, TrialRecord, read_result
from hpo.runs import HANDOFF, read_sweep
from model.metrics import VAL_MAP50, Measurement
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from hpo.reporting.importance import Importance

PLAIN_EPOCHS = "epochs.jsonl"
"""In trials/0 of a plain run: a line for each epoch."""


class Worst(NamedTuple):
    file: Path
    image: str
    f1: float
    hits: int
    wrong: int
    missed: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The winner on the validation images."""

    trial: int
    images: int
    boxes: int
    numbers: Mapping[str, float]
    classes: Sequence[Mapping[str, str]]
    """Rows of per_class.csv."""
    recall: Sequence[float]
    curves: Sequence[Mapping[str, Any]]
    """name, and precision at each recall."""
    threshold: float
    worst: Sequence[Worst]
    against_default: Mapping[str, float] | None
    """difference, low, high, level, replicates, images, default."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    run_dir: Path
    plain: bool
    """Whether it is a training without a search: one trial, and it is the default."""
    result: SweepResult
    epochs: int
    """Of a full trial."""
    space: SearchSpace | None
    sweep: Mapping[str, Any]
    """The `automl` block."""
    evaluation: Evaluation | None
    test: Mapping[str, float]
    """mAP50 on the test images, of `winner` and `default`."""
    delivery: Mapping[str, Any] | None
    importance: "Importance | None"
    """None where it was not asked for."""

    @cached_property
    def winner(self) -> TrialRecord | None:
        return self.result.best

    @cached_property
    def leader(self) -> TrialRecord | None:
        """The winner; before any trial ended the one with the best epoch."""
        if self.winner is not None:
            return self.winner
        sign = -1.0 if self.result.metric.goal == "maximize" else 1.0
        known = [
            (sign * value, trial.number, trial)
            for trial in self.result.trials
            if (value := trial.value(self.result.metric)) is not None
        ]
        return min(known)[2] if known else None

    @property
    def handed_over(self) -> bool:
        return self.delivery is not None


def read_facts(run_dir: Path, *, importance: bool = True) -> Facts:
    """Raises RunError for a folder without a run. `importance` False leaves out what takes long on many trials."""
    from hpo.reporting.importance import importance_of

    run_dir = run_dir.resolve()
    if not (run_dir / "spec.yaml").is_file():
        raise RunError(f"a report is made of a run, but {run_dir} holds no spec.yaml; `ddetr runs` lists the runs.")
    spec = yaml.safe_load((run_dir / "spec.yaml").read_text(encoding="utf-8"))
    plain = not (run_dir / "study.db").is_file()
    result = _plain_result(run_dir, spec) if plain else read_result(run_dir)
    space = None if plain else _space(run_dir)
    sweep = read_sweep(run_dir)
    population = sweep.get("scheduler") == "pbt"
    return Facts(
        run_dir=run_dir,
        plain=plain,
        result=result,
        epochs=int(spec["train"]["num_epochs"]),
        space=space,
        sweep=sweep,
        evaluation=_evaluation(run_dir / FOLDER),
        test=_json(run_dir / FOLDER / TEST) or {},
        delivery=_json(run_dir / DELIVERY) if (run_dir / HANDOFF).is_file() else None,
        importance=importance_of(result, space, population=population) if importance and space is not None else None,
    )


def keep_epoch(run_dir: Path, measurement: Measurement) -> None:
    """Adds an epoch of a plain training to its book."""
    path = run_dir / "trials" / "0" / PLAIN_EPOCHS
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(measurement)) + "\n")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _space(run_dir: Path) -> SearchSpace | None:
    found = _json(run_dir / "space.json")
    return None if found is None else SearchSpace.from_dict(found)


def _plain_result(run_dir: Path, spec: Mapping[str, Any]) -> SweepResult:
    """One training in the form of a search's result."""
    folder = run_dir / "trials" / "0"
    book = folder / PLAIN_EPOCHS
    lines = book.read_text(encoding="utf-8").splitlines() if book.is_file() else []
    known = {field.name for field in dataclasses.fields(Measurement)}
    measurements = [
        Measurement(**{key: value for key, value in json.loads(line).items() if key in known}) for line in lines
    ]
    done = (run_dir / HANDOFF).is_file()
    trial = TrialRecord(
        number=0,
        baseline=True,
        outcome=Outcome.COMPLETED if done else None,
        reason=None,
        sample={},
        params={},
        adjustments=(),
        measurements=tuple(measurements),
        seconds=measurements[-1].seconds if measurements else 0.0,
        checkpoint=None,
    )
    return SweepResult(
        run_dir=run_dir,
        metric=VAL_MAP50,
        trials=(trial,),
        budget=1,
        space_hash="",
        seed=int(spec["train"].get("seed", 0)),
        ended="trained" if done else None,
        seconds=trial.seconds,
    )


def _evaluation(folder: Path) -> Evaluation | None:
    summary = _json(folder / SUMMARY)
    if summary is None:
        return None
    with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
        classes = list(csv.DictReader(file))
    curves, pictures = _json(folder / "curves.json"), _json(folder / "pictures" / "pictures.json")
    return Evaluation(
        trial=summary["trial"],
        images=summary["images"],
        boxes=summary["boxes"],
        numbers=_json(folder / "metrics.json"),
        classes=classes,
        recall=curves["recall"],
        curves=curves["classes"],
        threshold=pictures["threshold"],
        worst=[Worst(**{**each, "file": folder / "pictures" / each["file"]}) for each in pictures["pictures"]],
        against_default=summary.get("against_default"),
    )
