"""What a sweep costs beside its training: the book of many trials, and the time from one trial to the next.

    python tests/benchmarks/sweep_overhead.py book [--trials 1000] [--searchers gp,tpe] [--book FOLDER]
    python tests/benchmarks/sweep_overhead.py between [--trials 6]
    python tests/benchmarks/sweep_overhead.py growth [--trials 1000] [--searchers random]
    python tests/benchmarks/sweep_overhead.py stubs [--trials 1000] [--workers 2] [--searchers random]

`book` fills a study with finished trials of ten epochs and times opening it, asking for the next configuration, taking
a report and reading the result. The filling is many small writes: TMPDIR=/dev/shm keeps a busy disk out of the figures.
`between` trains the quickstart's detector for
one epoch a trial on one worker, once with warm workers and once with a new one for every trial, and prints the seconds
from a trial's end to the next one's first optimizer step; it needs data/digits (`ddetr make-data digits`).
`growth` drives trials of three epochs through driver, study and console without Ray and without training; `stubs` does
so with a real Ray, on which workers of one faked core each report as fast as they can, and with the real tracker. Both
print what a trial costs the driver's process in CPU as the trials grow in number, and the exponent that fits the sum.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from rich.console import Console

from hpo import cluster, screen
from hpo.cluster import Share
from hpo.console import Lines
from hpo.driver import Driver
from hpo.ledger import Ledger
from hpo.result import Outcome, read_result
from hpo.spec import read_request
from hpo.sweep import run_sweep
from hpo.sweep_spec import SweepSpec
from model.metrics import VAL_MAP50, Measurement

HERE = Path(__file__).resolve().parent
# Workers find the timed training by name.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))

EPOCHS, SHORT = 10, 3
MARKS = (10, 30, 100, 300, 1000, 3000)
QUICKSTART = HERE.parents[1] / "experiments" / "quickstart.yaml"


class Mute(Lines):
    def note(self, text: str) -> None:
        pass


def timed(what: str, call: Callable[[], Any], repeat: int = 1) -> Any:
    """Prints wall and CPU seconds; other work on the machine shows in the first only."""
    taken, computed, found = [], [], None
    for _ in range(repeat):
        begun, before = time.perf_counter(), time.process_time()
        found = call()
        taken.append(time.perf_counter() - begun)
        computed.append(time.process_time() - before)
    spread = f" (median of {repeat}; longest {max(taken):.3f} s, CPU {max(computed):.3f} s)" if repeat > 1 else ""
    print(f"{what}: {statistics.median(taken):.3f} s, CPU {statistics.median(computed):.3f} s{spread}", flush=True)
    return found


class Silent:
    """A tracker of nothing: MLflow hears what it has to in a thread of its own."""

    def child(self, trial: Any) -> None: ...
    def log(self, number: int, measurement: Any) -> None: ...
    def finish(self, trial: Any) -> None: ...
    def progress(self, result: Any) -> None: ...


def book(trials: int, searchers: list[str], kept: Path | None) -> None:
    request = read_request(QUICKSTART, [f"train.num_epochs={EPOCHS}"])
    spec, space, sweep = request.spec, request.space(), SweepSpec(trials=2 * trials, searcher="random")
    print(f"{trials} trials of {EPOCHS} epochs, {len(space.parameters)} parameters, {os.cpu_count()} cores")

    def driver_of(ledger: Ledger) -> Driver:
        driver = Driver(ledger, spec, sweep, Mute(screen.out), Silent())  # type: ignore[arg-type]
        driver.look()
        return driver

    with tempfile.TemporaryDirectory() as name:
        run = kept or Path(name)
        run.mkdir(parents=True, exist_ok=True)
        settings = {"searcher": "random", "seed": 0, "budget": 2 * trials, "points": (), "metric": VAL_MAP50}
        ledger = Ledger.create(run, spec, space, **settings)
        begun, known = time.perf_counter(), len(ledger.curves)
        for _ in range(known, trials):
            fill(ledger)
        print(f"filling the book: {time.perf_counter() - begun:.0f} s for {trials - known} trials", flush=True)
        for searcher in searchers:
            driver = timed("opening it, to the first trial", lambda: driver_of(Ledger.open(run, spec, space, "random")))
            asking = Ledger.open(run, spec, space, searcher)
            for _ in asking.waiting:
                asking.next()
            timed(f"asking {searcher}", asking.next, repeat=5)
        driver = driver_of(Ledger.open(run, spec, space, "random"))
        number = driver.start()
        assert number is not None
        epochs = iter(range(1, EPOCHS))
        timed("taking a report", lambda: driver.told(number, report(next(epochs))), repeat=5)
        timed("a look at budgets and clock", driver.look, repeat=5)
        timed("reading the result", lambda: read_result(run))


def fill(ledger: Ledger) -> None:
    number = ledger.next()
    assert number is not None
    for epoch in range(1, EPOCHS + 1):
        ledger.record(number, Measurement(**report(epoch, number)))
    ledger.finish(number, Outcome.COMPLETED, seconds=10.0)


def report(epoch: int, number: int = 0) -> dict[str, Any]:
    value = (1 - 0.7**epoch) * (0.5 + 0.0001 * (number % 97))
    return {"epoch": epoch, "values": {VAL_MAP50.name: value, "val_loss": 1 - value}, "seconds": 1.0 * epoch}


def between(trials: int) -> None:
    means = {}
    for kind in ("warm", "cold"):
        with tempfile.TemporaryDirectory() as name:
            gaps = gaps_of(Path(name) / "run", trials, reuse=kind == "warm")
        means[kind] = statistics.mean(gaps)
        print(f"{kind}: mean {means[kind]:.2f} s ({', '.join(f'{gap:.2f}' for gap in gaps)})", flush=True)
    print(f"warm is {means['warm'] / means['cold']:.2f} of cold")


def gaps_of(run: Path, trials: int, *, reuse: bool) -> list[float]:
    """Seconds from each trial's end to the next one's first step."""
    from ray import tune

    os.chdir(QUICKSTART.parents[1])  # the paths of its data are relative
    request = read_request(QUICKSTART, ["train.num_epochs=1", f"automl.trials={trials}", "automl.concurrent=1"])
    real = tune.TuneConfig
    tune.TuneConfig = lambda **given: real(**{**given, "reuse_actors": reuse})  # type: ignore[misc,assignment]
    try:
        space = request.space()
        run_sweep(run, request.spec, request.sweep, space, console=Mute(screen.out), train="timed_training:train")
    finally:
        tune.TuneConfig = real  # type: ignore[misc]
    times = [json.loads((run / f"trials/{number}/times.json").read_text()) for number in range(trials)]
    return [after["first_step"] - before["end"] for before, after in pairwise(times)]


class Marks:
    """What was spent since the first trial began, at each trial's end: seconds by the clock, CPU of the process, CPU of
    the thread that drives."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float]] = []

    def add(self) -> None:
        self.rows.append((time.perf_counter(), time.process_time(), time.thread_time()))
        trials = len(self.rows) - 1
        if trials in MARKS:
            low = max((mark for mark in MARKS if mark < trials), default=0)
            wall, process, thread = (np.array(self.rows[trials]) - self.rows[low]) / (trials - low)
            print(
                f"trials {low + 1} to {trials}: {wall:.3f} s each; CPU {1000 * process:.1f} ms of the process, "
                f"{1000 * thread:.1f} ms of the driving thread",
                flush=True,
            )

    def fit(self) -> None:
        rows = np.array(self.rows) - self.rows[0]
        place = np.arange(10, len(rows))
        for name, column in (("process", 1), ("driving thread", 2)):
            exponent = np.polyfit(np.log(place), np.log(rows[10:, column]), 1)[0]
            print(f"CPU of the {name}: {rows[-1, column]:.1f} s for {len(rows) - 1} trials, exponent {exponent:.2f}")


