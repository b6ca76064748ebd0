"""Where the commands of `ddetr` print: one console for them all, with how far long work is. Knows no command.

On a terminal work is shown as bars that vanish when it is done; elsewhere a long one says a line now and then.
"""

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from model.progress import Listener, Work, heard_by

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OURS = ("hpo", "model", "deploy", "search_spaces", "schemas")
LINE_EVERY_S = 30.0
"""Seconds between two lines of one piece of work, where there is no terminal."""

# Without a terminal rich assumes 80 columns, in which the tables of a log break.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def say(line: str) -> None:
    """A line as it stands: square brackets in it are no markup."""
    out.print(line, markup=False)


def next_step(arguments: argparse.Namespace, *words: str | Path) -> None:
    """The command to type next, ready to be copied; `deformable_detr` has no such line, and no program reads it."""
    if arguments.program == "ddetr" and not getattr(arguments, "json", False):
        say(f"next: ddetr {shlex.join(map(str, words))}")


def near(path: str | Path) -> str:
    """A path as one would type it: relative where it lies below the working directory, or close to it."""
    relative, absolute = os.path.relpath(path), os.path.abspath(path)
    return relative if not relative.startswith(os.path.join("..", "..")) else absolute


@contextmanager
def working() -> Iterator[None]:
    """Within, long work is shown, and the lines of our own loggers; other libraries' from warnings up."""
    handler = _Said()
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in OURS}
    root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        if out.is_terminal and not out.is_dumb_terminal:
            bars = Bars(out)
            with heard_by(bars):
                try:
                    yield
                finally:
                    bars.stop()
        else:
            with heard_by(NowAndThen(out)):
                yield
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _Said(logging.Handler):
    """Log records through the console, so that they stand above what is live."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in OURS)

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


class Bars(Listener):
    """A bar for each piece of work under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def begun(self, work: Work) -> None:
        if self._shown is None:
            self._shown = _bars(self._console)
            self._shown.start()
        self._tasks[work.what] = self._shown.add_task(work.what, total=work.total, count="", note="")
        self.moved(work)

    def moved(self, work: Work) -> None:
        if self._shown is not None and work.what in self._tasks:
            count, note = _count(work), work.note
            self._shown.update(self._tasks[work.what], completed=work.done, count=count, note=note)

    def over(self, work: Work) -> None:
        if self._shown is not None and work.what in self._tasks:
            self._shown.remove_task(self._tasks.pop(work.what))
            if not self._tasks:
                self.stop()

    def stop(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown, self._tasks = None, {}


class NowAndThen(Listener):
    """A line every LINE_EVERY_S seconds of work that takes longer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[str, tuple[float, float]] = {}
        """By work: when, and what was done then."""
        self._told: dict[str, float] = {}

    def begun(self, work: Work) -> None:
        self._begun[work.what] = time.monotonic(), work.done
        self._told[work.what] = time.monotonic()

    def moved(self, work: Work) -> None:
        now = time.monotonic()
        if now - self._told.get(work.what, now) < LINE_EVERY_S:
            return
        self._told[work.what] = now
        parts = [_count(work), work.note, self._left(work, now)]
        self._console.print(f"{work.what}: {', '.join(filter(None, parts)) or 'still at it'}", markup=False)

    def over(self, work: Work) -> None:
        self._begun.pop(work.what, None)
        self._told.pop(work.what, None)

    def _left(self, work: Work, now: float) -> str:
        started, before = self._begun[work.what]
        if not work.total or work.done <= before:
            return ""
        return f"about {(now - started) / (work.done - before) * (work.total - work.done):.0f} s left"


def _count(work: Work) -> str:
    if not work.unit:
        return ""
    return f"{work.done:,.0f}" + (f" of {work.total:,.0f}" if work.total else "") + f" {work.unit}"


def _bars(console: Console) -> "Progress":
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        refresh_per_second=2,
    )
