"""What a sweep found, read from its study alone. Knows the file layout of a run; knows neither Ray nor MLflow.

A run folder is complete in itself: `study.db` holds each trial's sample, epochs, outcome and reason, so a result can be
read while the sweep runs, after it died, and on another machine.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hpo.errors import RunError
from hpo.pareto import pareto
from model.metrics import Measurement, Metric

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STUDY_NAME = "sweep"


class Outcome(Enum):
    """Every way a trial can end."""

    COMPLETED = "completed"  # measured at full budget
    PRUNED = "pruned"  # stopped by the scheduler, or, with a reason, by the end of the sweep; keeps its measurements
    INFEASIBLE = "infeasible"  # can never run here (memory at one image, divergence); told to the searcher, not retried
    FAILED = "failed"  # the configuration's own crash; not retried
    LOST = "lost"  # the worker or node went away; retried without using the budget, recorded when that never ended


class Attempt(NamedTuple):
    """One stretch of a trial on one worker. Times are seconds since 1970, by the driver's clock."""

    pid: int
    node: str
    """Ray's id."""
    start: float
    end: float | None = None
    """None while it runs, and when its driver was killed."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of the study. `reason` is present when it is infeasible, failed or lost, and when the end of the sweep
    stopped it."""

    number: int
    baseline: bool
    outcome: Outcome | None
    """None while it waits or runs."""
    reason: str | None
    sample: Mapping[str, Any]
    """Coordinates in the search space, as drawn."""
    params: Mapping[str, Any]
    """Spec values under their dotted names, as trained; for the baseline the user's own."""
    adjustments: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    """In the order of epochs."""
    seconds: float
    checkpoint: Path | None
    """The best epoch's own checkpoint."""
    repeats: int | None = None
    """The number of the trial that this one runs again with another seed."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Further objectives by name: parameters, milliseconds of a forward, megabytes."""
    attempts: tuple[Attempt, ...] = ()
    """Which workers ran it, in the order of time; more than one after a loss or a resume."""
    seed: int | None = None
    """Of a repeat; None: the spec's."""
    gpus: float = 0.0
    """That it was trained on."""
    end: int | None = None
    """Its place in the order in which trials ended."""
    sweep_gpu_seconds: float = 0.0
    """Of all trials together, when it ended."""

    @property
    def epochs(self) -> int:
        return self.measurements[-1].epoch if self.measurements else 0

    def best(self, metric: Metric) -> Measurement | None:
        """The best epoch; the earliest of equals."""
        found: Measurement | None = None
        for one in self.measurements:
            if metric.name in one.values and (
                found is None or metric.better(one.values[metric.name], found.values[metric.name])
            ):
                found = one
        return found

    def value(self, metric: Metric) -> float | None:
        """The metric at the best epoch."""
        found = self.best(metric)
        return None if found is None else found.values[metric.name]


