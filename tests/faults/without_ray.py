"""Begins or resumes a sweep of ten trials of the stand-in training in this process, without Ray.

Arguments: the run folder, and after how many finished trials, one epoch into the next, it is to be killed; 0 is never.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import rig
from every_write import inline, no_ray, quiet
from one_sweep import SPACE

from hpo import sweep as sweeping
from hpo.driver import Driver
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec

TRIALS, EPOCHS = 10, 5


def main(run: Path, kill_after: int) -> None:
    told = Driver.told

    def until_killed(driver: Driver, number: int, message: dict[str, Any]) -> bool:
        stop = told(driver, number, message)
        if kill_after and len(rig.finished(run)) == kill_after and "epoch" in message:
            os.kill(os.getpid(), signal.SIGKILL)
        return stop

    Driver.told = until_killed  # type: ignore[method-assign]
    sweeping._execute, sweeping.workers = inline, no_ray  # type: ignore[assignment]
    if (run / "sweep.json").exists():
        sweeping.resume_sweep(run, console=quiet())
        return
    spec = ExperimentSpec.from_dict({"train": {"num_epochs": EPOCHS}})
    sweeping.run_sweep(
        run, spec, SweepSpec(trials=TRIALS, searcher="random", seed=5), SPACE, console=quiet(), train="bowl:train"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
