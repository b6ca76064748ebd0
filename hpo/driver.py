"""What happens on each event of a sweep: a trial starts, reports, ends, is lost. Knows nothing of Ray.

The ledger is told first, then MLflow and the console: what a person sees is on disk already.
"""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from hpo import schedulers
from hpo.console import Console
from hpo.ledger import Ledger
from hpo.result import Outcome, TrialRecord
from hpo.tracking import Tracker
from hpo.trial import ERROR_FILE, FINAL
from model.metrics import Measurement
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec

RETRIES = 3
"""How often a trial whose worker died is started again."""
SAME_CAUSE = 3
"""Failures of one cause among the first trials that stop a sweep."""
FIRST_TRIALS = 8


class Driver:
    """Called by the adapters to Ray Tune, from one thread."""

    def __init__(
        self, ledger: Ledger, spec: ExperimentSpec, sweep: "SweepSpec", console: Console, tracker: Tracker
    ) -> None:
        self.ledger, self._console, self._tracker = ledger, console, tracker
        self._rule = schedulers.SCHEDULERS[sweep.scheduler](spec.train.num_epochs, ledger.metric)
        self._finals: dict[int, dict[str, Any]] = {}
        """How running trials said they ended, or why they were told to stop."""
        self._ends: list[tuple[Outcome, str]] = [
            (trial.outcome, _cause(trial.reason)) for trial in ledger.result().trials if trial.outcome is not None
        ]
        self.running: set[int] = set()
        self.diagnosis: str | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to start, now or after what runs has ended (a lost trial starts again)."""
        return self.diagnosis is not None or (self.ledger.done and not self.running)

    def start(self) -> int | None:
        """The number of the next trial; None when there is none for now."""
        if self.diagnosis is not None:
            return None
        number = self.ledger.next()
        if number is None:
            return None
        self.running.add(number)
        trial = self.ledger.record_of(number)
        self._tracker.child(trial)
        epoch = trial.measurements[-1].epoch if trial.measurements else 0
        self._console.started(number, trial.baseline, trial.params, epoch)
        return number

    def told(self, number: int, message: dict[str, Any]) -> bool:
        """Takes a worker's message. True when the trial should stop."""
        final = message.get(FINAL)
        if final is not None:
            for one in final["measurements"]:
                self._measured(number, Measurement(**one))
            self._finals[number] = final
            return False
        if self.diagnosis is not None:
            return True
        if not self._measured(number, Measurement(**message)) or not self._rule.stops(number, self.ledger.curves):
            return False
        self._finals[number] = {"outcome": Outcome.PRUNED.value, "seconds": message["seconds"]}
        return True

    def ended(self, number: int, *, error: str | None = None) -> None:
        """A trial is over: by its own word, by ours, or with `error`, what Tune says of a worker that said nothing."""
        self.running.discard(number)
        final = self._finals.pop(number, None)
        crash = self.ledger.folder(number) / ERROR_FILE
        if final is None and self.diagnosis is not None:
            return  # stopped with the sweep: goes on when that is resumed
        if final is None and crash.exists():
            lines = crash.read_text(encoding="utf-8").strip().splitlines() or ["unknown"]
            final = {"outcome": Outcome.FAILED.value, "reason": f"{lines[-1]} (traceback in {crash})"}
        if final is None:
            reason = _telling_line(error or "") or "the worker went away"
            losses = self.ledger.lose(number)
            self._console.note(f"trial {number}: its worker was lost ({losses} of {RETRIES}): {reason}")
            if losses <= RETRIES:
                return
            self.ledger.give_up(number)
            final = {"outcome": Outcome.LOST.value, "reason": reason}
        self._close(number, final)

    def _close(self, number: int, final: dict[str, Any]) -> None:
        outcome = Outcome(final["outcome"])
        if outcome is Outcome.COMPLETED and not self.ledger.curves[number]:
            outcome = Outcome.FAILED
            final["reason"] = f"the training reported no {self.ledger.metric.name}"
        facts = {name: final.get(name) for name in ("reason", "adjustments", "seconds", "checkpoint")}
        if facts["checkpoint"] is None and (self.ledger.folder(number) / "model_best.pth").exists():
            facts["checkpoint"] = f"trials/{number}/model_best.pth"
        trial = self.ledger.finish(number, outcome, **facts)
        self._tracker.finish(trial)
        self._console.ended(trial)
        self._diagnose(trial)

    def _measured(self, number: int, measurement: Measurement) -> bool:
        if not self.ledger.record(number, measurement):
            return False
        self._tracker.log(number, measurement)
        self._console.measured(number, measurement)
        return True

    def _diagnose(self, trial: TrialRecord) -> None:
        assert trial.outcome is not None
        self._ends.append((trial.outcome, _cause(trial.reason)))
        wrong = Counter(
            cause for outcome, cause in self._ends[:FIRST_TRIALS] if outcome in (Outcome.FAILED, Outcome.LOST)
        )
        cause = _cause(trial.reason)
        if wrong[cause] >= SAME_CAUSE and len(self._ends) <= FIRST_TRIALS:
            self.diagnosis = (
                f"{wrong[cause]} of the first {len(self._ends)} trials failed with one cause, so the sweep stopped: "
                f"{trial.reason}. When that is mended, `ddetr resume {self.ledger.run_dir}` goes on."
            )


def _cause(reason: str | None) -> str:
    """A reason without its numbers and paths, so that equal causes compare equal."""
    return re.sub(r"\(traceback in .*?\)|\d+(\.\d+)?", "", _first_line(reason or "")).strip()


def _telling_line(text: str) -> str:
    """The line of Tune's long text that names an exception, else the first."""
    named = [line for line in text.splitlines() if re.match(r"\w+(Error|Exception): ", line)]
    return named[0] if named else _first_line(text)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")
