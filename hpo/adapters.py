"""Ray Tune's two interfaces onto the driver: where trials come from, and what a result means.

They hold nothing worth keeping, and pickle as nothing: Tune writes them to a file that is never read.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from hpo.trial import MESSAGE

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from hpo.driver import Driver


class Searching(Searcher):
    """Hands out trial numbers. Tune's ids are its own: a lost trial gets a second id and keeps its number."""

    def __init__(self, driver: "Driver") -> None:
        super().__init__(metric=None, mode=None)
        self._driver = driver
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's own part of the config; None to wait; FINISHED."""
        if self._driver.done:
            return Searcher.FINISHED
        number = self._driver.start()
        if number is None:
            return None
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            self._driver.ended(self._numbers[trial_id])

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep starts a new Tune on the same study."""


class Halting(FIFOScheduler):
    """Passes every report to the driver first, and its verdict to Tune."""

    def __init__(self, driver: "Driver") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> str:
        stop = self._driver.told(trial.config["number"], json.loads(result[MESSAGE]))
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: "TuneController", trial: "Trial") -> None:
        path = Path(trial.error_file) if trial.error_file else None
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        # Tune's first line counts its failures.
        self._driver.ended(trial.config["number"], error=text.partition("\n")[2])
