"""Ray Tune's two interfaces onto the driver: where trials come from, and what a result means.

They hold nothing worth keeping, and pickle as nothing: Tune writes them to a file that is never read.
"""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from hpo.trial import DUMP, MESSAGE

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from hpo.driver import Driver

DUMP_S = 1.0
"""How long a stuck process gets to write its stacks."""


class Searching(Searcher):
    """Hands out trial numbers. Tune's ids are its own: a lost trial gets a second id and keeps its number."""

    def __init__(self, driver: "Driver") -> None:
        super().__init__(metric=None, mode=None)
        self._driver = driver
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's own part of the config; None to wait; FINISHED."""
        number = None
        with self._driver.carrying():
            number = self._driver.start()
        if number is None:
            return Searcher.FINISHED if self._driver.done else None
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            with self._driver.carrying():
                self._driver.ended(self._numbers[trial_id])

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep starts a new Tune on the same study."""


class Halting(FIFOScheduler):
    """Passes every report to the driver first, and its verdict to Tune; and calls the driver at every step."""

    def __init__(self, driver: "Driver") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> "Trial | None":
        """Tune asks several times a second, which makes it the driver's pulse."""
        with self._driver.carrying():
            for order in self._driver.tick():
                if order.pid is not None and order.node is not None:
                    end_worker(order.pid, order.node, dump=order.stuck)
                    continue
                for trial in tune_controller.get_trials():
                    if trial.config["number"] == order.number and not trial.is_finished():
                        tune_controller.stop_trial(trial)
        found: Trial | None = super().choose_trial_to_run(tune_controller)
        return found

    def on_trial_result(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> str:
        stop = True
        with self._driver.carrying():
            stop = self._driver.told(trial.config["number"], json.loads(result[MESSAGE]))
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: "TuneController", trial: "Trial") -> None:
        path = Path(trial.error_file) if trial.error_file else None
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        # Tune's first line counts its failures.
        with self._driver.carrying():
            self._driver.ended(trial.config["number"], error=text.partition("\n")[2])


def end_worker(pid: int, node: str, *, dump: bool) -> None:
    """Kills a worker's process on its node, with `dump` after it has written where it stands. Tune then finds it
    gone."""
    if node == ray.get_runtime_context().get_node_id():
        end_process(pid, dump)
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    task: Any = ray.remote(end_process)
    task.options(num_cpus=0, scheduling_strategy=there).remote(pid, dump)


def end_process(pid: int, dump: bool) -> None:
    """A process that is gone already is as good."""
    with suppress(ProcessLookupError):
        if dump:
            os.kill(pid, DUMP)
            time.sleep(DUMP_S)
        os.kill(pid, signal.SIGKILL)
