"""How far a parameter ranges: an overlay's words, else rules of thumb from type, bounds and default. Knows no key.

Schema bounds are a hard clip, never the range by themselves where the default says more: `[0, 0.01]` around a
learning rate of 2e-4 is mostly rates at which training diverges.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from schemas.dialect import Leaf
from search_spaces.space import Parameter, beyond

_BY_FACTOR = re.compile(r"(^|_)(lr|rate|decay|eps|epsilon|lambda|mult|multiplier|coef|weight|wd|gamma)($|_)")
"""Last names of quantities that are compared by ratio: log scale, even where the bounds are 0 and 1."""


class Range(NamedTuple):
    low: float
    high: float
    scale: str
    origin: str


def parse_range(name: str, given: Any) -> Range:
    """A user's `low:high`, `low:high:log` or `[low, high, log]`."""
    parts = given.split(":") if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    try:
        low, high = float(parts[0]), float(parts[1])
        scale = str(parts[2]).strip() if len(parts) > 2 else "linear"
    except (IndexError, ValueError, TypeError):
        low, high, scale = math.nan, math.nan, ""
    if len(parts) > 3 or scale not in ("linear", "log") or not low < high or not math.isfinite(high - low):
        raise ValueError(f"a range has the form low:high or low:high:log, low below high, but `{name}` has {given!r}.")
    if scale == "log" and low <= 0:
        raise ValueError(f"a log range needs a low end above 0, but `{name}` has {given!r}.")
    return Range(low, high, scale, "your range")


def parameter(leaf: Leaf, entry: Mapping[str, Any], centre: Any, given: Range | None) -> Parameter | str:
    """The dimension of a spec key, or why there is none.

    entry: the overlay's words with its case settled; centre: the effective value; given: the user's range.
    """
    choices = _choices(leaf, centre)
    if choices is not None and given is None:
        if not choices:
            return "its bounds leave nothing"
        if len(choices) == 1:
            return f"only one value is possible: {choices[0]}"
        return Parameter(
            name=leaf.name,
            kind="categorical",
            choices=choices,
            weights=_weights(leaf, choices),
            origin="schema choices",
        )
    if leaf.kind not in ("int", "float"):
        return {"string": "free text", "list": "a list, and no overlay says how to draw one"}.get(
            leaf.kind, f"a {leaf.kind}, which has no range"
        )
    found = (
        given or _told(entry, _number(centre), _number(leaf.default)) or _guessed(leaf, _within(_number(centre), leaf))
    )
    if isinstance(found, str):
        return found
    return _numeric(leaf, found, given is not None)


def coordinate(name: str, entry: Mapping[str, Any], given: Range | None) -> Parameter:
    """A coordinate's dimension; its bounds are the overlay's or the user's own."""
    low, high = entry["range"]
    found = given or Range(float(low), float(high), entry.get("scale", "linear"), "overlay")
    return Parameter(
        name=name,
        kind="float",
        low=found.low,
        high=found.high,
        scale=_scale(found),
        default=found.low,
        origin=found.origin,
    )