def lines() -> Lines:
    return Lines(Console(file=io.StringIO(), force_terminal=False, width=200))


def growth(trials: int, searcher: str) -> None:
    print(f"{searcher}, without Ray", flush=True)
    request = read_request(QUICKSTART, [f"train.num_epochs={SHORT}"])
    spec, space, sweep = request.spec, request.space(), SweepSpec(trials=trials, searcher=searcher)
    with tempfile.TemporaryDirectory() as name:
        settings = {"searcher": searcher, "seed": 0, "budget": trials, "points": (), "metric": VAL_MAP50}
        ledger, console, marks = Ledger.create(Path(name), spec, space, **settings), lines(), Marks()
        console.begin(ledger.result(), epochs=SHORT, share=Share(cpus=1, gpus=0.0, concurrent=2))
        driver = Driver(ledger, spec, sweep, console, Silent())  # type: ignore[arg-type]
        asked, real = [0.0], ledger.next

        def timed(**given: Any) -> Any:
            before = time.process_time()
            found = real(**given)
            asked[0] += time.process_time() - before
            return found

        ledger.next = timed  # type: ignore[method-assign]
        marks.add()
        while (number := driver.start()) is not None:
            driver.told(number, {"begun": {"pid": 1, "node": "a", "host": "b"}})
            measured: list[dict[str, Any]] = []
            for epoch in range(1, SHORT + 1):
                measured.append(report(epoch, number))
                if driver.told(number, measured[-1]):
                    break
            else:
                driver.told(number, {"final": {"outcome": "completed", "measurements": measured, "seconds": 3.0}})
            driver.ended(number)
            driver.tick()
            marks.add()
    marks.fit()
    print(f"of it asking for the next configuration and writing it down: {asked[0]:.1f} s")


def stubs(trials: int, workers: int, searcher: str) -> None:
    real = cluster.options
    cluster.options = lambda *given: {**real(*given), "num_cpus": workers}

    class Counting(Lines):
        def ended(self, trial: Any) -> None:
            super().ended(trial)
            marks.add()

        def begin(self, *given: Any, **more: Any) -> None:
            super().begin(*given, **more)
            marks.add()

    print(f"{searcher}, {workers} workers on {os.cpu_count()} cores", flush=True)
    marks, out = Marks(), Console(file=io.StringIO(), force_terminal=False, width=200)
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"train.num_epochs={SHORT}", f"automl.trials={trials}", "automl.cpus_per_trial=1"]
        request = read_request(QUICKSTART, [*keys, f"automl.searcher={searcher}"])
        run, space = Path(folder) / "run", request.space()
        run_sweep(run, request.spec, request.sweep, space, console=Counting(out), train="stub_training:train")
    cluster.options = real
    marks.fit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("book", "between", "growth", "stubs"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--searchers", help="default: gp,tpe for `book`, else random")
    parser.add_argument("--workers", default="2", help="numbers of workers, one sweep for each")
    parser.add_argument("--book", type=Path, help="keep the filled study here, and use what is there")
    given = parser.parse_args()
    names = (given.searchers or ("gp,tpe" if given.what == "book" else "random")).split(",")
    if given.what == "book":
        book(given.trials or 1000, names, given.book)
    elif given.what == "between":
        between(given.trials or 6)
    elif given.what == "growth":
        for name in names:
            growth(given.trials or 1000, name)
    else:
        for count in map(int, given.workers.split(",")):
            stubs(given.trials or 1000, count, names[0])
