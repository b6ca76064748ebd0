"""What a person or a program sees of a sweep while it runs. One protocol; on a terminal a live table (live_table.py),
for a program events, elsewhere a line for each event.

Each is told of every event by the driver, and decides nothing. rich honours NO_COLOR.
"""

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console as RichConsole

from hpo import events, screen
from hpo.result import SweepResult, TrialRecord
from hpo.standing import Left, Standing
from model.metrics import Measurement

if TYPE_CHECKING:
    from hpo.cluster import Share


class Console(Protocol):
    """Told of each event of a sweep, from one thread, once it is on disk."""

    def begin(self, known: SweepResult, *, epochs: int, share: "Share", seconds: float | None = None) -> None:
        """Workers are there. known: what an earlier session left; epochs: a trial's full budget; share: what each trial
        gets; seconds: that the search may still take."""

    def note(self, text: str) -> None:
        """Anything without an event of its own; before `begin` and after `close` as well."""

    def started(self, trial: TrialRecord) -> None:
        """A trial starts, or goes on after the epochs that it has."""

    def placed(self, number: int, host: str) -> None:
        """Its worker runs on that machine."""

    def measured(self, number: int, measurement: Measurement) -> None: ...

    def adjusted(self, number: int, text: str) -> None:
        """Something was changed so that the trial could go on."""

    def ended(self, trial: TrialRecord) -> None: ...

    def close(self) -> None:
        """Nothing more is shown live."""


def for_output() -> Console:
    """The one that fits where the command's output goes."""
    if events.wanted():
        return Events()
    if screen.out.is_terminal and not screen.out.is_dumb_terminal:
        from hpo.live_table import LiveTable

        return LiveTable(screen.out)
    return Lines(screen.out)


class Lines:
    """A line for each event."""

    def __init__(self, out: RichConsole) -> None:
        self._out, self._standing = out, Standing()

    def begin(self, known: SweepResult, *, epochs: int, share: "Share", seconds: float | None = None) -> None:
        self._standing.begin(known, epochs=epochs, share=share, seconds=seconds)

    def note(self, text: str) -> None:
        self._out.print(text, markup=False)

    def started(self, trial: TrialRecord) -> None:
        self._standing.started(trial)
        what = ", ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        if trial.baseline:
            what = "the default"
        if trial.repeats is not None:
            what = again(trial)
        done = f"goes on after epoch {trial.epochs}" if trial.epochs else f"starts: {what}"
        self.note(f"trial {trial.number} {done}")

    def placed(self, number: int, host: str) -> None:
        self._standing.placed(number, host)

    def measured(self, number: int, measurement: Measurement) -> None:
        standing = self._standing
        row = standing.measured(number, measurement)
        if row.now is None:
            return
        best = standing.leader()
        lead = "" if best is None else f"  (best of all {best:.4f}{self._against_default(best)})"
        text = f"trial {number} epoch {row.epoch}/{standing.epochs}  {standing.metric.name} {row.now:.4f}{lead}"
        self.note(text + left_text(standing.left()))

    def adjusted(self, number: int, text: str) -> None:
        self.note(f"trial {number}: {text}")

    def ended(self, trial: TrialRecord) -> None:
        row = self._standing.ended(trial)
        value = trial.value(self._standing.metric)
        best = "" if value is None else f", {self._standing.metric.name} {value:.4f}{self._against_default(value)}"
        why = f": {trial.reason}" if trial.reason else ""
        self.note(f"trial {trial.number} {row.state}{best}{why}")

    def close(self) -> None:
        pass

    def _against_default(self, value: float) -> str:
        gain = self._standing.to_default(value)
        return "" if gain is None else f", {gain:+.4f} to the default"


class Events:
    """One JSON object for each event; see hpo/events.py."""

    def __init__(self) -> None:
        self._standing = Standing()

    def begin(self, known: SweepResult, *, epochs: int, share: "Share", seconds: float | None = None) -> None:
        self._standing.begin(known, epochs=epochs, share=share, seconds=seconds)

    def note(self, text: str) -> None:
        events.emit("note", text=text)

    def started(self, trial: TrialRecord) -> None:
        self._standing.started(trial)
        events.emit(
            "started",
            trial=trial.number,
            baseline=trial.baseline,
            repeats=trial.repeats,
            epochs=trial.epochs,
            params=trial.params,
        )

    def placed(self, number: int, host: str) -> None:
        pass

    def measured(self, number: int, measurement: Measurement) -> None:
        row = self._standing.measured(number, measurement)
        events.emit(
            "measured",
            trial=number,
            epoch=measurement.epoch,
            seconds=measurement.seconds,
            values=measurement.values,
            best=row.best,
            to_default=self._standing.to_default(row.best),
        )

    def adjusted(self, number: int, text: str) -> None:
        events.emit("adjusted", trial=number, text=text)

    def ended(self, trial: TrialRecord) -> None:
        row = self._standing.ended(trial)
        value = trial.value(self._standing.metric)
        events.emit(
            "ended",
            trial=trial.number,
            outcome=row.state,
            reason=trial.reason,
            epochs=trial.epochs,
            seconds=trial.seconds,
            value=value,
            to_default=self._standing.to_default(value),
            checkpoint=trial.checkpoint,
        )

    def close(self) -> None:
        pass


def again(trial: TrialRecord) -> str:
    return f"trial {trial.repeats} again with another seed"


def left_text(left: Left | None) -> str:
    if left is None or not left.high:
        return ""
    if left.low == left.high:
        return f"  about {clock(left.low)} to go"
    return f"  {clock(left.low)} to {clock(left.high)} to go"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
