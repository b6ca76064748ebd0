"""One space, three ways to draw from it: plainly, through an Optuna study, from Ray's domains."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from hpo import cube
from hpo.searchers import distributions, sampler, storable, suggest, to_ray
from model.spec import ExperimentSpec
from schemas import dotted, packaged, yamlio
from schemas.validate import check
from search_spaces import overlays
from search_spaces.derive import Choice, derive
from search_spaces.space import Parameter, SearchSpace

EVERY_KIND = SearchSpace(
    parameters=(
        Parameter(name="rate", kind="float", low=1e-5, high=1e-2, scale="log", default=1e-4),
        Parameter(name="drop", kind="float", low=-0.2, high=0.4, default=0.1),
        Parameter(name="layers", kind="int", low=1, high=6, default=3),
        Parameter(name="queries", kind="int", low=1, high=8, scale="log", default=4),
        Parameter(name="size", kind="int", low=20, high=150, step=32, default=52),
        Parameter(name="flag", kind="categorical", choices=(False, True), default=True),
        Parameter(name="crop", kind="categorical", choices=([1, 2], [3, 4], None), default=None),
        Parameter(name="op", kind="categorical", choices=("a", "b", "c", 4), weights=(5, 1, 0, 2), default="a"),
        Parameter(name="fixed", kind="float", low=3.0, high=3.0, default=3.0),
    )
)
DRAWS = 3000


def plainly(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [space.draw(rng) for _ in range(count)]


def by_optuna(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler("random", 2, 0, space=space))
    return [suggest(study.ask(), space) for _ in range(count)]


def by_ray(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    domains, rng = to_ray(space), np.random.default_rng(3)
    return [{name: domain.sample(random_state=rng) for name, domain in domains.items()} for _ in range(count)]


WAYS: dict[str, Callable[[SearchSpace, int], list[dict[str, Any]]]] = {
    "plain": plainly,
    "optuna": by_optuna,
    "ray": by_ray,
}


@pytest.mark.parametrize("way", ["optuna", "ray"])
def test_drawn_alike(way: str) -> None:
    """Two samples of each parameter, compared by Kolmogorov-Smirnov or chi-squared; nothing is redrawn. 16 comparisons
    at 1e-6 each: a false alarm in one of 60,000 changes of a seed."""
    first, second = plainly(EVERY_KIND, DRAWS), WAYS[way](EVERY_KIND, DRAWS)
    for sample in second:
        EVERY_KIND.check(sample)
    for parameter in EVERY_KIND.parameters[:-1]:
        ours, theirs = ([sample[parameter.name] for sample in samples] for samples in (first, second))
        if parameter.kind == "float":
            p_value = ks_2samp(ours, theirs).pvalue
        else:
            values = sorted({*map(repr, ours), *map(repr, theirs)})
            table = [[list(map(repr, drawn)).count(value) for value in values] for drawn in (ours, theirs)]
            p_value = chi2_contingency(table).pvalue
        assert p_value > 1e-6, parameter.name
    assert {sample["fixed"] for sample in second} == {3.0}
    assert {sample["op"] for sample in second} == {"a", "b", 4}, "what has no weight is not drawn"


def test_the_comparison_can_fail() -> None:
    """Ray's own logarithmic integers, rounded down, and a sixth more of one choice are both told apart."""
    from ray import tune

    rng = np.random.default_rng(4)
    ours = [sample["queries"] for sample in plainly(EVERY_KIND, DRAWS)]
    theirs = [tune.lograndint(1, 9).sample(random_state=rng) for _ in range(DRAWS)]
    values = sorted({*ours, *theirs})
    assert chi2_contingency([[drawn.count(v) for v in values] for drawn in (ours, theirs)]).pvalue < 1e-6
    assert chi2_contingency([[1500, 1500], [1750, 1250]]).pvalue < 1e-6


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("tier", ["narrow", "wide"])
def test_every_point_resolves_and_validates(way: str, tier: str) -> None:
    base = dotted.put(yamlio.loads(packaged.template("train")).data, "dataset.num_classes", 3)
    schemas = {action: packaged.schema(action) for action in ("train", "evaluate", "inference")}
    space = derive(schemas["train"], base, overlays.overlay("deformable_detr"), Choice(tier=tier))
    effective = ExperimentSpec.from_dict(base).to_dict()
    for place, sample in enumerate(WAYS[way](space, 120)):
        spec = effective
        for name, value in space.resolve(sample).items():
            spec = dotted.put(spec, name, value)
        ExperimentSpec.from_dict(spec)
        if place % 30 == 0:
            assert check(spec, schemas) == []


@settings(deadline=None)
@given(place=st.sampled_from(range(len(EVERY_KIND.parameters))), along=st.floats(0.0, 1.0))
def test_cube_and_values_are_inverse(place: int, along: float) -> None:
    parameter = EVERY_KIND.parameters[place]
    value = cube.at(parameter, along)
    assert parameter.problem(value) is None
    again = cube.at(parameter, cube.way(parameter, value))
    assert again == (pytest.approx(value, rel=1e-12) if parameter.kind == "float" else value)
    assert cube.at(parameter, 0.0) != "c"
    assert cube.at(parameter, 1.0) != "c"


def test_cube_gives_each_value_the_share_of_a_draw() -> None:
    """Of the values on a fine grid of the cube: each integer and choice as often as `draw` has it in the long run."""
    op, size, layers = EVERY_KIND["op"], EVERY_KIND["size"], EVERY_KIND["layers"]
    grid = [(place + 0.5) / 8000 for place in range(8000)]
    shares = [cube.at(op, along) for along in grid]
    assert [shares.count(choice) for choice in op.choices] == [5000, 1000, 0, 2000]
    assert [[cube.at(size, along) for along in grid].count(value) for value in (20, 52, 84, 116, 148)] == [1600] * 5
    counts = [[cube.at(layers, along) for along in grid].count(value) for value in range(1, 7)]
    assert all(abs(count - 8000 / 6) <= 1 for count in counts)


def test_generators_are_stable_and_unrelated() -> None:
    assert cube.generator("a", 1, 2).random() == 0.5321318198769751
    assert cube.generator("a", 1, 2).random() != cube.generator("a", 12).random()


def test_distributions_are_those_that_a_trial_asks_for() -> None:
    study = optuna.create_study(sampler=sampler("random", 0, 0, space=EVERY_KIND))
    trial = study.ask()
    suggest(trial, EVERY_KIND)
    assert trial.distributions == distributions(EVERY_KIND)
    assert storable([1, 2]) == "[1, 2]"
