"""When a trial should stop early. Knows learning curves by trial number; knows no Ray, no study and no network.

A rule is a pure function of the curves reported so far. The study keeps those, so a resumed sweep judges exactly as an
uninterrupted one: there is no state to lose.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from model.metrics import Metric

Curve = Mapping[int, float]
"""Completed epochs to the metric's value."""
Curves = Mapping[int, Curve]
"""Trial number to its curve."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934, algorithm 2, stopping form), made gentle.

    At each rung a trial goes on when its best value so far is in the better `1 / reduction` of all that reached the
    rung, itself included. Nothing is decided among fewer than `peers` others, and trial 0 always goes on.
    """

    metric: Metric
    rungs: Sequence[int]
    """Completed epochs at which a trial is judged, rising."""
    reduction: int = 2
    peers: int = 4
    protected: int = 0
    """The number of the trial that is never stopped."""

    def stops(self, number: int, curves: Curves) -> bool:
        """Whether trial `number` should stop after the last epoch of its curve."""
        own = curves[number]
        last = max(own)
        if not math.isfinite(own[last]):
            return True
        if number == self.protected:
            return False
        earlier = max((epoch for epoch in own if epoch < last), default=0)
        reached = [rung for rung in self.rungs if earlier < rung <= last]
        return bool(reached) and self._behind(number, curves, reached[-1])

    def _behind(self, number: int, curves: Curves, rung: int) -> bool:
        others = [self._at(curve, rung) for other, curve in curves.items() if other != number]
        known = [value for value in others if value is not None]
        own = self._at(curves[number], rung)
        if len(known) < self.peers or own is None:
            return False
        better = sum(self.metric.better(value, own) for value in known)
        return better >= math.ceil((len(known) + 1) / self.reduction)

    def _at(self, curve: Curve, rung: int) -> float | None:
        """The best value up to the first report at or after `rung`; None when the trial did not get there."""
        end = min((epoch for epoch in curve if epoch >= rung), default=None)
        if end is None:
            return None
        values = [value for epoch, value in curve.items() if epoch <= end and math.isfinite(value)]
        return (max(values) if self.metric.goal == "maximize" else min(values)) if values else None


def gentle(epochs: int, metric: Metric) -> Halving:
    """First rung after a fifth of the epochs (two at least), then doubling. Below five epochs nothing is stopped."""
    rungs = []
    rung = max(2, math.ceil(epochs / 5))
    while epochs >= 5 and rung < epochs:
        rungs.append(rung)
        rung *= 2
    return Halving(metric=metric, rungs=tuple(rungs))


def to_the_end(epochs: int, metric: Metric) -> Halving:
    """Stops nothing but values that are not finite."""
    return Halving(metric=metric, rungs=())


SCHEDULERS: Mapping[str, Callable[[int, Metric], Halving]] = {"asha": gentle, "none": to_the_end}


def check(name: str) -> None:
    if name not in SCHEDULERS:
        raise ValueError(f"`automl.scheduler` must be one of {', '.join(SCHEDULERS)}, but is {name!r}.")
