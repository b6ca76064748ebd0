"""One harness that every searcher must pass, on a real study that holds every kind of ending."""

import optuna
import pytest

from hpo.searchers import SEARCHERS, sampler, suggest
from search_spaces.space import Parameter, SearchSpace

SPACE = SearchSpace(
    parameters=(
        Parameter(name="lr", kind="float", low=1e-5, high=1e-2, scale="log", default=1e-4),
        Parameter(name="drop", kind="float", low=0.0, high=0.4, default=0.1),
        Parameter(name="layers", kind="int", low=1, high=6, default=3),
        Parameter(name="size", kind="int", low=32, high=100, step=32, default=64),
        Parameter(name="crop", kind="categorical", choices=([1, 2], [3, 4], None), default=None),
    )
)
ENDS = ("complete", "complete", "pruned", "infeasible", "fail", "running")


def sweep(name: str, study: optuna.Study, seed: int, trials: int) -> list[dict]:
    known = len(study.trials)
    study.sampler = sampler(name, seed, known, space=SPACE)
    samples = []
    for place in range(known, known + trials):
        trial = study.ask()
        sample = suggest(trial, SPACE)
        SPACE.check(sample)
        samples.append(sample)
        end = ENDS[place % len(ENDS)]
        if end in ("complete", "pruned"):
            trial.report(sample["drop"], 1)
        if end not in ("fail", "running"):
            trial.set_constraint("infeasible", 1.0 if end == "infeasible" else -1.0)
        if end == "complete":
            study.tell(trial, sample["drop"])
        elif end == "fail":
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif end != "running":
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return samples


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_stays_inside_and_repeats_with_its_seed(name: str) -> None:
    runs = [sweep(name, optuna.create_study(direction="maximize"), seed=5, trials=11) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][:3] != sweep(name, optuna.create_study(direction="maximize"), seed=6, trials=3)


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_resumed_sampler_does_not_repeat_itself(name: str) -> None:
    study = optuna.create_study(direction="maximize")
    first = sweep(name, study, seed=5, trials=6)
    second = sweep(name, study, seed=5, trials=6)
    assert not [sample for sample in second if sample in first]


def infeasible_draws(name: str, seed: int, told: bool) -> int:
    """Of trials 10 to 23 on a metric that rises up to the edge of what fits; not `told`, they end as failures."""
    study = optuna.create_study(direction="maximize", sampler=sampler(name, seed, 0, space=SPACE))
    found = 0
    for place in range(24):
        trial = study.ask()
        drop = suggest(trial, SPACE)["drop"]
        if drop <= 0.2:
            trial.set_constraint("infeasible", -1.0)
            study.tell(trial, drop)
            continue
        found += place >= 10
        if told:
            trial.set_constraint("infeasible", 1.0)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if told else optuna.trial.TrialState.FAIL)
    return found


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_infeasible_region_is_learned(name: str) -> None:
    """28 draws each. Whoever learns nothing of failures runs into them more often the better it knows the rest."""
    told, untold = (sum(infeasible_draws(name, seed, told) for seed in range(2)) for told in (True, False))
    print(f"{name}: {told} of 28 infeasible when told, {untold} when not")
    assert told <= 0.7 * untold


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="must be one of auto, random, qmc, tpe, gp, bohb, cmaes, de, nsga2, but is 'tep'"):
        sampler("tep", 0, 0, space=SPACE)
