"""What a sweep found, read from its study alone. Knows the file layout of a run; knows neither Ray nor MLflow.

A run folder is complete in itself: `study.db` holds each trial's sample, epochs, outcome and reason, so a result can be
read while the sweep runs, after it died, and on another machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.errors import RunError
from model.metrics import Measurement, Metric

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STUDY_NAME = "sweep"


class Outcome(Enum):
    """Every way a trial can end."""

    COMPLETED = "completed"  # measured at full budget
    PRUNED = "pruned"  # stopped by the scheduler; keeps its measurements
    INFEASIBLE = "infeasible"  # can never run here (memory at one image, divergence); told to the searcher, not retried
    FAILED = "failed"  # the configuration's own crash; not retried
    LOST = "lost"  # the worker or node went away; retried without using the budget, recorded when that never ended


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of the study. `reason` is present exactly when it is infeasible, failed or lost."""

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


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    run_dir: Path
    metric: Metric
    trials: tuple[TrialRecord, ...]
    """In the order of numbers; one record for each trial of the budget that was begun."""
    budget: int
    space_hash: str
    seed: int

    @property
    def baseline(self) -> TrialRecord | None:
        return next((trial for trial in self.trials if trial.baseline), None)

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the best epoch. Among equals the lowest number: a tie keeps the default."""
        found: TrialRecord | None = None
        for trial in self.trials:
            value = trial.value(self.metric)
            if trial.outcome is not Outcome.COMPLETED or value is None:
                continue
            leader = None if found is None else found.value(self.metric)
            if leader is None or self.metric.better(value, leader):
                found = trial
        return found

    @property
    def improved(self) -> bool:
        """Whether the best trial is not the default configuration."""
        return self.best is not None and not self.best.baseline

    @property
    def finished(self) -> bool:
        return len(self.trials) >= self.budget and all(trial.outcome is not None for trial in self.trials)

    def verdict(self) -> str:
        """One line that says what came out, the default first."""
        best, baseline = self.best, self.baseline
        default = baseline.value(self.metric) if baseline is not None else None
        if best is None:
            return "No trial completed: there is no winner."
        value = best.value(self.metric)
        assert value is not None
        if best.baseline:
            return f"Nothing beat the default ({self.metric.name} {value:.4f}): the default is the answer."
        if default is None:
            state = "no outcome" if baseline is None or baseline.outcome is None else baseline.outcome.value
            return f"Trial {best.number} won with {self.metric.name} {value:.4f}; the default has no value ({state})."
        gain = f"{value - default:+.4f} to the default's {default:.4f}"
        return f"Trial {best.number} won with {self.metric.name} {value:.4f}, {gain}."

    def table(self) -> list[dict[str, str]]:
        """Rows for printing, best first, then those without a value in the order of numbers."""
        known = [trial for trial in self.trials if trial.value(self.metric) is not None]
        sign = -1.0 if self.metric.goal == "maximize" else 1.0
        known.sort(key=lambda trial: (sign * (trial.value(self.metric) or 0.0), trial.number))
        default = self.baseline.value(self.metric) if self.baseline is not None else None
        rest = [trial for trial in self.trials if trial.value(self.metric) is None]
        return [self._row(trial, default) for trial in known + rest]

    def _row(self, trial: TrialRecord, default: float | None) -> dict[str, str]:
        best = trial.best(self.metric)
        value = None if best is None else best.values[self.metric.name]
        return {
            "trial": f"{trial.number} (default)" if trial.baseline else str(trial.number),
            "outcome": "running" if trial.outcome is None else trial.outcome.value,
            "epochs": str(trial.measurements[-1].epoch) if trial.measurements else "0",
            self.metric.name: "" if value is None else f"{value:.4f}",
            "to default": "" if value is None or default is None else f"{value - default:+.4f}",
            "best epoch": "" if best is None else str(best.epoch),
            "seconds": f"{trial.seconds:.0f}",
            "note": trial.reason or "; ".join(trial.adjustments),
        }


def study_url(run_dir: Path) -> str:
    return f"sqlite:///{run_dir / 'study.db'}"


def read_result(run_dir: Path) -> SweepResult:
    """Raises RunError when the folder holds no sweep."""
    if not (run_dir / "study.db").is_file():
        raise RunError(f"a sweep's folder must hold study.db, but {run_dir} does not; `ddetr runs` lists the sweeps.")
    import optuna

    study = optuna.load_study(study_name=STUDY_NAME, storage=study_url(run_dir))
    return result_of(study, run_dir)


def result_of(study: "Study", run_dir: Path) -> SweepResult:
    facts = study.user_attrs
    trials = study.get_trials(deepcopy=False)
    return SweepResult(
        run_dir=run_dir,
        metric=Metric(**facts["metric"]),
        trials=tuple(record_of(trial, run_dir) for trial in trials if is_begun(trial)),
        budget=facts["budget"],
        space_hash=facts["space"],
        seed=facts["seed"],
    )


def is_begun(trial: "FrozenTrial") -> bool:
    """Whether the trial counts: not a point that still waits, not a draw that repeated an earlier configuration."""
    return trial.state.name != "WAITING" and "repeats" not in trial.user_attrs


def record_of(trial: "FrozenTrial", run_dir: Path) -> TrialRecord:
    facts = trial.user_attrs
    checkpoint = facts.get("checkpoint")
    measurements = tuple(Measurement(**facts[key]) for key in sorted(key for key in facts if key.startswith("epoch/")))
    return TrialRecord(
        number=trial.number,
        baseline=bool(facts.get("baseline")),
        # A trial whose outcome is written but not yet told is still running: the study's state decides.
        outcome=Outcome(facts["outcome"]) if trial.state.is_finished() and "outcome" in facts else None,
        reason=facts.get("reason"),
        sample=dict(trial.params),
        params=facts.get("params", {}),
        adjustments=tuple(facts.get("adjustments", ())),
        measurements=measurements,
        seconds=float(facts.get("seconds", measurements[-1].seconds if measurements else 0.0)),
        checkpoint=None if checkpoint is None else run_dir / checkpoint,
    )
