"""When a trial should stop early, or go on as another. Knows learning curves by trial number; knows no Ray, no study.

A rule is a pure function of the curves reported so far. The study keeps those, so a resumed sweep judges exactly as an
uninterrupted one: there is no state to lose. No rule stops trial 0, the default that everything is compared with; a
value that is not finite ends any trial at once.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from model.metrics import Metric

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

Curve = Mapping[int, float]
"""Completed epochs to the metric's value."""
Curves = Mapping[int, Curve]
"""Trial number to its curve."""
DEFAULT = 0
"""The number of the trial that no rule stops."""


class Verdict(NamedTuple):
    action: Literal["go", "stop", "exploit"]
    parent: int | None = None
    """For `exploit`: the trial whose newest checkpoint and mutated values to go on from."""


GO, STOP = Verdict("go"), Verdict("stop")


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    metric: Metric

    def judge(self, number: int, curves: Curves) -> Verdict:
        """What trial `number` should do after the last epoch of its curve."""
        own = curves[number]
        last = max(own)
        if not math.isfinite(own[last]):
            return STOP
        if number == DEFAULT:
            return GO
        earlier = max((epoch for epoch in own if epoch < last), default=0)
        return self._verdict(number, curves, earlier, last)

    @abstractmethod
    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        """Of a trial whose last report is finite and came after epoch `last`, the one before after `earlier`."""

    def mutate(
        self, number: int, parent_sample: Mapping[str, Any], space: "SearchSpace", rng: random.Random
    ) -> dict[str, Any]:
        """New values for a trial that goes on from another's checkpoint."""
        raise ValueError(f"only population-based training changes a running trial, but this is {type(self).__name__}.")

    def _best(self, curve: Curve, end: float = math.inf) -> float | None:
        """The best finite value up to an epoch."""
        values = [value for epoch, value in curve.items() if epoch <= end and math.isfinite(value)]
        return (max(values) if self.metric.goal == "maximize" else min(values)) if values else None


@dataclass(frozen=True, kw_only=True)
class ToTheEnd(Rule):
    """Stops nothing."""

    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        return GO


@dataclass(frozen=True, kw_only=True)
class Halving(Rule):
    """Asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934, section 3.2), in its stopping form.

    At each rung a trial goes on when its best value so far is in the better `1 / reduction` of all that reached the
    rung, itself included. It differs from the paper's algorithm 2 in that a trial is stopped or goes on at once, where
    the paper pauses and promotes; and nothing is decided among fewer than `peers` others.
    """

    rungs: Sequence[int]
    """Completed epochs at which a trial is judged, rising."""
    reduction: int = 2
    peers: int = 4

    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        reached = [rung for rung in self.rungs if earlier < rung <= last]
        return STOP if reached and self._behind(number, curves, reached[-1]) else GO

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
        return None if end is None else self._best(curve, end)


