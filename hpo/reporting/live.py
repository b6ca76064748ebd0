"""The report of a run that goes on, written anew by a thread, seldom enough to cost nothing that matters; and of one
that has just ended.

The run does not know of it and never waits for it. An error of the report is told once and stops nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.evidence import gather
from hpo.reporting.report import write_report

if TYPE_CHECKING:
    from model.spec import ExperimentSpec

EVERY_S = 20.0
"""Least seconds between two writings."""
SHARE = 0.02
"""Most of the time that a writing may take: after one of a second come fifty without."""


class LiveReport:
    """`note` is told why there is no report, once."""

    def __init__(self, run_dir: Path, note: Callable[[str], None], *, every_s: float = EVERY_S) -> None:
        self._run_dir, self._note, self._every_s = run_dir, note, every_s
        self._since = time.time()
        self._ending = threading.Event()
        self._told = False
        self.used_s = 0.0
        """Processor time of this thread so far."""
        self._thread = threading.Thread(target=self._keep, daemon=True, name="report")

    def start(self) -> None:
        # Here: two threads that import libraries at once may trip over each other.
        import jinja2  # noqa: F401

        self._thread.start()

    def close(self) -> None:
        """Stops, and writes the report of a run that goes on no longer."""
        self._ending.set()
        self._thread.join()
        self._write(None)

    def _keep(self) -> None:
        pause = self._every_s / 4  # the first trials begin soon
        while not self._ending.wait(pause):
            before = time.thread_time()
            self._write(self._since)
            took = time.thread_time() - before
            self.used_s += took
            pause = max(self._every_s, took / SHARE)

    def _write(self, since: float | None) -> None:
        try:
            write_report(self._run_dir, live_since=since)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the report, the run goes on
            if not self._told:
                self._told = True
                why = f"{type(error).__name__}: {error}"
                self._note(f"no report for now: {why}; `ddetr report {self._run_dir}` tries again")


@contextmanager
def reported(run_dir: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Keeps the report of `run_dir` up to date within the block."""
    live = LiveReport(run_dir, note)
    live.start()
    try:
        yield
    finally:
        live.close()


def finish(
    run_dir: Path,
    spec: "ExperimentSpec",
    winner: Path,
    *,
    trial: int,
    default: Path | None,
    note: Callable[[str], None],
    cpus: int,
) -> None:
    """Looks at the winner once more and writes the report of a finished run. `default`: the checkpoint to compare it
    with where seeds do not. The winner is handed over already, so trouble here is told and stops nothing either."""
    try:
        gather(run_dir, spec, winner, trial=trial, default=default, cpus=cpus)
    except Exception as error:  # noqa: BLE001
        note(f"the report shows no images and no classes: {type(error).__name__}: {error}")
    try:
        note(f"report: {write_report(run_dir)}")
    except Exception as error:  # noqa: BLE001
        note(f"no report: {type(error).__name__}: {error}; `ddetr report {run_dir}` tries again")
