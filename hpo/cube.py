"""A search space as the unit cube: how far along its range a value stands, and the value that stands there.

The way along a range is the distribution function of a random draw, so that a uniform number in [0, 1] becomes a draw
that weighs choices, scales and grids exactly as `Parameter.draw` does. Knows no searcher, no study and no Ray.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces.space import Parameter, SearchSpace


def generator(*words: object) -> random.Random:
    """A generator of its own for these words: the same in every process, and unrelated to that of other words."""
    return random.Random("/".join(map(str, words)))


def at(parameter: "Parameter", way: float) -> Any:
    """The value `way` in [0, 1] along the parameter's range."""
    if parameter.choices:
        ends = _ends(parameter)
        place = min(bisect_right(ends, way * ends[-1]), len(ends) - 1)
        while place and ends[place] == ends[place - 1]:  # the end of the range belongs to the last choice with a weight
            place -= 1
        return parameter.choices[place]
    low, high = _edges(parameter)
    inside = low + way * (high - low)
    if parameter.kind == "int" and parameter.scale == "linear":
        assert parameter.low is not None
        places = round((high - low) / parameter.step)
        return int(parameter.low) + parameter.step * min(int(way * places), places - 1)
    return parameter.clip(math.exp(inside) if parameter.scale == "log" else inside)


def way(parameter: "Parameter", value: Any) -> float:
    """How far along the range a value stands: for choices and integers the middle of their share. Undone by `at`."""
    if parameter.choices:
        same = [value == choice and type(value) is type(choice) for choice in parameter.choices]
        place, ends = same.index(True), [0.0, *_ends(parameter)]
        return (ends[place] + ends[place + 1]) / 2 / ends[-1]
    low, high = _edges(parameter)
    if high <= low:
        return 0.5
    scaled = math.log(value) if parameter.scale == "log" else float(value)
    return min(max((scaled - low) / (high - low), 0.0), 1.0)


def point(space: "SearchSpace", ways: Sequence[float]) -> dict[str, Any]:
    """The sample at a point of the cube."""
    return {parameter.name: at(parameter, each) for parameter, each in zip(space.parameters, ways, strict=True)}


def ways(space: "SearchSpace", sample: dict[str, Any]) -> list[float]:
    """The point of the cube at which a sample stands."""
    return [way(parameter, sample[parameter.name]) for parameter in space.parameters]


def _ends(parameter: "Parameter") -> list[float]:
    """Where the share of each choice ends, not normalised."""
    return list(accumulate(parameter.weights or [1.0] * len(parameter.choices)))


def _edges(parameter: "Parameter") -> tuple[float, float]:
    """The range on its scale. An integer has the share that rounding gives it, hence half a step on either side."""
    assert parameter.low is not None
    assert parameter.high is not None
    low, high = parameter.low, parameter.high
    if parameter.kind == "int":
        half = parameter.step / 2
        top = low + (high - low) // parameter.step * parameter.step
        low, high = (low - half, top + half) if parameter.scale == "linear" else (low - 0.5, high + 0.5)
    return (math.log(low), math.log(high)) if parameter.scale == "log" else (low, high)
