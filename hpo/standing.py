"""How a running sweep stands: what each trial measured last, who leads, how long is left. Knows no screen and no words.

The time that is left is an estimate from measured epochs alone: until ROUGH_EPOCHS of them are known it is a range.
"""

import heapq
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hpo.result import Outcome, SweepResult, TrialRecord
from model.metrics import Measurement, Metric

if TYPE_CHECKING:
    from hpo.cluster import Share

ROUGH_EPOCHS = 5
"""Epochs of any trials after which the time left is one number."""
MARGIN = (0.75, 1.5)
"""What a range adds to the fastest and the slowest epoch that it comes from."""
TELLING_ENDS = 4
"""Trials that must have ended before early stops say how long the next ones will be."""
BY_ITSELF = (Outcome.COMPLETED.value, Outcome.PRUNED.value)


class Left(NamedTuple):
    """Seconds to the end."""

    low: float
    high: float


@dataclass
class Row:
    """What is known of one trial."""

    number: int
    baseline: bool
    repeats: bool = False
    """Whether it runs another one again, and so is never stopped early."""
    state: str = "running"
    epoch: int = 0
    now: float | None = None
    best: float | None = None
    note: str = ""
    host: str = ""
    epoch_seconds: list[float] = field(default_factory=list)
    trained: float = 0.0
    """Seconds of training up to its last measurement."""
    heard: float | None = None
    """When it was last heard of; None while it does not run."""

    @property
    def open(self) -> bool:
        return self.state in ("running", "waiting")


class Standing:
    """Told of each event. `clock`: by what time passes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: dict[int, Row] = {}
        self.metric, self.epochs, self.budget = Metric("", "maximize"), 0, 0
        self.cpus, self.gpus, self._concurrent = 0, 0.0, 1
        self._clock = clock
        self._started, self._until = clock(), float("inf")

    def begin(self, known: SweepResult, *, epochs: int, share: "Share", seconds: float | None) -> None:
        self.metric, self.epochs, self.budget = known.metric, epochs, known.budget
        self.cpus, self.gpus, self._concurrent = share.cpus, share.gpus, share.concurrent
        self._started = self._clock()
        if seconds is not None:
            self._until = self._started + seconds
        for trial in (*known.trials, *known.repeats):
            row = self.rows[trial.number] = _row(trial)
            row.state = "waiting"
            for one in trial.measurements:
                self._take(row, one)
            if trial.outcome is not None:
                row.state, row.note = trial.outcome.value, trial.reason or ""

    def started(self, trial: TrialRecord) -> Row:
        row = self.rows.setdefault(trial.number, _row(trial))
        row.state, row.heard = "running", self._clock()
        return row

    def placed(self, number: int, host: str) -> None:
        self.rows[number].host = host

    def measured(self, number: int, measurement: Measurement) -> Row:
        row = self.rows[number]
        self._take(row, measurement)
        row.heard = self._clock()
        return row

    def ended(self, trial: TrialRecord) -> Row:
        assert trial.outcome is not None
        row = self.rows.setdefault(trial.number, _row(trial))
        row.state, row.note, row.heard = trial.outcome.value, trial.reason or "", None
        row.trained = max(row.trained, trial.seconds)
        return row

    @property
    def done(self) -> int:
        """Trials of the budget that have ended."""
        return sum(not row.open and not row.repeats for row in self.rows.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began or went on."""
        return self._clock() - self._started

    def of_trial(self, row: Row) -> float:
        """Seconds that a trial has trained."""
        return row.trained + (0.0 if row.heard is None else self._clock() - row.heard)

    def leader(self) -> float | None:
        values = [row.best for row in self.rows.values() if row.best is not None]
        if not values:
            return None
        return max(values) if self.metric.goal == "maximize" else min(values)

    def default(self) -> float | None:
        return next((row.best for row in self.rows.values() if row.baseline), None)

    def to_default(self, value: float | None) -> float | None:
        default = self.default()
        return None if default is None or value is None else value - default

    def hosts(self) -> int:
        return len({row.host for row in self.rows.values() if row.host})

    def left(self) -> Left | None:
        """None while no epoch is known. What trials were stopped early so far shortens those to come."""
        pace = [seconds for row in self.rows.values() for seconds in row.epoch_seconds]
        if not pace:
            return None
        expected = self._to_go(self._lengths())
        if len(pace) >= ROUGH_EPOCHS:
            middle = expected * statistics.median(pace)
            found = Left(middle, middle)
        else:
            found = Left(MARGIN[0] * min(pace) * expected, MARGIN[1] * max(pace) * self._to_go([]))
        most = max(0.0, self._until - self._clock())
        return Left(min(found.low, most), min(found.high, most))

    def _lengths(self) -> list[int]:
        """Epochs of the trials that ended by themselves; none while they are too few to go by."""
        ends = [row.epoch for row in self.rows.values() if row.state in BY_ITSELF and not row.repeats]
        return ends if len(ends) >= TELLING_ENDS else []

    def _to_go(self, lengths: list[int]) -> float:
        """Epochs until the last of the workers is done, each taking the next trial when it is free."""
        running = [self._expected(row, lengths) for row in self.rows.values() if row.state == "running"]
        begun = sum(not row.repeats for row in self.rows.values())
        waiting = [self._expected(row, lengths) for row in self.rows.values() if row.state == "waiting"]
        waiting += [self._expected(Row(-1, False), lengths)] * max(0, self.budget - begun)
        loads = running + [0.0] * max(0, self._concurrent - len(running))
        heapq.heapify(loads)
        for epochs in waiting:
            heapq.heapreplace(loads, loads[0] + epochs)
        return max(loads)

    def _expected(self, row: Row, lengths: list[int]) -> float:
        """Epochs that a trial still takes: of those that got further, as many as these took in the mean."""
        alike = [] if row.repeats or row.baseline else [length for length in lengths if length > row.epoch]
        return (statistics.fmean(alike) if alike else self.epochs) - row.epoch

    def _take(self, row: Row, measurement: Measurement) -> None:
        value = measurement.values.get(self.metric.name)
        passed = measurement.epoch - row.epoch
        if passed > 0 and measurement.seconds > row.trained:
            row.epoch_seconds.append((measurement.seconds - row.trained) / passed)
        row.epoch, row.now, row.trained = measurement.epoch, value, measurement.seconds
        if value is not None and (row.best is None or self.metric.better(value, row.best)):
            row.best = value


def _row(trial: TrialRecord) -> Row:
    return Row(trial.number, trial.baseline, trial.repeats is not None)