class Score(NamedTuple):
    """What a trial is ranked by: the mean over its seeds."""

    mean: float
    spread: float
    """Sample standard deviation; 0 of a single run."""
    seeds: int


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    run_dir: Path
    metric: Metric
    trials: tuple[TrialRecord, ...]
    """In the order of numbers; one record for each trial of the budget that was begun."""
    budget: int
    space_hash: str
    seed: int
    repeats: tuple[TrialRecord, ...] = ()
    """Trials run again with other seeds, which are no configurations of their own."""
    goals: Mapping[str, Literal["maximize", "minimize"]] = field(default_factory=dict)
    """The objectives beside the metric, and their directions; empty for a search after one number."""
    confirmed: tuple[int, ...] = ()
    """Numbers of the trials that were to run again."""
    ended: str | None = None
    """Why the search is over; None while it is not."""
    spent: tuple[str, ...] = ()
    """A line for each budget: what was used of it."""
    seconds: float = 0.0
    """By the wall, of all sessions together."""
    gpu_seconds: float = 0.0

    @property
    def baseline(self) -> TrialRecord | None:
        return next((trial for trial in self.trials if trial.baseline), None)

    def score(self, trial: TrialRecord) -> Score | None:
        """None when the trial measured nothing."""
        runs = [trial, *(again for again in self.repeats if again.repeats == trial.number and _counts(again))]
        values = [value for value in (run.value(self.metric) for run in runs) if value is not None]
        if trial.value(self.metric) is None:
            return None
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return Score(statistics.fmean(values), spread, len(values))

    @property
    def contenders(self) -> tuple[TrialRecord, ...]:
        """Whom the winner is chosen from: the completed trials, or where none is, those that were trained longest; of
        these the ones that ran again with other seeds, where any did."""
        measured = [trial for trial in self.trials if trial.value(self.metric) is not None]
        found = [trial for trial in measured if trial.outcome is Outcome.COMPLETED]
        if not found:
            stopped = [trial for trial in measured if trial.outcome is Outcome.PRUNED]
            longest = max((trial.epochs for trial in stopped), default=0)
            found = [trial for trial in stopped if trial.epochs == longest]
        again = {run.repeats for run in self.repeats if _counts(run)} & {*self.confirmed}
        return tuple(trial for trial in found if not again or trial.number in again)

    @property
    def best(self) -> TrialRecord | None:
        """The contender with the best epoch, or with the best mean over its seeds. Among equals the one that no other
        objective speaks against, then the lowest number: a tie keeps the default."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    @property
    def pareto(self) -> tuple[TrialRecord, ...]:
        """Contenders that no other one beats in one objective without being worse in another."""
        known = [trial for trial in self.contenders if self.goals.keys() <= trial.costs.keys()]
        return tuple(known[place] for place in pareto([self._point(trial) for trial in known], self._directions))

    @property
    def improved(self) -> bool:
        """Whether the best trial is not the default configuration."""
        return self.best is not None and not self.best.baseline

    @property
    def default_to_compare(self) -> Path | None:
        """The default's checkpoint, where it and the winner are to be compared image by image: trials that ran with
        several seeds are compared over those."""
        default, again = self.baseline, {run.repeats for run in self.repeats if _counts(run)}
        if default is None or self.best is None or not self.improved or {0, self.best.number} <= again:
            return None
        return default.checkpoint if default.checkpoint is not None and default.checkpoint.is_file() else None

    @property
    def finished(self) -> bool:
        return self.ended is not None and all(trial.outcome is not None for trial in (*self.trials, *self.repeats))

    def ranked(self) -> list[TrialRecord]:
        """Contenders, best first."""
        sign = -1.0 if self.metric.goal == "maximize" else 1.0
        found = []
        for trial in self.contenders:
            score = self.score(trial)
            assert score is not None
            found.append((sign * score.mean, trial.number, trial))
        if self.goals:
            found = [(mean, self._beaten(trial, mean, found), trial) for mean, _, trial in found]
        return [trial for *_, trial in sorted(found, key=lambda each: (*each[:2], each[2].number))]

    def _beaten(self, trial: TrialRecord, mean: float, among: list[tuple[float, int, TrialRecord]]) -> int:
        """How many trials of the same mean beat this one in another objective without being worse in any."""
        rivals = [other for theirs, _, other in among if theirs == mean and other is not trial]
        both = [other for other in (trial, *rivals) if self.goals.keys() <= other.costs.keys()]
        return sum(
            pareto([self._point(trial), self._point(other)], self._directions) == [1]
            for other in both
            if trial in both and other is not trial
        )

    @property
    def _directions(self) -> list[Literal["maximize", "minimize"]]:
        return [self.metric.goal, *self.goals.values()]

    def _point(self, trial: TrialRecord) -> list[float]:
        """The objectives in the order of their directions."""
        score = self.score(trial)
        assert score is not None
        return [score.mean, *(trial.costs[name] for name in self.goals)]

    def verdict(self) -> str:
        """One line that says what came out, the default first."""
        best, baseline = self.best, self.baseline
        default = self.score(baseline) if baseline is not None else None
        if best is None:
            return "No trial completed: there is no winner."
        score = self.score(best)
        assert score is not None
        value = f"{self.metric.name} {_shown(score)}"
        if best.outcome is not Outcome.COMPLETED:
            value += f" after {best.epochs} epochs (none completed)"
        if best.baseline:
            return f"Nothing beat the default ({value}): the default is the answer."
        if default is None:
            state = "no outcome" if baseline is None or baseline.outcome is None else baseline.outcome.value
            return f"Trial {best.number} won with {value}; the default has no value ({state})."
        gain = f"{score.mean - default.mean:+.4f} to the default's {_shown(default)}"
        return f"Trial {best.number} won with {value}, {gain}."

    def table(self) -> list[dict[str, str]]:
        """Rows for printing: those that could win, best first; the others by their value; those without one."""
        scores = {trial.number: self.score(trial) for trial in self.trials}
        sign = -1.0 if self.metric.goal == "maximize" else 1.0
        first = self.ranked()
        chosen = {trial.number for trial in first}
        known = sorted(
            (sign * score.mean, trial.number, trial)
            for trial in self.trials
            if trial.number not in chosen and (score := scores[trial.number]) is not None
        )
        rest = [trial for trial in self.trials if scores[trial.number] is None]
        default = None if self.baseline is None else scores[self.baseline.number]
        front = {trial.number for trial in self.pareto} if self.goals else set()
        order = [*first, *(trial for *_, trial in known), *rest]
        return [self._row(trial, scores[trial.number], default, front) for trial in order]

    def _row(self, trial: TrialRecord, score: Score | None, default: Score | None, front: set[int]) -> dict[str, str]:
        best = trial.best(self.metric)
        row = {
            "trial": f"{trial.number} (default)" if trial.baseline else str(trial.number),
            "outcome": "running" if trial.outcome is None else trial.outcome.value,
            "epochs": str(trial.epochs),
            self.metric.name: "" if score is None else _shown(score),
            "to default": "" if score is None or default is None else f"{score.mean - default.mean:+.4f}",
            "best epoch": "" if best is None else str(best.epoch),
            "seconds": f"{trial.seconds:.0f}",
        }
        for name in self.goals:
            row[name] = f"{trial.costs[name]:.4g}" if name in trial.costs else ""
        if self.goals:
            row["Pareto"] = "yes" if trial.number in front else ""
        row["note"] = "; ".join([*([trial.reason] if trial.reason else []), *trial.adjustments])
        return row


def _counts(run: TrialRecord) -> bool:
    return run.outcome is Outcome.COMPLETED


def _shown(score: Score) -> str:
    return f"{score.mean:.4f}" + (f" ± {score.spread:.4f} of {score.seeds} seeds" if score.seeds > 1 else "")


def study_url(run_dir: Path) -> str:
    # Who reads while the sweep runs holds the driver up for a moment; on a busy machine it may be a long one.
    return f"sqlite:///{run_dir / 'study.db'}?timeout=300"


def read_result(run_dir: Path) -> SweepResult:
    """Raises RunError when the folder holds no sweep."""
    if not (run_dir / "study.db").is_file():
        raise RunError(f"a sweep's folder must hold study.db, but {run_dir} does not; `ddetr runs` lists the sweeps.")
    import optuna

    study = optuna.load_study(study_name=STUDY_NAME, storage=study_url(run_dir))
    return result_of(study, run_dir)


def result_of(study: "Study", run_dir: Path, known: dict[int, TrialRecord] | None = None) -> SweepResult:
    """known: keeps the records of finished trials, which change no more, for the next call."""
    facts, begun = study.user_attrs, []
    for trial in study.get_trials(deepcopy=False):
        record = None if known is None else known.get(trial.number)
        if record is None and is_begun(trial):
            record = record_of(trial, run_dir)
            if known is not None and record.outcome is not None:
                known[trial.number] = record
        if record is not None:
            begun.append(record)
    return SweepResult(
        run_dir=run_dir,
        metric=Metric(**facts["metric"]),
        trials=tuple(record for record in begun if record.repeats is None),
        budget=facts["budget"],
        space_hash=facts["space"],
        seed=facts["seed"],
        repeats=tuple(record for record in begun if record.repeats is not None),
        goals=facts.get("goals", {}),
        confirmed=tuple((facts.get("confirm") or {}).get("numbers", ())),
        ended=facts.get("ended"),
        spent=tuple(facts.get("spent", ())),
        seconds=float(facts.get("seconds", 0.0)),
        gpu_seconds=float(facts.get("gpu_seconds", 0.0)),
    )


def is_begun(trial: "FrozenTrial") -> bool:
    """Whether the trial counts: not a point that still waits, not a draw that repeated an earlier configuration."""
    return trial.state.name != "WAITING" and "twin" not in trial.user_attrs


def epochs_of(facts: Mapping[str, Any]) -> list[tuple[int, Mapping[str, float]]]:
    """Epochs and their values among a trial's attributes; one that a later checkpoint took the place of is None."""
    found = ((key, facts[key]) for key in sorted(facts) if key.startswith("epoch/"))
    return [(int(kept["epoch"]), kept["values"]) for _, kept in found if kept is not None]