@dataclass(frozen=True, kw_only=True)
class Hyperband(Rule):
    """Hyperband's brackets (Li et al., JMLR 18, 2018, section 3 and algorithm 1), each halved asynchronously.

    Bracket s judges its trials after R / eta^s epochs, then after eta times as many, up to R; bracket 0 judges none. A
    trial's bracket follows from its number, so that every stretch of trials divides itself among the brackets as the
    paper's counts do. It differs from the paper in the stopping form (see `Halving`): a bracket is not waited for, and
    its trials are compared with those of it that came as far, when there are enough for one to be the better third.
    """

    epochs: int
    """Of a whole trial: R of the paper."""
    reduction: int = 3

    @cached_property
    def halvings(self) -> int:
        """s_max: how often the epochs can be divided, counted in whole numbers."""
        return next(s for s in range(64) if self.reduction ** (s + 1) > self.epochs)

    def rungs(self, bracket: int) -> tuple[int, ...]:
        """Epochs at which trials of the bracket are judged; the last epoch is none of them."""
        found = {-(-self.epochs // self.reduction**power) for power in range(1, bracket + 1)}
        return tuple(sorted(rung for rung in found if rung < self.epochs))

    @cached_property
    def pattern(self) -> tuple[int, ...]:
        """The brackets of trials 1, 2, ...: each as often as the paper fills it, evenly mixed; then again."""
        most = self.halvings
        sizes = {s: -(-(most + 1) * self.reduction**s // (s + 1)) for s in range(most + 1)}
        total, given, found = sum(sizes.values()), dict.fromkeys(sizes, 0), []
        for place in range(1, total + 1):
            owed = max(sizes, key=lambda s: (sizes[s] * place - given[s] * total, s))
            given[owed] += 1
            found.append(owed)
        return tuple(found)

    def bracket(self, number: int) -> int:
        return 0 if number == DEFAULT else self.pattern[(number - 1) % len(self.pattern)]

    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        own = self.bracket(number)
        halving = Halving(metric=self.metric, rungs=self.rungs(own), reduction=self.reduction, peers=self.reduction - 1)
        peers = {other: curve for other, curve in curves.items() if self.bracket(other) == own}
        return halving.judge(number, peers)


@dataclass(frozen=True, kw_only=True)
class Median(Rule):
    """The median stopping rule (Golovin et al., KDD 2017, section 3.2.2): a trial stops when its best value so far is
    worse than the median of the running means of the others up to the same epoch.

    It differs from the paper in that all trials that came as far are compared with, not completed ones only; and it
    waits for `grace` epochs and `peers` others.
    """

    epochs: int
    """Of a whole trial; one that got there is complete, and not judged."""
    grace: int
    peers: int = 4

    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        own = self._best(curves[number])
        if not self.grace <= last < self.epochs or own is None:
            return GO
        means = [
            fmean(values)
            for other, curve in curves.items()
            if other != number and max(curve, default=0) >= last
            if (values := [value for epoch, value in curve.items() if epoch <= last and math.isfinite(value)])
        ]
        return STOP if len(means) >= self.peers and self.metric.better(median(means), own) else GO


def grace(epochs: int) -> int:
    """Epochs after which a trial may be judged at all: a fifth of a whole one, two at least."""
    return max(2, math.ceil(epochs / 5))


def gentle(epochs: int, metric: Metric) -> Halving:
    """First rung after the grace, then doubling. Below five epochs nothing is stopped."""
    rungs = []
    rung = grace(epochs)
    while epochs >= 5 and rung < epochs:
        rungs.append(rung)
        rung *= 2
    return Halving(metric=metric, rungs=tuple(rungs))


SCHEDULERS: Mapping[str, Callable[[int, Metric, int], Rule]] = {
    "asha": lambda epochs, metric, seed: gentle(epochs, metric),
    "hyperband": lambda epochs, metric, seed: Hyperband(metric=metric, epochs=epochs),
    "median": lambda epochs, metric, seed: Median(metric=metric, epochs=epochs, grace=grace(epochs)),
    "pbt": lambda epochs, metric, seed: _population(epochs, metric, seed),
    "none": lambda epochs, metric, seed: ToTheEnd(metric=metric),
}
"""Name to a rule made from (epochs of a whole trial, metric, seed)."""


def make(name: str, *, epochs: int, metric: Metric, seed: int) -> Rule:
    check(name)
    return SCHEDULERS[name](epochs, metric, seed)


def check(name: str, *, objectives: int = 1, space: "SearchSpace | None" = None) -> None:
    """Raises ValueError for a name that is no scheduler's, and for one that does not go with what is searched.

    Every rule judges by one metric. With further objectives that would stop a small model for being less accurate than
    a large one, which is what such a search is to find out; so trials run to the end there.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"`automl.scheduler` must be one of {', '.join(SCHEDULERS)}, but is {name!r}.")
    if objectives > 1 and name != "none":
        raise ValueError(
            f"`automl.scheduler` must be none where there are several `automl.objectives`, but is {name!r}: it would "
            "stop a small model for being less accurate than a large one. Set `automl.scheduler: none`."
        )
    if name == "pbt" and space is not None:
        from hpo.population import check_space

        check_space(space)


def _population(epochs: int, metric: Metric, seed: int) -> Rule:
    from hpo.population import Population

    return Population(metric=metric, epochs=epochs, seed=seed)
