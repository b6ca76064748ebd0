"""Which configuration to try next: searchers by name, and a space as Optuna and as Ray see it. Knows no training.

The study keeps what was tried. A proposal is a pure function of the study, of the seed and of the trial's number, so a
sweep that was interrupted goes on with the configurations that it would have had.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpo import cube

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from search_spaces.space import Parameter, SearchSpace

SEARCHERS: Mapping[str, str] = {
    "random": "hpo.proposals:Random",
    "qmc": "hpo.proposals:Sobol",
    "tpe": "hpo.bayes:Tpe",
    "gp": "hpo.bayes:Gp",
    "bohb": "hpo.bayes:Bohb",
    "cmaes": "hpo.evolution:CmaEs",
    "de": "hpo.evolution:DifferentialEvolution",
    "nsga2": "hpo.evolution:NsgaII",
}
"""Name to a class made from (space, seed)."""


AUTO = "auto"
"""Not a searcher: the name of the one that `resolve` finds fit for a space."""
ONE_OBJECTIVE = ("bohb", "cmaes", "de")
"""Searchers that rank trials by a single number."""
MANY = 20
"""Parameters from which `auto` is TPE: distances, which a Gaussian process lives on, say little among so many. A
precaution; the process was ahead in 6 and in 14 dimensions, and no larger space was measured."""


def check(name: str, *, objectives: int = 1) -> None:
    """Raises ValueError for a name that is no searcher's, and for one that ranks by one number where there are more."""
    if name not in (AUTO, *SEARCHERS):
        raise ValueError(f"`automl.searcher` must be one of {', '.join((AUTO, *SEARCHERS))}, but is {name!r}.")
    if objectives > 1 and name in ONE_OBJECTIVE:
        others = ", ".join(each for each in (AUTO, *SEARCHERS) if each not in ONE_OBJECTIVE)
        raise ValueError(
            f"`automl.searcher` must be one for several objectives where `automl.objectives` has {objectives}, but is "
            f"{name!r}, which ranks by one number; use one of {others}."
        )


def resolve(name: str, space: "SearchSpace", trials: int, *, objectives: int = 1) -> tuple[str, str]:
    """The searcher that `name` stands for in this space, and why. The figures behind it: tests/benchmarks/searchers.py,
    dated in experiments/LOG.md."""
    check(name, objectives=objectives)
    if name != AUTO:
        return name, "asked for"
    if objectives > 1:
        return "tpe", f"{objectives} objectives: TPE ranks trials by which others they beat in all of them"
    if len(space.parameters) >= MANY:
        return "tpe", f"{len(space.parameters)} parameters: too many for a Gaussian process on few trials"
    after = ", and TPE after 100 finished trials, where it would take too long" if trials > 100 else ""
    return "gp", f"{len(space.parameters)} parameters: a Gaussian process learns most from few trials{after}"


def sampler(name: str, seed: int, known: int, *, space: "SearchSpace") -> "BaseSampler":
    """The searcher as a sampler of an Optuna study. `known` trials exist already; none of ours needs to be told."""
    check(name)
    assert name != AUTO, "resolve() comes first"
    module, _, cls = SEARCHERS[name].partition(":")
    made: BaseSampler = getattr(import_module(module), cls)(space, seed)
    return made


def suggest(trial: "optuna.Trial", space: "SearchSpace") -> dict[str, Any]:
    """The sample of a trial. Values already stored, or enqueued, come back as they are: asking twice is harmless."""
    return {parameter.name: _suggest(trial, parameter) for parameter in space.parameters}


def _suggest(trial: "optuna.Trial", parameter: "Parameter") -> Any:
    if parameter.choices:
        stored = [storable(choice) for choice in parameter.choices]
        return parameter.choices[stored.index(trial.suggest_categorical(parameter.name, stored))]
    (low, high), log = _bounds(parameter), parameter.scale == "log"
    if parameter.kind == "int":
        return trial.suggest_int(parameter.name, int(low), int(high), step=parameter.step, log=log)
    return trial.suggest_float(parameter.name, low, high, log=log)


def values_of(stored: Mapping[str, Any], space: "SearchSpace") -> dict[str, Any]:
    """The sample whose values a study keeps as `stored`, choices as they are in the space."""
    sample: dict[str, Any] = {}
    for parameter in space.parameters:
        value = stored[parameter.name]
        if parameter.choices:
            known = [repr(storable(choice)) for choice in parameter.choices]
            value = parameter.choices[known.index(repr(value))]
        sample[parameter.name] = value
    return sample


def distributions(space: "SearchSpace") -> "dict[str, BaseDistribution]":
    """The space as Optuna's distributions: those that `suggest` asks for."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for parameter in space.parameters:
        if parameter.choices:
            found[parameter.name] = CategoricalDistribution([storable(choice) for choice in parameter.choices])
            continue
        (low, high), log = _bounds(parameter), parameter.scale == "log"
        if parameter.kind == "int":
            found[parameter.name] = IntDistribution(int(low), int(high), log=log, step=parameter.step)
        else:
            found[parameter.name] = FloatDistribution(low, high, log=log)
    return found


def _bounds(parameter: "Parameter") -> tuple[float, float]:
    """First and last value of a number; for integers the last one on the grid."""
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.kind == "float":
        return float(parameter.low), float(parameter.high)
    low, step = int(parameter.low), parameter.step
    return low, low + (int(parameter.high) - low) // step * step


def storable(choice: Any) -> Any:
    """A choice as a study can keep it: lists and the like become JSON text."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def to_ray(space: "SearchSpace") -> dict[str, Any]:
    """The space as Ray Tune's domains, by the names of the parameters; a draw becomes a spec by `space.resolve`.

    A domain is Ray's own wherever Ray draws from it as we do. Weighted choices, logarithmic integers (Ray rounds them
    down, which starves the highest) and grids that do not start at 0 keep Ray's domain with our draw in it.
    """
    from numpy import random
    from ray import tune
    from ray.tune.search.sample import Domain, Sampler

    class Along(Sampler):
        def __init__(self, parameter: "Parameter") -> None:
            self.parameter = parameter

        def sample(self, domain: Domain, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
            rng = random.default_rng(random_state) if isinstance(random_state, int) else random_state or random
            drawn = [cube.at(self.parameter, float(rng.uniform(0.0, 1.0))) for _ in range(size)]
            return drawn if size > 1 else drawn[0]

    domains: dict[str, Any] = {}
    for parameter in space.parameters:
        domain: Domain
        if parameter.choices:
            domain, native = tune.choice(list(parameter.choices)), parameter.weights is None
        else:
            low, high = _bounds(parameter)
            native = parameter.kind == "float" or (parameter.scale == "linear" and parameter.step == 1)
            if parameter.kind == "int":
                domain = tune.randint(int(low), int(high) + 1)
            else:
                domain = (tune.loguniform if parameter.scale == "log" else tune.uniform)(low, high)
        if not native:
            domain.set_sampler(Along(parameter), allow_override=True)  # type: ignore[no-untyped-call]
        domains[parameter.name] = domain
    return domains
