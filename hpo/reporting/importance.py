"""How much of the metric's variation each parameter explains, by Optuna's own evaluator. Knows finished trials only."""

from typing import NamedTuple

from hpo.result import Outcome, SweepResult
from search_spaces.space import SearchSpace

LEAST_TRIALS = 12
"""Full trials from which on the numbers are more than noise."""


class Importance(NamedTuple):
    shares: tuple[tuple[str, float], ...]
    """Parameter and its share, largest first; they sum to 1. Empty where there is a reason instead."""
    trials: int
    why_not: str | None = None


def importance_of(result: SweepResult, space: SearchSpace, *, population: bool = False) -> Importance:
    """`population`: whether trials took over the values of others."""
    full = [trial for trial in result.trials if trial.outcome is Outcome.COMPLETED]
    known = [(trial, value) for trial in full if (value := trial.value(result.metric)) is not None]
    if population:
        return Importance((), len(known), "Population-based training changes values under way: no importance is told.")
    if len(known) < LEAST_TRIALS:
        return Importance(
            (),
            len(known),
            f"The importance of parameters is told from {LEAST_TRIALS} full trials on; there are {len(known)}. From "
            "fewer it would be noise.",
        )
    if len({value for _, value in known}) == 1:
        return Importance((), len(known), f"All {len(known)} full trials have the same value: no parameter mattered.")
    import optuna

    from hpo.searchers import distributions, storable

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    boxes = distributions(space)
    study = optuna.create_study(direction=result.metric.goal)
    study.add_trials([
        optuna.trial.create_trial(
            params={name: storable(trial.sample[name]) for name in boxes}, distributions=boxes, value=value
        )
        for trial, value in known
    ])  # fmt: skip
    found = optuna.importance.get_param_importances(study)
    return Importance(tuple(found.items()), len(known))
