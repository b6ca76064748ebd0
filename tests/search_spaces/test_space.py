import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import dotted
from search_spaces.space import Dropped, Parameter, Rule, SearchSpace, beyond

PARAMETERS = [
    Parameter(name="float", kind="float", low=0.0, high=2.0, default=1.0, origin="schema bounds"),
    Parameter(name="log", kind="float", low=1e-5, high=1e-1, scale="log", default=1e-3),
    Parameter(name="int", kind="int", low=3, high=9, default=4),
    Parameter(name="stepped", kind="int", low=8, high=60, step=8, default=16),
    Parameter(name="logint", kind="int", low=1, high=1000, scale="log", default=10),
    Parameter(name="open", kind="float", low=math.nextafter(0, 1), high=1.0, default=0.5),
    Parameter(name="bool", kind="categorical", choices=(False, True), default=True),
    Parameter(name="words", kind="categorical", choices=("a", "b", None), weights=(1.0, 0.0, 3.0), default="a"),
    Parameter(name="numbers", kind="categorical", choices=(1, 2, 4.0), default=2),
]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal but for the last bits of floats."""
    close = [math.isclose(a[key], b[key], rel_tol=1e-9) if isinstance(a[key], float) else a[key] == b[key] for key in b]
    return a.keys() == b.keys() and all(close)


def coupled() -> SearchSpace:
    """A learning rate, a ratio to it, a drop, two bounds one above the other, and a count below a product."""
    return SearchSpace(
        parameters=(
            Parameter(name="lr", kind="float", low=1e-4, high=5e-3, scale="log", default=2e-4),
            Parameter(name="lr_backbone/lr", kind="float", low=0.1, high=1.0, scale="log", default=0.1),
            Parameter(name="drop", kind="float", low=0.5, high=0.95, default=0.95),
            Parameter(name="min", kind="int", low=100, high=299, default=200),
            Parameter(name="max/left", kind="float", low=0.0, high=1.0, default=0.5),
            Parameter(name="queries", kind="int", low=100, high=900, default=300),
        ),
        rules=(
            Rule(kind="ratio", target="lr_backbone", of=("lr",), coordinates=("lr_backbone/lr",), low=1e-9, high=1e-3),
            Rule(kind="milestone", target="steps", of=("epochs",), coordinates=("drop",), integer=True),
            Rule(kind="above", target="max", of=("min",), coordinates=("max/left",), low=150, high=300, integer=True),
            Rule(kind="below_product", target="select", of=("select", "queries", "classes")),
        ),
        context={"epochs": 10, "select": 300, "classes": 2},
        dropped=(Dropped("workers", "throughput only"),),
        tier="narrow",
    )


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_draws_stay_inside_and_clip_is_the_identity_there(parameter: Parameter) -> None:
    rng = random.Random(1)
    for _ in range(500):
        value = parameter.draw(rng)
        assert parameter.problem(value) is None
        assert parameter.clip(value) == value


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_round_trip_through_json(parameter: Parameter) -> None:
    space = SearchSpace(parameters=(parameter,))
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict(), allow_nan=False))) == space


def test_round_trip_of_rules_context_and_reasons() -> None:
    space = coupled()
    back = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict(), allow_nan=False)))
    assert back == space
    assert back.digest == space.digest


def test_digest_is_of_the_meaning_not_the_wording() -> None:
    space = coupled()
    reworded = replace(space, dropped=(Dropped("workers", "in other words"),))
    assert reworded.digest == space.digest
    wider = replace(space, context={**space.context, "epochs": 20})
    assert wider.digest != space.digest


def test_from_dict_refuses_another_format() -> None:
    with pytest.raises(ValueError, match="format 2 is needed, but this one has 1"):
        SearchSpace.from_dict({**coupled().to_dict(), "format": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low <= high"),
        ({"low": 0.0, "high": math.inf}, "both finite"),
        ({"low": None, "high": 1.0}, "both finite"),
        ({"low": 0.0, "high": 1.0, "scale": "log"}, "low > 0"),
    ],
)
def test_impossible_parameters(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameter(name="x", kind="float", **given)


def test_log_draws_are_uniform_in_the_logarithm() -> None:
    rng = random.Random(0)
    draws = [math.log10(PARAMETERS[1].draw(rng)) for _ in range(4000)]
    # Uniform in [-5, -1]: the mean of 4,000 has sd 4 / sqrt(12 * 4000) = 0.018; 0.1 is over 5 sd, about 1e-7.
    assert abs(sum(draws) / len(draws) + 3.0) < 0.1


def test_weights_are_drawn() -> None:
    rng = random.Random(0)
    draws = [PARAMETERS[7].draw(rng) for _ in range(2000)]
    assert "b" not in draws
    # Binomial(2000, 0.25): sd 19.4; 120 is over 6 sd, about 1e-9.
    assert abs(draws.count("a") - 500) < 120


def test_true_is_not_one() -> None:
    assert PARAMETERS[8].problem(True) is not None
    assert PARAMETERS[6].problem(1) is not None
    assert PARAMETERS[2].problem(True) is not None


@given(st.integers(0, 2**32))
def test_resolve_keeps_every_rule(seed: int) -> None:
    space = coupled()
    values = space.resolve(space.draw(random.Random(seed)))
    assert set(values) == set(space.targets) == {"lr", "lr_backbone", "steps", "min", "max", "queries", "select"}
    assert 1e-9 <= values["lr_backbone"] <= min(1e-3, values["lr"])
    assert values["steps"][0] in range(5, 10)
    assert max(values["min"] + 1, 150) <= values["max"] <= 300
    assert values["select"] < values["queries"] * 2
    assert values["select"] == min(300, values["queries"] * 2 - 1)


@given(st.integers(0, 2**32))
def test_encode_undoes_resolve(seed: int) -> None:
    space = coupled()
    values = space.resolve(space.draw(random.Random(seed)))
    spec: dict = {}
    for name, value in values.items():
        spec = dotted.put(spec, name, value)
    again = space.resolve(space.encode(spec))
    assert same(again, values), (again, values)
    # And the coordinates themselves, where nothing rounds or clips.
    sample = space.encode(spec)
    assert space.encode(spec) == sample
    assert sample["lr"] == values["lr"]


def test_encode_clips_what_lies_outside() -> None:
    space = coupled()
    sample = space.encode({"lr": 1.0, "lr_backbone": 1e-9, "steps": [40], "min": 5, "max": 1000, "queries": 300})
    assert sample == {
        "lr": 5e-3, "lr_backbone/lr": 0.1, "drop": 0.95, "min": 100, "max/left": 1.0, "queries": 300,
    }  # fmt: skip
    space.check(sample)


def test_encode_takes_the_default_for_what_is_missing() -> None:
    assert coupled().encode({})["lr"] == 2e-4


def test_check_names_every_fault() -> None:
    space = coupled()
    sample = {**space.draw(random.Random(0)), "lr": 1.0, "odd": 1}
    del sample["drop"]
    with pytest.raises(ValueError, match=r"`odd` is not searched; `lr` must be a number in .* `drop` is missing"):
        space.resolve(sample)


@pytest.mark.parametrize(
    ("arguments", "edge"),
    [
        ((3, True, True, 1), 4), ((3, False, True, 1), 3), ((3.5, True, True, 1), 4), ((3.5, False, True, 1), 4),
        ((3, True, True, -1), 2), ((3, False, True, -1), 3), ((3.5, True, True, -1), 3), ((3.5, False, True, -1), 3),
        ((0.0, False, False, 1), 0.0), ((0.0, True, False, 1), math.nextafter(0, 1)),
        ((1.0, True, False, -1), math.nextafter(1, 0)),
    ],
)  # fmt: skip
def test_beyond(arguments: tuple, edge: float) -> None:
    value, strict, integer, side = arguments
    assert beyond(value, strict, integer, side=side) == edge


@pytest.mark.parametrize("kind", ["above", "at_least", "below", "at_most"])
@pytest.mark.parametrize("integer", [True, False])
@given(parent=st.integers(21, 79), at=st.floats(0, 1))
def test_fractions_of_what_is_left(kind: str, integer: bool, parent: int, at: float) -> None:
    from search_spaces.space import BACKWARD, FORWARD

    rule = Rule(kind=kind, target="x", of=("p",), coordinates=("x/left",), low=20, high=80, integer=integer)
    value = FORWARD[kind]([at], rule, [parent])
    assert 20 <= value <= 80
    assert {"above": value > parent, "at_least": value >= parent, "below": value < parent, "at_most": value <= parent}[
        kind
    ]
    assert FORWARD[kind](BACKWARD[kind](value, rule, [parent]), rule, [parent]) == pytest.approx(value)
