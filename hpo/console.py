"""What a person sees of a sweep while it runs: a live table on a terminal, one line per event elsewhere.

Knows trials by number and their measurements; decides nothing. rich honours NO_COLOR.
"""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from hpo.result import SweepResult, TrialRecord
from model.metrics import Measurement, Metric

STYLES = {"completed": "green", "pruned": "yellow", "infeasible": "magenta", "failed": "red", "lost": "red"}


@dataclass
class _Row:
    number: int
    baseline: bool
    state: str = "running"
    epoch: int = 0
    now: float | None = None
    best: float | None = None
    note: str = ""
    epoch_seconds: list[float] = field(default_factory=list)
    last_seconds: float = 0.0


class Console:
    """Told of each event by the driver. `out` None: standard output."""

    def __init__(self, out: RichConsole | None = None) -> None:
        self._out = out or RichConsole(highlight=False, soft_wrap=True)
        self._rows: dict[int, _Row] = {}
        self._metric, self._epochs, self._budget, self._concurrent = Metric("", "maximize"), 0, 0, 1
        self._live: Live | None = None
        self._started = time.monotonic()

    def begin(self, known: SweepResult, *, epochs: int, concurrent: int) -> None:
        """Shows what is known already; `epochs` is a trial's full budget."""
        self._metric, self._epochs, self._budget = known.metric, epochs, known.budget
        self._concurrent = concurrent
        self._started = time.monotonic()
        for trial in (*known.trials, *known.repeats):
            row = self._rows[trial.number] = _Row(trial.number, trial.baseline, state="waiting")
            for one in trial.measurements:
                self._take(row, one)
            if trial.outcome is not None:
                row.state, row.note = trial.outcome.value, trial.reason or ""
        if self._out.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._out, refresh_per_second=2)
            self._live.start()

    def note(self, text: str) -> None:
        self._out.print(text, markup=False)

    def started(self, trial: TrialRecord) -> None:
        """A trial starts, or goes on after the epochs that it has."""
        row = self._rows.setdefault(trial.number, _Row(trial.number, trial.baseline))
        row.state = "running"
        what = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        if trial.baseline:
            what = "the default"
        if trial.repeats is not None:
            row.note = what = f"trial {trial.repeats} again with another seed"
        done = f"goes on after epoch {trial.epochs}" if trial.epochs else f"starts: {what}"
        self._line(f"trial {trial.number} {done}")

    def measured(self, number: int, measurement: Measurement) -> None:
        row = self._rows[number]
        self._take(row, measurement)
        if row.now is not None:
            best = self._leader()
            lead = "" if best is None else f"  (best of all {best:.4f}{self._against_default(best)})"
            text = f"trial {number} epoch {row.epoch}/{self._epochs}  {self._metric.name} {row.now:.4f}{lead}"
            self._line(text + self._eta_text())

    def ended(self, trial: TrialRecord) -> None:
        assert trial.outcome is not None
        row = self._rows.setdefault(trial.number, _Row(trial.number, trial.baseline))
        row.state, row.note = trial.outcome.value, trial.reason or ""
        value = trial.value(self._metric)
        best = "" if value is None else f", {self._metric.name} {value:.4f}{self._against_default(value)}"
        why = f": {trial.reason}" if trial.reason else ""
        self._line(f"trial {trial.number} {trial.outcome.value}{best}{why}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, text: str) -> None:
        if self._live is None:
            self.note(text)

    def _take(self, row: _Row, measurement: Measurement) -> None:
        value = measurement.values.get(self._metric.name)
        passed = measurement.epoch - row.epoch
        if passed > 0 and measurement.seconds > row.last_seconds:
            row.epoch_seconds.append((measurement.seconds - row.last_seconds) / passed)
        row.epoch, row.now, row.last_seconds = measurement.epoch, value, measurement.seconds
        if value is not None and (row.best is None or self._metric.better(value, row.best)):
            row.best = value

    def _leader(self) -> float | None:
        values = [row.best for row in self._rows.values() if row.best is not None]
        if not values:
            return None
        return max(values) if self._metric.goal == "maximize" else min(values)

    def _default(self) -> float | None:
        return next((row.best for row in self._rows.values() if row.baseline), None)

    def _against_default(self, value: float) -> str:
        default = self._default()
        return "" if default is None else f", {value - default:+.4f} to the default"

    def _eta(self) -> float | None:
        """Seconds to go if no trial were stopped early, at the median pace so far."""
        known = [seconds for row in self._rows.values() for seconds in row.epoch_seconds]
        if not known:
            return None
        open_rows = [row for row in self._rows.values() if row.state in ("running", "waiting")]
        epochs = sum(self._epochs - row.epoch for row in open_rows)
        epochs += max(0, self._budget - len(self._rows)) * self._epochs
        return epochs * statistics.median(known) / self._concurrent

    def _eta_text(self) -> str:
        eta = self._eta()
        return "" if eta is None else f"  about {_clock(eta)} to go"

    def _table(self) -> Table:
        done = sum(row.state in STYLES for row in self._rows.values())
        title = f"{done} of {self._budget} trials, {_clock(time.monotonic() - self._started)}{self._eta_text()}"
        table = Table(title=title, title_justify="left")
        for name in ("trial", "state", "epoch", f"{self._metric.name} now", "best", "to default", "note"):
            table.add_column(name, justify="left" if name in ("state", "note") else "right", no_wrap=name != "note")
        default = self._default()
        # The default on top, then the newest rows that fit.
        rows = sorted(self._rows.values(), key=lambda row: (not row.baseline, row.number))
        room = max(5, self._out.size.height - 7)
        for row in rows[:1] + rows[1:][-(room - 1) :]:
            gain = "" if row.best is None or default is None or row.baseline else f"{row.best - default:+.4f}"
            table.add_row(
                "default" if row.baseline else str(row.number),
                row.state,
                f"{row.epoch}/{self._epochs}",
                "" if row.now is None else f"{row.now:.4f}",
                "" if row.best is None else f"{row.best:.4f}",
                gain,
                row.note.splitlines()[0][:60] if row.note else "",
                style=STYLES.get(row.state),
            )
        return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
