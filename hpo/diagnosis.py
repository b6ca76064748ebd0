"""Whether the first trials of a sweep end in one cause, so that more would too. Knows outcomes and reasons only."""

from collections import Counter
from collections.abc import Iterable

from hpo.faults import cause_of
from hpo.result import Outcome

SAME_CAUSE = 3
"""Failures of one cause among the first trials that stop a sweep."""
FIRST_TRIALS = 8


class FirstEnds:
    """How trials ended, in that order, those of earlier sessions among them."""

    def __init__(self, known: Iterable[tuple[Outcome, str | None]] = ()) -> None:
        self._ends = [(outcome, cause_of(reason)) for outcome, reason in known]

    def add(self, outcome: Outcome, reason: str | None) -> str | None:
        """Takes one more; what is wrong, when this one makes it plain."""
        self._ends.append((outcome, cause_of(reason)))
        first, failures = self._ends[:FIRST_TRIALS], (Outcome.FAILED, Outcome.LOST)
        same = Counter(cause for outcome, cause in first if outcome in failures)[cause_of(reason)]
        if same < SAME_CAUSE or len(self._ends) > FIRST_TRIALS:
            return None
        return f"{same} of the first {len(self._ends)} trials failed with one cause, so the sweep stopped: {reason}"