def _numeric(leaf: Leaf, found: Range, by_user: bool) -> Parameter | str:
    """The range clipped to the schema's bounds, on the grid that the leaf's rules state."""
    integer = leaf.kind == "int"
    low, high = (round(found.low), round(found.high)) if integer else (found.low, found.high)
    clipped: list[str] = []
    if leaf.low is not None and (edge := beyond(leaf.low, leaf.open_low, integer)) > low:
        low, clipped = edge, [*clipped, "low"]
    if leaf.high is not None and (edge := beyond(leaf.high, leaf.open_high, integer, side=-1)) < high:
        high, clipped = edge, [*clipped, "high"]
    if by_user and clipped:
        raise ValueError(
            f"a range must stay inside the schema's bounds, but `{leaf.name}` must be {leaf.bounds()} and the range is "
            f"{found.low:g}:{found.high:g}."
        )
    step = leaf.multiple or 1
    if integer:
        low, high = -(-low // step) * step, high // step * step
        low, high = _around_excluded(leaf, low, high, step)
    elif low in leaf.excluded or high in leaf.excluded:
        low, high = (math.nextafter(end, towards) if end in leaf.excluded else end
                     for end, towards in ((low, math.inf), (high, -math.inf)))  # fmt: skip
    if low >= high:
        return f"only one value is possible: {low:g}" if low == high else f"its bounds leave nothing ({leaf.bounds()})"
    scale = "linear" if step > 1 or low <= 0 else _scale(found)
    origin = found.origin + (", clipped to the schema" if clipped and found.origin != "schema bounds" else "")
    return Parameter(
        name=leaf.name, kind="int" if integer else "float", low=low, high=high, scale=scale, step=step, default=low,
        origin=origin,
    )  # fmt: skip


def _around_excluded(leaf: Leaf, low: float, high: float, step: int) -> tuple[float, float]:
    """The longer side of an integer range around the values that `!=` rules out."""
    for value in sorted(leaf.excluded):
        if low <= value <= high:
            below, above = (low, value - step), (value + step, high)
            low, high = below if below[1] - below[0] > above[1] - above[0] else above
    return low, high


def _told(entry: Mapping[str, Any], centre: float | None, default: float | None) -> Range | None:
    """What the overlay says: `range` as it stands, `around` as multiples of the effective value."""
    scale = entry.get("scale", "linear")
    if "range" in entry:
        low, high = entry["range"]
        return Range(float(low), float(high), scale, "overlay")
    middle = centre if centre is not None and centre > 0 else default
    if "around" not in entry or middle is None or middle <= 0:
        return None
    low, high = entry["around"]
    return Range(_tidy(middle * low), _tidy(middle * high), scale, f"overlay: {low:g} to {high:g} times {middle:g}")


def _guessed(leaf: Leaf, centre: float | None) -> Range | str:
    """Rules of thumb for a number of which only type, bounds and default are known."""
    low, high = leaf.low, leaf.high
    if centre is None or centre <= 0 or (low is not None and low < 0):
        if low is None or high is None:
            return "unbounded, and no default that tells its size: give it a range"
        wide = leaf.kind == "int" and low > 0 and high >= 50 * low
        return Range(low, high, "log" if wide else "linear", "schema bounds")
    if leaf.kind == "int":
        return Range(max(1, centre // 2), max(2, centre * 2), "linear", f"half to twice {centre:g}")
    by_factor = _BY_FACTOR.search(leaf.name.rpartition(".")[2]) is not None
    if 0.9 <= centre < 1 and (high is None or high <= 1):
        rest = 1 - centre
        return Range(_tidy(1 - 3 * rest), _tidy(1 - rest / 3), "linear", f"1 minus a third to three times {rest:.3g}")
    if not by_factor and low is not None and high is not None and (high <= 1 or high <= 10 * centre):
        return Range(low, high, "linear", "schema bounds")
    return Range(_tidy(centre / 10), _tidy(centre * 10), "log", f"a tenth to ten times {centre:g}")


def _choices(leaf: Leaf, centre: Any) -> tuple[Any, ...] | None:
    """The values of a leaf that has a list of them, those inside its bounds."""
    if leaf.kind == "bool" and leaf.choices is None:
        return (False, True)
    if leaf.choices is not None and leaf.kind not in ("list", "collection"):
        return tuple(choice for choice in leaf.choices if choice is not None and _inside(choice, leaf))
    if leaf.power is not None and leaf.kind == "int":
        top = leaf.high if leaf.high is not None else 4 * (_number(centre) or leaf.power)
        powers = [leaf.power**exponent for exponent in range(1, 64) if leaf.power**exponent <= top]
        return tuple(each for each in powers if _inside(each, leaf))
    if leaf.kind in ("int", "float") and leaf.low is not None and leaf.high is not None and leaf.low > leaf.high:
        return ()
    return None


def _within(value: float | None, leaf: Leaf) -> float | None:
    """The nearest number inside the bounds: a default may lie outside."""
    if value is None:
        return None
    low = value if leaf.low is None else max(value, leaf.low)
    return low if leaf.high is None else min(low, leaf.high)


def _inside(value: Any, leaf: Leaf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low = leaf.low is None or value > leaf.low or (value == leaf.low and not leaf.open_low)
    high = leaf.high is None or value < leaf.high or (value == leaf.high and not leaf.open_high)
    grid = leaf.multiple is None or value % leaf.multiple == 0
    grid = grid and (leaf.power is None or value in [leaf.power**exponent for exponent in range(1, 64)])
    return low and high and grid and value not in leaf.excluded


def _weights(leaf: Leaf, choices: tuple[Any, ...]) -> tuple[float, ...] | None:
    if leaf.weights is None or leaf.choices is None:
        return None
    by_choice = dict(zip(map(repr, leaf.choices), leaf.weights, strict=True))
    weights = tuple(by_choice[repr(choice)] for choice in choices)
    return weights if sum(weights) > 0 else None


def _tidy(value: float) -> float:
    """Without the last bits, which a multiplication leaves behind (2e-5 / 10)."""
    return float(f"{value:.12g}")


def _scale(found: Range) -> Literal["linear", "log"]:
    return "log" if found.scale == "log" else "linear"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
