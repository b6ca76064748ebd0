"""How long a trial may be silent before it counts as stuck: a value that is asked. Knows no clock and no process."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stall:
    """A trial reports after each validation; the first report comes late, because data and network are made first."""

    at_least: float = 120.0
    own: float = 5.0
    """Times its own longest silence so far."""
    peers: float = 10.0
    """Times the longest silence of any trial, for one that has not reported: it may be the largest network."""
    unknown: float = 24 * 3600.0
    """While no trial has reported."""

    def limit(self, own: Sequence[float], others: Sequence[float]) -> float:
        """Seconds. own, others: silences that ended with a report, of the trial and of all trials."""
        if own:
            return max(self.at_least, self.own * max(own))
        if others:
            return max(self.at_least, self.peers * max(others))
        return self.unknown
