"""Population-based training: who copies whom, and that explored values stay inside the space and leave shapes alone."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.population import Population, check_space, fixed
from hpo.schedulers import GO, check, make
from model.metrics import VAL_MAP50, Metric
from schemas import packaged, yamlio
from search_spaces import overlays
from search_spaces.derive import TIERS, Choice, derive
from search_spaces.space import Parameter, Rule, SearchSpace

RULE = Population(metric=VAL_MAP50, epochs=10, seed=4)
SPACE = SearchSpace(
    parameters=(
        Parameter(name="train.optim.lr", kind="float", low=1e-5, high=1e-2, scale="log", default=1e-4),
        Parameter(name="model.dropout_ratio", kind="float", low=0.0, high=0.4, default=0.0),
        Parameter(name="train.optim.lr_step_size", kind="int", low=2, high=20, step=3, default=5),
        Parameter(name="train.optim.lr_scheduler", kind="categorical", choices=("MultiStep", "StepLR")),
        Parameter(name="model.dec_layers", kind="int", low=1, high=6, default=6),
        Parameter(name="train.optim.optimizer", kind="categorical", choices=("AdamW", "SGD"), default="AdamW"),
        Parameter(name="queries/left", kind="float", low=0.0, high=1.0, default=0.5),
    ),
    rules=(
        Rule(kind="above", target="model.num_queries", of=("model.dec_layers",), coordinates=("queries/left",),
             low=10, high=900, integer=True),
    ),
)  # fmt: skip
FREE = ("train.optim.lr", "model.dropout_ratio", "train.optim.lr_step_size", "train.optim.lr_scheduler")


def level(values: list[float], epochs: int) -> dict[int, dict[int, float]]:
    return {number: dict.fromkeys(range(1, epochs + 1), value) for number, value in enumerate(values)}


def test_worst_quarter_copies_the_best_quarter() -> None:
    curves = level([0.5, 0.8, 0.1, 0.4, 0.7, 0.2, 0.6, 0.3], 2)
    verdicts = [RULE.judge(number, curves) for number in range(8)]
    assert [verdict.action for verdict in verdicts] == ["go", "go", "exploit", "go", "go", "exploit", "go", "go"]
    assert {verdicts[2].parent, verdicts[5].parent} <= {1, 4}
    assert verdicts == [Population(metric=VAL_MAP50, epochs=10, seed=4).judge(number, curves) for number in range(8)]
    parents = {Population(metric=VAL_MAP50, epochs=10, seed=seed).judge(2, curves).parent for seed in range(20)}
    assert parents == {1, 4}


def test_judged_every_fifth_of_the_epochs_and_never_after_the_last() -> None:
    values = [0.5, 0.8, 0.1, 0.4]
    actions = [RULE.judge(2, level(values, epochs)).action for epochs in range(1, 11)]
    assert actions == ["go", "exploit"] * 4 + ["go", "go"]


def test_default_is_copied_but_copies_nobody() -> None:
    assert RULE.judge(0, level([0.1, 0.8, 0.7, 0.4], 2)) == GO
    assert RULE.judge(3, level([0.9, 0.8, 0.7, 0.4], 2)).parent == 0


def test_small_or_equal_population_is_left_alone() -> None:
    assert RULE.judge(2, level([0.5, 0.8, 0.1], 2)) == GO
    assert RULE.judge(2, level([0.5] * 8, 2)) == GO


def test_parent_is_at_least_as_far_and_not_much_further() -> None:
    curves = level([0.5, 0.8, 0.1, 0.4], 2)
    curves[1] = dict.fromkeys(range(1, 5), 0.8)
    assert RULE.judge(2, curves).parent == 1
    for end in (5, 9, 10):
        curves[1] = dict.fromkeys(range(1, end + 1), 0.8)
        assert RULE.judge(2, curves) == GO
    late = {n: dict.fromkeys(range(1, 9), v) for n, v in enumerate([0.5, 0.8, 0.1, 0.4])}
    late[1] = dict.fromkeys(range(1, 11), 0.8)
    assert RULE.judge(2, late) == GO, "a parent that is done has no epochs to go on with"


def test_minimised_metric() -> None:
    judge = Population(metric=Metric("val_loss", "minimize"), epochs=10, seed=4)
    assert judge.judge(1, level([0.5, 0.8, 0.1, 0.4], 2)).parent == 2


def test_what_stays_as_it_is_and_why() -> None:
    held = fixed(SPACE)
    assert set(held) == {"model.dec_layers", "train.optim.optimizer", "queries/left"}
    assert "one shape" in held["queries/left"], "a coordinate is what it sets"
    assert "one optimizer" in held["train.optim.optimizer"]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), place=st.integers(0, 2**32))
def test_mutation_stays_inside_and_changes_what_may_change(seed: int, place: int) -> None:
    parent = SPACE.draw(random.Random(place))
    child = RULE.mutate(3, parent, SPACE, random.Random(seed))
    SPACE.check(child)
    SPACE.resolve(child)
    assert {name for name in child if child[name] != parent[name]} <= set(FREE)
    assert child == RULE.mutate(3, parent, SPACE, random.Random(seed))


def test_perturbed_by_a_fifth_or_drawn_anew() -> None:
    """2,000 mutations: a quarter drawn anew, sd 0.0097, so 0.05 is over 5 sd, about 3e-7."""
    parent = {**SPACE.draw(random.Random(1)), "train.optim.lr": 1e-4}
    rates = [RULE.mutate(3, parent, SPACE, RULE.generator(3, place))["train.optim.lr"] for place in range(2000)]
    kinds = [pytest.approx(0.8e-4) == rate or pytest.approx(1.2e-4) == rate for rate in rates]
    assert abs(sum(kinds) / 2000 - 0.75) < 0.05
    at_the_edge = [RULE.mutate(3, {**parent, "train.optim.lr": 1e-2}, SPACE, random.Random(p)) for p in range(200)]
    assert max(sample["train.optim.lr"] for sample in at_the_edge) == 1e-2


def test_integers_move_by_a_place_at_least_and_zero_gets_away() -> None:
    parent = {**SPACE.draw(random.Random(1)), "train.optim.lr_step_size": 5, "model.dropout_ratio": 0.0}
    children = [RULE.mutate(3, parent, SPACE, random.Random(place)) for place in range(300)]
    assert {2, 8} <= {child["train.optim.lr_step_size"] for child in children}
    assert sum(child["train.optim.lr_step_size"] == 5 for child in children) < 50
    assert all(child["model.dropout_ratio"] > 0.0 for child in children)


@pytest.mark.parametrize("tier", TIERS)
def test_spaces_of_the_detector(tier: str) -> None:
    space = derive(
        packaged.schema("train"),
        yamlio.loads(packaged.template("train")).data,
        overlays.overlay("deformable_detr"),
        Choice(tier=tier),
    )
    held = fixed(space)
    check("pbt", space=space)
    assert "train.optim.lr" not in held
    for name in ("model.enc_layers", "model.dec_layers", "model.num_queries", "dataset.batch_size"):
        assert name in held or name not in {parameter.name for parameter in space.parameters}
    assert not [name for name in held if "not known" in held[name]], "every searched key is decided"


def test_space_without_anything_to_change_is_refused() -> None:
    shapes = SearchSpace(parameters=tuple(p for p in SPACE.parameters if p.name == "model.dec_layers"))
    with pytest.raises(ValueError, match=r"there is none \(`model.dec_layers`: it shapes the network"):
        check("pbt", space=shapes)
    check_space(SPACE)


def test_other_rules_do_not_mutate() -> None:
    sample: dict[str, Any] = {}
    with pytest.raises(ValueError, match="only population-based training"):
        make("asha", epochs=10, metric=VAL_MAP50, seed=0).mutate(1, sample, SPACE, random.Random(0))