def _measurements_of(facts: Mapping[str, Any]) -> tuple[Measurement, ...]:
    keys = sorted(key for key, value in facts.items() if key.startswith("epoch/") and value is not None)
    return tuple(Measurement(**facts[key]) for key in keys)


def record_of(trial: "FrozenTrial", run_dir: Path) -> TrialRecord:
    facts = trial.user_attrs
    checkpoint = facts.get("checkpoint")
    measurements = _measurements_of(facts)
    return TrialRecord(
        number=trial.number,
        baseline=bool(facts.get("baseline")),
        # A trial whose outcome is written but not yet told is still running: the study's state decides.
        outcome=Outcome(facts["outcome"]) if trial.state.is_finished() and "outcome" in facts else None,
        reason=facts.get("reason"),
        sample=facts.get("sample", trial.params),
        params=facts.get("params", {}),
        adjustments=tuple(facts.get("adjustments", ())),
        measurements=measurements,
        seconds=float(facts.get("seconds", measurements[-1].seconds if measurements else 0.0)),
        checkpoint=None if checkpoint is None else run_dir / checkpoint,
        repeats=facts.get("repeats"),
        costs=facts.get("costs", {}),
        attempts=tuple(Attempt(**each) for each in facts.get("attempts", ())),
        seed=facts.get("seed"),
        gpus=float(facts.get("gpus", 0.0)),
        end=facts.get("end"),
        sweep_gpu_seconds=float(facts.get("sweep_gpu_seconds", 0.0)),
    )
