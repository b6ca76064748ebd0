"""Names of algorithms, and the set of trade-offs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo import schedulers, searchers
from hpo.algorithms import ALGORITHMS, REFUSED, resolve
from hpo.pareto import Direction, pareto

TAO = ("bayesian", "b", "bfbo", "hyperband", "h", "hyperband_es", "hes", "asha", "bohb", "dehb", "pbt", "llm", "hybrid", "autoresearch")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_is_made_of_parts_that_exist(name: str) -> None:
    searcher, scheduler = resolve(name)
    searchers.check(searcher)
    schedulers.check(scheduler)


@pytest.mark.parametrize("name", TAO)
def test_every_spelling_of_tao_is_known(name: str) -> None:
    assert (name in ALGORITHMS) != (name in REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_built_in_is_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(ValueError, match=rf"but is '{name}': .*; use \w+") as caught:
        resolve(name)
    assert str(caught.value).split("; use ")[1].split(",")[0].strip(".").split(" ")[0] in ALGORITHMS


def test_spellings() -> None:
    assert resolve("Bayesian") == ("gp", "none")
    assert resolve("BOHB") == ("bohb", "hyperband")
    with pytest.raises(ValueError, match=r"must be one of auto, .*pbt, but is 'genetic'"):
        resolve("genetic")


def test_pareto_by_hand() -> None:
    points = [(0.5, 10.0), (0.6, 12.0), (0.55, 13.0), (0.6, 12.0), (0.4, 10.0), (0.7, math.inf), (math.nan, 1.0)]
    assert pareto(points, ["maximize", "minimize"]) == [0, 1, 3]
    assert pareto([], ["maximize"]) == []
    assert pareto([(1.0,), (3.0,), (3.0,)], ["maximize"]) == [1, 2]


@settings(deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), max_size=25),
    directions=st.tuples(*[st.sampled_from(["maximize", "minimize"])] * 3),
)
def test_pareto_as_defined(points: list[tuple[float, float, float]], directions: tuple[Direction, ...]) -> None:
    def worse_or_equal(a: float, b: float, direction: str) -> bool:
        return a <= b if direction == "maximize" else a >= b

    kept = set(pareto(points, directions))
    for index, point in enumerate(points):
        beaten = [
            other
            for other in points
            if other != point and all(worse_or_equal(a, b, d) for a, b, d in zip(point, other, directions, strict=True))
        ]
        assert (index in kept) == (not beaten)
