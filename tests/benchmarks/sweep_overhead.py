"""What a sweep costs beside its training: the book of many trials, and the time from one trial to the next.

    python tests/benchmarks/sweep_overhead.py book [--trials 1000] [--searchers gp,tpe] [--book FOLDER]
    python tests/benchmarks/sweep_overhead.py between [--trials 6]

`book` fills a study with finished trials of ten epochs and times opening it, asking for the next configuration, taking
a report and reading the result. The filling is many small writes: TMPDIR=/dev/shm keeps a busy disk out of the figures.
`between` trains the quickstart's detector for
one epoch a trial on one worker, once with warm workers and once with a new one for every trial, and prints the seconds
from a trial's end to the next one's first optimizer step; it needs data/digits (`ddetr make-data digits`).
"""

import argparse
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

from hpo import screen
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

EPOCHS = 10
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("book", "between"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--searchers", default="gp,tpe")
    parser.add_argument("--book", type=Path, help="keep the filled study here, and use what is there")
    given = parser.parse_args()
    if given.what == "book":
        book(given.trials or 1000, given.searchers.split(","), given.book)
    else:
        between(given.trials or 6)
