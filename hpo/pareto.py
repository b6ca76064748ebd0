"""The trade-offs among several objectives. Knows numbers and directions; knows no trial."""

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["maximize", "minimize"]


def pareto(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Indices of the points that no other one dominates: none is at least as good in every objective and better in one.

    Equal points are all kept. A point with a value that is not finite is measured in part only: it neither belongs to
    the set nor keeps another out of it.
    """
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    gains = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]
    whole = [index for index, gain in enumerate(gains) if all(map(math.isfinite, gain))]
    return [index for index in whole if not any(_dominates(gains[other], gains[index]) for other in whole)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
