"""Where feature levels lie in the flattened tokens. Knows no features."""

from itertools import accumulate
from typing import NamedTuple


class Levels(NamedTuple):
    """Python ints, so that nothing waits for a device."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width of each level, in cells of that level."""
    starts: tuple[int, ...]
    """First token of each level."""

    @classmethod
    def of(cls, sizes: tuple[tuple[int, int], ...]) -> "Levels":
        areas = [height * width for height, width in sizes]
        return cls(sizes, tuple(accumulate(areas, initial=0))[:-1])
