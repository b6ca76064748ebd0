"""Which configuration to try next: samplers by name, over a space that is always a box. Knows no Ray and no training.

The study keeps what was tried. A sampler is made anew for each session, its seed moved by the number of trials there
are, because a sampler made twice from one seed repeats itself.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from search_spaces.space import Parameter, SearchSpace

STARTUP = 8
"""Trials before a model is trusted; points and the default count."""


def _tpe(seed: int, known: int) -> BaseSampler:
    # Multivariate and aware of running trials, both Optuna's defaults since version 5.
    return TPESampler(seed=seed + known, n_startup_trials=STARTUP)


class SeeingGP(GPSampler):
    """Optuna's GP reads completed trials only: one told as pruned, and the constraint on it, would be as good as
    forgotten. This one is shown them as completed: with their best value, or, infeasible, with the worst known value
    and their constraint. The study itself keeps the truth."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(_all_completed(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = _all_completed(study)
        return super().sample_relative(view, view.get_trials(deepcopy=False)[trial.number], search_space)


def _all_completed(study: Study) -> Study:
    pick, worst_of = (max, min) if study.direction is StudyDirection.MAXIMIZE else (min, max)
    trials = study.get_trials(deepcopy=False)
    values: dict[int, float] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE and trial.value is not None:
            values[trial.number] = trial.value
        elif trial.state is TrialState.PRUNED and trial.intermediate_values:
            values[trial.number] = pick(trial.intermediate_values.values())
    worst = worst_of(values.values(), default=0.0)
    view = optuna.create_study(direction=study.direction)
    for trial in trials:
        if trial.state is TrialState.PRUNED:
            shown = copy(trial)
            shown.state, shown.value = TrialState.COMPLETE, values.get(trial.number, worst)
            view.add_trial(shown)
        else:  # also those it passes over, so that numbers stay what they are
            view.add_trial(trial)
    return view


def _gp(seed: int, known: int) -> BaseSampler:
    return SeeingGP(seed=seed + known, n_startup_trials=STARTUP)


def _random(seed: int, known: int) -> BaseSampler:
    return RandomSampler(seed=seed + known)


def _qmc(seed: int, known: int) -> BaseSampler:
    # One sequence for the whole study: its place in it is kept there, so this seed must not move.
    first = RandomSampler(seed=seed + known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(scramble=True, seed=seed, independent_sampler=first, warn_independent_sampling=False)


SEARCHERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
}
"""Name to a sampler made from (seed, number of trials that exist)."""


def check(name: str) -> None:
    if name not in SEARCHERS:
        raise ValueError(f"`automl.searcher` must be one of {', '.join(SEARCHERS)}, but is {name!r}.")


def sampler(name: str, seed: int, known: int) -> BaseSampler:
    check(name)
    return SEARCHERS[name](seed, known)


def suggest(trial: optuna.Trial, space: "SearchSpace") -> dict[str, Any]:
    """The sample of a trial. Values already stored, or enqueued, come back as they are: asking twice is harmless."""
    return {parameter.name: _suggest(trial, parameter) for parameter in space.parameters}


def _suggest(trial: optuna.Trial, parameter: "Parameter") -> Any:
    if parameter.kind == "categorical":
        stored = [storable(choice) for choice in parameter.choices]
        return parameter.choices[stored.index(trial.suggest_categorical(parameter.name, stored))]
    assert parameter.low is not None
    assert parameter.high is not None
    log = parameter.scale == "log"
    if parameter.kind == "int":
        low, step = int(parameter.low), parameter.step
        high = low + (int(parameter.high) - low) // step * step
        return trial.suggest_int(parameter.name, low, high, step=step, log=log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=log)


def storable(choice: Any) -> Any:
    """A choice as a study can keep it: lists and the like become JSON text."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)
