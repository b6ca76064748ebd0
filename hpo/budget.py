"""How much a sweep may spend: a value that is asked about a status. Knows no clock, no study and no Ray.

Time is what a Meter adds up from a clock's readings, so it survives restarts (the sum is on disk) and clocks that jump.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model.metrics import Metric

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec

LONGEST_STEP_S = 60.0
"""Most seconds that pass between two readings while a driver is awake; more is a suspended machine or a clock set."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where a sweep stands, all its sessions together."""

    trials: int
    """Configurations begun."""
    epochs: int
    """Trained and measured, by all of them."""
    seconds: float
    gpu_seconds: float
    best: float | None
    """At any epoch of any trial."""
    since_best: int
    """Trials that ended after the one with the best value among the completed ones."""


class Limit(NamedTuple):
    """A budget that is used up."""

    name: str
    """As in the `automl:` block."""
    text: str
    """With what was spent, for people."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Whichever limit comes first ends the sweep; None is no limit."""

    metric: Metric
    trials: int
    total_epochs: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    target: float | None = None
    patience: int | None = None

    @classmethod
    def of(cls, sweep: "SweepSpec", metric: Metric, trials: int) -> "Budget":
        return cls(
            metric=metric,
            trials=trials,
            total_epochs=sweep.total_epochs,
            hours=sweep.hours,
            gpu_hours=sweep.gpu_hours,
            target=sweep.target,
            patience=sweep.patience,
        )

    def over(self, spent: Spent) -> Limit | None:
        """The limit at which trials under way stop too."""
        if self.hours is not None and spent.seconds >= 3600 * self.hours:
            return Limit("hours", f"{spent.seconds / 3600:.3g} of {self.hours:g} hours")
        if self.gpu_hours is not None and spent.gpu_seconds >= 3600 * self.gpu_hours:
            return Limit("gpu_hours", f"{spent.gpu_seconds / 3600:.3g} of {self.gpu_hours:g} GPU hours")
        if self._reached(spent):
            return Limit("target", f"{self.metric.name} {spent.best:.4f} for a target of {self.target:g}")
        return None

    def full(self, spent: Spent, *, committed: int = 0, epochs: int = 0) -> Limit | None:
        """The limit at which nothing more starts, while trials under way go on.

        committed: epochs that those may still train; epochs: of one trial. A trial that could not reach its end within
        the epochs in total is not begun.
        """
        if self.trials <= spent.trials:
            return Limit("trials", f"{spent.trials} of {self.trials} trials")
        if self.total_epochs is not None and spent.epochs + committed + epochs > self.total_epochs:
            rest = f", too few left for one trial's {epochs}" if spent.epochs + committed < self.total_epochs else ""
            return Limit("total_epochs", f"{spent.epochs} of {self.total_epochs} epochs{rest}")
        if self.patience is not None and spent.since_best >= self.patience:
            return Limit("patience", f"{spent.since_best} trials in a row without a better one")
        return None

    def lines(self, spent: Spent) -> list[str]:
        """A line for each limit that is set: what was spent of it."""
        found = [f"trials: {spent.trials} of {self.trials}"]
        if self.total_epochs is not None:
            found.append(f"epochs: {spent.epochs} of {self.total_epochs}")
        if self.hours is not None:
            found.append(f"hours: {spent.seconds / 3600:.3g} of {self.hours:g}")
        if self.gpu_hours is not None:
            found.append(f"GPU hours: {spent.gpu_seconds / 3600:.3g} of {self.gpu_hours:g}")
        if self.target is not None:
            best = "nothing yet" if spent.best is None else f"{spent.best:.4f}"
            found.append(f"target: {best} for {self.metric.name} {self.target:g}")
        if self.patience is not None:
            found.append(f"patience: {spent.since_best} of {self.patience} trials without a better one")
        return found

    def _reached(self, spent: Spent) -> bool:
        if self.target is None or spent.best is None:
            return False
        return spent.best == self.target or self.metric.better(spent.best, self.target)


class Meter:
    """Adds up time from readings of a clock, whatever the clock does: it never runs back, and never leaps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()

    def step(self) -> float:
        """Seconds since the last call, between 0 and LONGEST_STEP_S."""
        now = self._clock()
        passed, self._last = now - self._last, now
        return min(max(passed, 0.0), LONGEST_STEP_S)
