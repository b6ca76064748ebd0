"""What logging to MLflow costs a trial: time on the driver's thread, and CPU time of the thread that sends.

    python tests/benchmarks/tracking_cost.py [--epochs 50] [--metrics 25] [--trials 4] [--epoch-seconds S]

Events of trials with so many metrics an epoch go through the queue into a SQLite store, as fast as they are heard. Both
costs are held against an epoch's seconds: of a trial of the quickstart, two of whose epochs are trained here first, or
as given. The driver's time is what training could wait for; the other's is taken from the cores that trials share.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.tracking import Tracker
from model.metrics import VAL_MAP50, Measurement

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "quickstart.yaml"


def measurement(epoch: int, metrics: int, seconds: float) -> Measurement:
    values = {f"train_loss_{place}": 1.0 / (epoch + place) for place in range(metrics - 4)}
    values[VAL_MAP50.name] = 1 - 0.7**epoch
    beside = {"peak_rss_bytes": 1 << 30, "images_per_second": 50.0}  # two of the metrics; the seconds are the fourth
    return Measurement(epoch=epoch, values=values, seconds=seconds * epoch, **beside)


def record(number: int, outcome: Outcome | None, measured: tuple[Measurement, ...]) -> TrialRecord:
    return TrialRecord(
        number=number,
        baseline=number == 0,
        outcome=outcome,
        reason=None,
        sample={"train.optim.lr": 1e-4},
        params={f"train.key_{place}": 0.1 * number for place in range(12)},
        adjustments=(),
        measurements=measured,
        seconds=measured[-1].seconds if measured else 0.0,
        checkpoint=None,
        end=number,
    )


class Sending(Tracker):
    """Adds up the CPU time of its thread."""

    spent = 0.0

    def _send(self, queue: object) -> None:
        super()._send(queue)  # type: ignore[arg-type]
        Sending.spent += time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


def cost(root: Path, trials: int, epochs: int, metrics: int) -> tuple[list[float], float]:
    """Wall seconds of the driver's thread for each epoch, the calls of a whole trial shared out over its epochs; CPU
    seconds of the other thread for an epoch."""
    warm = Sending(root, "warm")  # makes the database
    warm.begin({"trials": 1})
    warm.close()
    Sending.spent = 0.0
    tracker, driver, done = Sending(root, "run"), list[float](), list[TrialRecord]()
    tracker.begin({"trials": trials})
    for number in range(trials):
        begun, measured = time.perf_counter(), list[Measurement]()
        tracker.child(record(number, None, ()))
        for epoch in range(1, epochs + 1):
            measured.append(measurement(epoch, metrics, 1.0))
            tracker.log(number, measured[-1])
        done.append(record(number, Outcome.COMPLETED, tuple(measured)))
        tracker.finish(done[-1])
        result = SweepResult(
            run_dir=root / "run", metric=VAL_MAP50, trials=tuple(done), budget=trials, space_hash="", seed=0
        )
        tracker.progress(result)
        driver.append((time.perf_counter() - begun) / epochs)
    begun = time.perf_counter()
    tracker.end(result, state="finished")
    print(f"until all was heard: {time.perf_counter() - begun:.1f} s more", flush=True)
    assert threading.active_count() < 10
    return driver, Sending.spent / (trials * epochs)


def epoch_seconds(root: Path) -> float:
    from hpo.spec import read_request
    from model.train import train

    request = read_request(QUICKSTART, ["train.num_epochs=2"])
    times = [one.seconds for one in train(request.spec, root / "training", cpus=1).measurements]
    return times[1] - times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--epochs", 50), ("--metrics", 25), ("--trials", 4)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--epoch-seconds", type=float)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seconds = given.epoch_seconds or epoch_seconds(root)
        driver, sender = cost(root, given.trials, given.epochs, given.metrics)
    found = {
        "metrics an epoch": given.metrics,
        "epoch, seconds": round(seconds, 2),
        "driver, ms an epoch": round(1000 * statistics.median(driver), 3),
        "sender, CPU ms an epoch": round(1000 * sender, 3),
        "driver, % of an epoch": round(100 * statistics.median(driver) / seconds, 4),
        "sender, % of an epoch": round(100 * sender / seconds, 4),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
