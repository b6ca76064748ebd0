"""Kills a driver before each write in turn and resumes it: prints, for each place, what does not hold afterwards.

The driver runs its trials itself, without Ray, in a forked child, so one place costs a second or two. A write is a
commit to the study or a file that gets its name; between two of them nothing that lasts changes.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  before the forks: it takes seconds
import rig
import torch  # noqa: F401
from one_sweep import SPACE
from rich.console import Console as RichConsole
from sqlalchemy import event
from sqlalchemy.engine import Engine

from hpo import cluster
from hpo import sweep as sweeping
from hpo.console import Lines
from hpo.driver import Driver
from hpo.sweep_spec import SweepSpec
from hpo.trial import FINAL, execute
from model.spec import ExperimentSpec

TRIALS, EPOCHS = 5, 3


class StopError(Exception):
    """Tune ends a training so."""


def inline(driver: Driver, portion: Any, train: str) -> None:
    """In place of `_execute`: one trial after another, in this process."""
    while (number := driver.start()) is not None:

        def say(message: dict[str, Any], number: int = number) -> None:
            if driver.told(number, json.loads(json.dumps(message))):
                raise StopError

        with contextlib.suppress(StopError):
            final = execute(driver.ledger.folder(number), train, 1, say)
            driver.told(number, {FINAL: json.loads(json.dumps(final))})
        driver.ended(number)


@contextlib.contextmanager
def no_ray(*_: Any, **__: Any) -> Iterator[Any]:
    yield cluster.Share(cpus=1, gpus=0.0, concurrent=1)


def quiet() -> Lines:
    return Lines(RichConsole(file=io.StringIO()))


def drive(run: Path) -> None:
    if (run / "sweep.json").exists():
        sweeping.resume_sweep(run, console=quiet())
        return
    spec = ExperimentSpec.from_dict({"train": {"num_epochs": EPOCHS}})
    block = SweepSpec(trials=TRIALS, searcher="random", seed=5, points=({"train.optim.weight_decay": 1e-6},))
    sweeping.run_sweep(run, spec, block, SPACE, console=quiet(), train="bowl:train")


def count_writes(fatal: int | None, seen: Path) -> None:
    """Counts writes into the file `seen`; dies before number `fatal`."""
    count = 0

    def one(what: str) -> None:
        nonlocal count
        if count == fatal:
            with seen.open("a") as file:
                file.write(what)
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        if fatal is None:
            seen.write_text(str(count))

    @event.listens_for(Engine, "commit")
    def commit(connection: Any) -> None:
        if str(connection.engine.url.database).endswith("study.db"):
            one("commit")

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, *more: Any) -> Any:
            one(f"{Path(target).name} gets its name")
            return function(source, target, *more)

        return call

    os.replace, os.rename = wrapped(os.replace), wrapped(os.rename)


def in_child(work: Callable[[], None], log: Path) -> int:
    """The exit status of a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                work()
            code = 0
        except BaseException:  # noqa: BLE001  the child must never return into the parent's code
            with log.open("a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def torment(folder: Path, template: Path, place: int) -> dict[str, Any]:
    run, log, seen = folder / "results" / "run", folder / "log", folder / "seen"
    run.parent.mkdir(parents=True)
    shutil.copy(template, run.parent / "mlflow.db")

    def die() -> None:
        count_writes(place, seen)
        drive(run)

    def check() -> None:
        before = rig.bits(run, rig.finished(run))
        status = in_child(lambda: drive(run), log)
        assert status == 0, f"the resumed driver ended with {status}"
        rig.check_whole(run, TRIALS, before)
        rig.check_mlflow(run)

    status = in_child(die, log)
    said: dict[str, Any] = {"place": place, "before": seen.read_text() if seen.exists() else "", "problem": ""}
    if status != -signal.SIGKILL or in_child(check, log) != 0:
        said["problem"] = log.read_text()[-3000:] or f"ended with {status}"
    else:
        shutil.rmtree(folder)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", type=int, default=1, help="every how many writes")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    given = parser.parse_args()
    sys.path.insert(0, str(rig.BOWL))
    sweeping._execute = inline
    sweeping.workers = no_ray
    template, whole = given.folder / "mlflow.db", given.folder / "whole"

    def count() -> None:
        count_writes(None, given.folder / "count")
        drive(whole / "results" / "run")

    assert in_child(count, given.folder / "log") == 0, (given.folder / "log").read_text()
    shutil.copy(whole / "results" / "mlflow.db", template)
    writes = int((given.folder / "count").read_text())
    for place in range(given.seed % given.step, writes, given.step):
        print(json.dumps(torment(given.folder / str(place), template, place)), flush=True)


if __name__ == "__main__":
    main()
