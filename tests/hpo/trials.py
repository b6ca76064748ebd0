"""Trials as a study tells them, for tests that train nothing."""

from typing import Any

from hpo.result import Outcome, TrialRecord
from model.metrics import VAL_MAP50, Measurement


def at(epoch: int, value: float, seconds: float | None = None) -> Measurement:
    """The metric after an epoch; a minute each where no time since the beginning is given."""
    return Measurement(
        epoch=epoch, values={VAL_MAP50.name: value}, seconds=60.0 * epoch if seconds is None else seconds
    )


def trial(number: int, *values: float, outcome: Outcome | None = Outcome.COMPLETED, **known: Any) -> TrialRecord:
    """A trial that measured `values`, one an epoch; number 0 is the default. known: any other field."""
    usual: dict[str, Any] = {
        "baseline": number == 0,
        "reason": None,
        "sample": {},
        "params": {},
        "adjustments": (),
        "measurements": tuple(at(epoch, value) for epoch, value in enumerate(values, start=1)),
        "seconds": 60.0 * len(values),
        "checkpoint": None,
    }
    return TrialRecord(number=number, outcome=outcome, **usual | known)
