"""Searchers that breed: CMA-ES, differential evolution and NSGA-II. Knows ranks of trials; models no metric.

Each is replayed from the study at every ask: what a trial belongs to (its generation, the member it challenges) is
written beside it when it is drawn, and trials count in the order in which they finished.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.samplers import NSGAIISampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from hpo import cube
from hpo.proposals import FINISHED, Proposing, is_infeasible, opening, stored
from hpo.searchers import distributions

if TYPE_CHECKING:
    from cmaes import CMA

GENERATION, TARGET = "cmaes:generation", "de:target"
"""What is written beside a trial: a number."""


class CmaEs(Proposing):
    """CMA-ES (Hansen, arXiv 1604.00772, appendix A; the package `cmaes`) in the unit cube, where choices and integers
    are intervals. The first generation spreads around the default.

    It differs from the paper in being asynchronous: while a generation is incomplete more of it is drawn, and what ends
    after a generation is full is not counted. Trials stopped early rank below complete ones, infeasible ones last.
    """

    sigma = 0.25
    """Of the first generation, in widths of a range."""

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        import numpy as np

        finished = in_order(study)
        optimizer = self._start(cube.generator("cmaes", self.seed, trial.number).getrandbits(31))
        while True:
            here = [one for one in finished if one.system_attrs.get(GENERATION) == optimizer.generation]
            if len(here) < optimizer.population_size:
                break
            ranked = best_first(here[: optimizer.population_size], study)
            optimizer.tell([(np.array(self._place(one)), float(rank)) for rank, one in enumerate(ranked)])
        _note(study, trial, GENERATION, optimizer.generation)
        place = [float(each) for each in optimizer.ask()]
        return stored(cube.point(self.space, place[: len(self.space.parameters)]))

    def _start(self, seed: int) -> "CMA":
        import numpy as np
        from cmaes import CMA

        mean = np.array(_padded(cube.ways(self.space, _default(self.space))))
        inside = np.clip(mean, 0.1, 0.9)  # a default at an edge would throw half of its draws away
        return CMA(mean=inside, sigma=self.sigma, bounds=np.array([[0.0, 1.0]] * len(mean)), seed=seed)

    def _place(self, trial: FrozenTrial) -> list[float]:
        return _padded(self._ways(trial.params))


class DifferentialEvolution(Proposing):
    """Differential evolution, rand/1/bin, as DEHB breeds (Awad et al., IJCAI 2021, arXiv 2105.09821, section 3):
    mutation and crossover of one half, a coordinate that leaves the cube is drawn anew, choices and integers are
    intervals.

    A challenger replaces the member it was bred against if it is at least as good at the last epoch that both reached.
    It differs from DEHB in that there is one population, not one for each budget: in our sweeps a trial is stopped or
    goes on, none is begun again with more epochs, so that the scheduler's brackets decide how far each is measured. The
    first population is the opening around the default.
    """

    members, mutation, crossover = 8, 0.5, 0.5

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        population = self._population(in_order(study), study)
        if len(population) < self.members:
            return stored(opening(self.space, self.seed, trial.number))
        target = trial.number % self.members
        _note(study, trial, TARGET, target)
        rng = cube.generator("de", self.seed, trial.number)
        others = [self._ways(one.params) for one in population]
        own = others.pop(target)
        base, plus, minus = rng.sample(others, 3)
        forced = rng.randrange(len(own)) if own else 0
        child: list[float] = []
        for place, parts in enumerate(zip(own, base, plus, minus, strict=True)):
            bred = parts[1] + self.mutation * (parts[2] - parts[3])
            bred = bred if 0.0 <= bred <= 1.0 else rng.random()
            child.append(bred if place == forced or rng.random() < self.crossover else parts[0])
        return stored(cube.point(self.space, child))

    def _population(self, finished: Iterable[FrozenTrial], study: Study) -> list[FrozenTrial]:
        members: list[FrozenTrial] = []
        for trial in finished:
            target = trial.system_attrs.get(TARGET)
            if len(members) < self.members:
                members.append(trial)
            elif target is not None and not _better(members[target], trial, study):
                members[target] = trial
        return members


class NsgaII(Proposing):
    """NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6, 2002, section III; Optuna's) with a population for small
    budgets; its first generation is the opening around the default. Infeasible trials and those stopped early are in no
    generation."""

    members = 10

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        seed = cube.generator("nsga2", self.seed, trial.number).getrandbits(32)
        bred = NSGAIISampler(population_size=self.members, seed=seed).sample_relative(
            study, trial, distributions(self.space)
        )
        # A mutated parameter is missing: it is drawn at random.
        return dict(bred) or stored(opening(self.space, self.seed, trial.number))


def in_order(study: Study) -> list[FrozenTrial]:
    """The finished trials in the order in which they finished, so that a trial that ends later changes nothing that was
    counted before it."""
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    return sorted(finished, key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete, trial.number))


def best_first(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Complete trials by value, then those stopped early by how far they came and by value, then infeasible ones."""
    sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0

    def key(trial: FrozenTrial) -> tuple[int, int, float]:
        if is_infeasible(trial):
            return 2, 0, 0.0
        if trial.value is not None:
            return 0, 0, sign * trial.value
        reached = max(trial.intermediate_values, default=0)
        return 1, -reached, min((sign * value for value in trial.intermediate_values.values()), default=math.inf)

    return sorted(trials, key=key)


def _better(one: FrozenTrial, other: FrozenTrial, study: Study) -> bool:
    """Whether `one` is strictly better at the last epoch that both reached."""
    if is_infeasible(one) or is_infeasible(other):
        return not is_infeasible(one) and is_infeasible(other)
    common = min(max(trial.intermediate_values, default=0) for trial in (one, other))
    if not common:
        return best_first([other, one], study)[0] is one
    pick = max if study.direction is StudyDirection.MAXIMIZE else min
    ours, theirs = (
        pick(value for epoch, value in trial.intermediate_values.items() if epoch <= common) for trial in (one, other)
    )
    return ours != theirs and pick(ours, theirs) == ours


def _note(study: Study, trial: FrozenTrial, name: str, value: int) -> None:
    study._storage.set_trial_system_attr(trial._trial_id, name, value)


def _default(space: Any) -> dict[str, Any]:
    return {parameter.name: parameter.default for parameter in space.parameters}


def _padded(place: Sequence[float]) -> list[float]:
    """At least two coordinates: `cmaes` takes no fewer."""
    return [*place, *[0.5] * (2 - len(place))]
