"""A sweep as one live table on a terminal: the default on top, then the newest trials that fit. Decides nothing."""

import threading
from typing import TYPE_CHECKING, Literal

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.console import again, clock, left_text
from hpo.result import SweepResult, TrialRecord
from hpo.standing import Row, Standing
from model.metrics import Measurement

if TYPE_CHECKING:
    from hpo.cluster import Share

STYLES = {"completed": "green", "pruned": "yellow", "infeasible": "magenta", "failed": "red", "lost": "red"}
REFRESHES = 2.0
"""A second."""
AROUND = 3
"""Lines that are no trial: title, headings, the cursor's."""
GAP = 2
HEADINGS = ("trial", "state", "epoch", "now", "best", "to default", "elapsed", "note")


class LiveTable:
    """Notes are printed above the table."""

    def __init__(self, out: RichConsole) -> None:
        self._out, self._standing = out, Standing()
        self._live: Live | None = None
        self._lock = threading.Lock()  # the table is drawn on a thread of its own

    def begin(self, known: SweepResult, *, epochs: int, share: "Share", seconds: float | None = None) -> None:
        self._standing.begin(known, epochs=epochs, share=share, seconds=seconds)
        self._live = Live(get_renderable=self._table, console=self._out, refresh_per_second=REFRESHES)
        self._live.start()

    def note(self, text: str) -> None:
        self._out.print(text, markup=False)

    def started(self, trial: TrialRecord) -> None:
        with self._lock:
            row = self._standing.started(trial)
            row.note = again(trial) if trial.repeats is not None else ""

    def placed(self, number: int, host: str) -> None:
        with self._lock:
            self._standing.placed(number, host)

    def measured(self, number: int, measurement: Measurement) -> None:
        with self._lock:
            self._standing.measured(number, measurement)

    def adjusted(self, number: int, text: str) -> None:
        with self._lock:
            self._standing.rows[number].note = text

    def ended(self, trial: TrialRecord) -> None:
        with self._lock:
            self._standing.ended(trial)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        with self._lock:
            return self._drawn()

    def _drawn(self) -> Table:
        standing = self._standing
        rows = sorted(standing.rows.values(), key=lambda row: (not row.baseline, row.number))
        left = standing.left()
        to_go = "  time to go: after the first epoch" if left is None else left_text(left)
        title = f"{standing.done} of {standing.budget} trials, {standing.metric.name}, {clock(standing.elapsed)}{to_go}"
        room = max(5, self._out.size.height - AROUND)
        shown = rows[:1] + rows[1:][-(room - 1) :]
        cells = [self._cells(row) for row in shown]
        *fixed, _ = [max(map(len, column)) for column in zip(HEADINGS, *cells, strict=True)]
        # The note gives way, down to nothing: rich would squeeze the numbers as well.
        rest = max(0, self._out.size.width - sum(fixed) - GAP * len(fixed))
        table = Table(title=Text(title), title_justify="left", box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for name, width in zip(HEADINGS, [*fixed, rest], strict=True):
            if width:
                justify: Literal["left", "right"] = "left" if name in ("state", "note") else "right"
                table.add_column(name, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
        for row, texts in zip(shown, cells, strict=True):
            table.add_row(*map(Text, texts[: len(table.columns)]), style=STYLES.get(row.state))
        return table

    def _cells(self, row: Row) -> tuple[str, ...]:
        gain = None if row.baseline else self._standing.to_default(row.best)
        return (
            "default" if row.baseline else str(row.number),
            row.state,
            f"{row.epoch}/{self._standing.epochs}",
            "" if row.now is None else f"{row.now:.4f}",
            "" if row.best is None else f"{row.best:.4f}",
            "" if gain is None else f"{gain:+.4f}",
            clock(self._standing.of_trial(row)),
            "; ".join(filter(None, (self._where(row), *row.note.splitlines()[:1]))),
        )

    def _where(self, row: Row) -> str:
        """What it has, and of several machines on which."""
        if row.state != "running":
            return ""
        standing = self._standing
        has = f"{standing.gpus:g} GPU" if standing.gpus else f"{standing.cpus} CPU"
        return f"{has} {row.host}" if standing.hosts() > 1 and row.host else has
