"""What every searcher shares: whole points of a space, the first of them by a design, and draws that learn nothing.

Knows Optuna's studies; knows no model.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hpo import cube
from hpo.searchers import distributions, storable, values_of

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""Ends that a searcher learns from: measured in full, stopped early, or infeasible. A failure teaches nothing."""
SAME, TRIES = 1e-3, 20
"""Points nearer than this share of every range are one; how many neighbours are looked at."""
SPREAD = 0.3
"""Standard deviation of the opening around the default, in widths of a range; cut off at its ends. Measured beside 0.2
and a uniform opening (tests/benchmarks/searchers.py): best where the default is good, no worse where it is not."""
INSIDE = 0.3
"""The opening keeps its centre this far from the ends of a range. A default that stands at an end was put there by an
overlay that believes the good values elsewhere (rates of a detector from random weights), and trial 0 is at the default
already. On cheap surfaces (tests/benchmarks/searchers.py) it beat 0 and the middle of logarithmic ranges; on a model of
real trials (tests/benchmarks/openings.py) it was no better than 0, and the middle of every range was."""


class Proposing(BaseSampler):
    """Proposes a whole point of the box per trial, from the study, the seed and the trial's number alone."""

    moves_on = True
    """Whether a proposal that is known already, finished or under way, gives way to a neighbour. Training repeats with
    its seed, so the same place twice would tell nothing; models like to stay at the edge where they were best."""

    def __init__(self, space: "SearchSpace", seed: int) -> None:
        self.space, self.seed = space, seed

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        """The sample of `trial`, choices in the form in which a study stores them."""
        raise NotImplementedError

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        sample = dict(self.propose(study, trial))
        if not self.moves_on or len(sample) < len(self.space.parameters):
            return sample
        return self._unlike_others(sample, study, trial)

    def _unlike_others(self, sample: dict[str, Any], study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The sample, or the first of ever farther neighbours that no trial has; a free draw when all are taken."""
        names = sample.keys()
        others = [one.params for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        taken = [self._ways(params) for params in others if params.keys() >= names]
        here, rng = self._ways(sample), cube.generator("neighbour", self.seed, trial.number)
        for step in range(1, TRIES + 1):
            place = self._ways(sample)
            if not any(all(abs(a - b) < SAME for a, b in zip(place, one, strict=True)) for one in taken):
                return sample
            near = [min(max(abs(way + rng.gauss(0.0, 0.05 * step)), 0.0), 1.0) for way in here]
            sample = stored(cube.point(self.space, near))
        return stored(self.space.draw(rng))

    def _ways(self, params: Mapping[str, Any]) -> list[float]:
        return cube.ways(self.space, values_of(params, self.space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that the proposal left open: drawn at random."""
        rng = cube.generator("open", self.seed, trial.number, param_name)
        return storable(self.space[param_name].draw(rng))


class Random(Proposing):
    """Independent draws (Bergstra and Bengio, JMLR 13, 2012, section 2)."""

    moves_on = False

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        return stored(self.space.draw(cube.generator("random", self.seed, trial.number)))


class Sobol(Proposing):
    """A scrambled Sobol sequence (Owen, J. Complexity 14, 1998): point n belongs to trial n. A trial that is
    not drawn, the default, a point of the user's or a repeated draw, leaves its place empty."""

    moves_on = False

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        return stored(cube.point(self.space, _sobol(self.space, self.seed, trial.number)))


class Learning(Proposing):
    """Begins with a design around the default, then asks a model."""

    startup = 4
    """Finished trials that the model needs, the default among them; running ones are not waited for."""

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        measured = [trial for trial in finished if trial.values or trial.intermediate_values]
        if len(finished) < self.startup or sum(not is_infeasible(trial) for trial in measured) < 2:
            return stored(opening(self.space, self.seed, trial.number))
        from threadpoolctl import threadpool_limits

        seed = cube.generator("model", self.seed, trial.number).getrandbits(32)
        with threadpool_limits(1):  # many tiny sums: each library's own threads make them up to 20 times slower
            return self.model(study, trial, seed)

    def model(self, study: Study, trial: FrozenTrial, seed: int) -> Mapping[str, Any]:
        raise NotImplementedError


def opening(space: "SearchSpace", seed: int, number: int) -> dict[str, Any]:
    """Point `number` of the design: a Sobol sequence drawn towards the default, choices left as they are."""
    sample: dict[str, Any] = {}
    for parameter, uniform in zip(space.parameters, _sobol(space, seed, number), strict=True):
        if parameter.choices:
            sample[parameter.name] = cube.at(parameter, uniform)
            continue
        centre = min(max(cube.way(parameter, parameter.default), INSIDE), 1.0 - INSIDE)
        around = NormalDist(centre, SPREAD)
        low, high = around.cdf(0.0), around.cdf(1.0)
        way = around.inv_cdf(low + uniform * (high - low)) if 0.0 < uniform < 1.0 else uniform
        sample[parameter.name] = cube.at(parameter, min(max(way, 0.0), 1.0))
    return sample


def _sobol(space: "SearchSpace", seed: int, number: int) -> list[float]:
    """The point of the scrambled sequence of `seed` that belongs to a trial, uniform in the unit cube."""
    from scipy.stats import qmc

    if not space.parameters:
        return []
    sequence = qmc.Sobol(len(space.parameters), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    return [float(each) for each in sequence.random(1)[0]]


def stored(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: storable(value) for name, value in sample.items()}


def is_infeasible(trial: FrozenTrial) -> bool:
    return any(value > 0 for value in trial.constraints.values())
