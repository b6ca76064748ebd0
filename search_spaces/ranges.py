"""How far a parameter ranges: an overlay's words, else rules of thumb from type, bounds and default. Knows no key.

Schema bounds are a hard clip, never the range by themselves where the default says more: `[0, 0.01]` around a
learning rate of 2e-4 is mostly rates at which training diverges. Each end of a range has its own origin.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from schemas.leaf import Leaf, powers
from search_spaces.space import Parameter, Rule, beyond, is_number

SCHEMA, USER, OVERLAY, RULE = "schema", "user", "overlay", "default-centred rule"
_BY_FACTOR = re.compile(r"(^|_)(lr|rate|decay|eps|epsilon|lambda|mult|multiplier|coef|weight|wd|gamma)($|_)")
"""Last names of quantities that are compared by ratio: log scale, even where the bounds are 0 and 1."""


class Range(NamedTuple):
    low: float
    high: float
    scale: str
    origin: str


class End(NamedTuple):
    """One end of a range."""

    value: float
    origin: str


class Limits(NamedTuple):
    """What else than schema and overlay bounds a parameter: the data, or other values of the spec."""

    low: End | None = None
    high: End | None = None


class Made(NamedTuple):
    """The dimensions of one spec key, and the rule that makes its value of them where that takes one."""

    parameters: Sequence[Parameter]
    rule: Rule | None = None


def parse_range(name: str, given: Any) -> Range:
    """A user's `low:high`, `low:high:log` or `[low, high, log]`."""
    parts = given.split(":") if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    try:
        low, high = float(parts[0]), float(parts[1])
        scale = str(parts[2]).strip() if len(parts) > 2 else "linear"
    except (IndexError, ValueError, TypeError, OverflowError):
        low, high, scale = math.nan, math.nan, ""
    if len(parts) > 3 or scale not in ("linear", "log") or not low < high or not math.isfinite(high - low):
        raise ValueError(f"a range has the form low:high or low:high:log, low below high, but `{name}` has {given!r}.")
    if scale == "log" and low <= 0:
        raise ValueError(f"a log range needs a low end above 0, but `{name}` has {given!r}.")
    return Range(low, high, scale, USER)


def parameter(
    leaf: Leaf, entry: Mapping[str, Any], centre: Any, given: Range | None, limits: Limits
) -> Parameter | str:
    """The dimension of a spec key, or why there is none.

    entry: the overlay's words with its case settled; centre: the effective value; given: the user's range, which
    stands above `limits`.
    """
    limits = Limits() if given else limits
    if (listed := _choices(leaf, centre)) is not None:
        return _from_choices(leaf, listed, given, limits)
    if leaf.kind not in ("int", "float"):
        words = {"string": "free text", "list": "a list, and no overlay says how to draw one"}
        reason = words.get(leaf.kind, f"a {leaf.kind}, which has no range")
        if given:
            raise ValueError(f"a range needs a number, but `{leaf.name}` is {reason}.")
        return reason
    if leaf.low is not None and leaf.high is not None and leaf.low > leaf.high:
        return f"its bounds leave nothing ({leaf.bounds()})"
    middle = _within(_number(centre), leaf)
    found = given or _told(entry, _number(centre), _number(leaf.default)) or _guessed(leaf, middle, entry, limits)
    if isinstance(found, str):
        return found
    return _numeric(leaf, found, entry, limits)


def coordinate(name: str, entry: Mapping[str, Any], given: Range | None) -> Parameter:
    """A coordinate's dimension; its bounds are the overlay's or the user's own."""
    low, high = entry["range"]
    found = given or Range(float(low), float(high), entry.get("scale", "linear"), OVERLAY)
    return Parameter(
        name=name,
        kind="float",
        low=found.low,
        high=found.high,
        scale=_scale(found),
        default=found.low,
        origin=found.origin,
    )


def origin_text(low: str, high: str) -> str:
    return low if low == high else f"low: {low}; high: {high}"


def _from_choices(leaf: Leaf, choices: tuple[Any, ...], given: Range | None, limits: Limits) -> Parameter | str:
    """A list of values, those in the user's range and within the limits; numbers in their order."""
    numeric = bool(choices) and all(map(is_number, choices))
    low, high, origin = -math.inf, math.inf, SCHEMA
    if given and not numeric:
        raise ValueError(f"a range needs a number, but `{leaf.name}` is {leaf.bounds() or 'true or false'}.")
    if given:
        low, high, origin = given.low, given.high, USER
    elif numeric:
        low, high = (end.value if end else none for end, none in zip(limits, (low, high), strict=True))
        origin = next((end.origin for end in limits if end), SCHEMA)
    kept = tuple(choice for choice in choices if not numeric or low <= choice <= high)
    if len(kept) < 2:
        alone = f"only one value is possible: {kept[0]}" if kept else "its bounds leave nothing"
        return alone if len(kept) == len(choices) else f"{alone} ({origin})"
    return Parameter(
        name=leaf.name,
        kind="categorical",
        choices=kept,
        weights=_weights(leaf, kept),
        default=kept[0],
        origin=f"{SCHEMA} choices" if len(kept) == len(choices) else f"{SCHEMA} choices, those of {origin}",
    )


def _numeric(leaf: Leaf, found: Range, entry: Mapping[str, Any], limits: Limits) -> Parameter | str:
    """The range clipped to the schema's bounds and the limits, on the grid that the leaf's rules state."""
    integer = leaf.kind == "int"
    low, high = _clipped(leaf, found, limits)
    step = leaf.multiple or 1
    ends = (low.value, high.value)
    if integer:
        ends = (-(-round(ends[0]) // step) * step, round(ends[1]) // step * step)
    ends = _around_excluded(leaf, *ends, step)
    if ends[0] > ends[1] or (not integer and ends[0] == ends[1]):
        tight = next((end for end in (high, low) if end.origin not in (SCHEMA, found.origin)), None)
        if tight is not None:
            reach = "out of reach of the data" if tight.origin.startswith("data") else "out of reach"
            return f"{reach}: {tight.origin}, and the range would be {found.low:g} to {found.high:g}"
        return f"its bounds leave nothing ({leaf.bounds()})" if ends[0] > ends[1] else _alone(ends[0])
    power = leaf.power or entry.get("powers")
    origin = origin_text(low.origin, high.origin)
    if power:
        # A schema's powers begin with the exponent 1; a batch of one image is one, too.
        fitting = tuple(each for each in [*([] if leaf.power else [1]), *powers(power)] if ends[0] <= each <= ends[1])
        if len(fitting) < 2:
            return _alone(fitting[0]) if fitting else f"no power of {power} lies between {ends[0]:g} and {ends[1]:g}"
        words = f"powers of {power}; {origin}"
        return Parameter(name=leaf.name, kind="categorical", choices=fitting, default=fitting[0], origin=words)
    if ends[0] == ends[1]:
        return _alone(ends[0])
    scale = "linear" if step > 1 or ends[0] <= 0 else _scale(found)
    return Parameter(
        name=leaf.name, kind="int" if integer else "float", low=ends[0], high=ends[1], scale=scale, step=step,
        default=ends[0], origin=origin,
    )  # fmt: skip


def _clipped(leaf: Leaf, found: Range, limits: Limits) -> tuple[End, End]:
    """Both ends, each with the origin of what bounds it. ValueError where a user's range leaves the schema's bounds."""
    integer = leaf.kind == "int"
    low, high = End(found.low, found.origin), End(found.high, found.origin)
    if limits.low is not None and limits.low.value > low.value:
        low = limits.low
        if low.value >= high.value:  # the data ask for more than the range offers
            high = End(2 * low.value, low.origin)
    if limits.high is not None and limits.high.value < high.value:
        high = limits.high
    clipped = False
    if leaf.low is not None and (edge := beyond(leaf.low, leaf.open_low, integer)) > low.value:
        low, clipped = End(edge, SCHEMA), True
    if leaf.high is not None and (edge := beyond(leaf.high, leaf.open_high, integer, side=-1)) < high.value:
        high, clipped = End(edge, SCHEMA), True
    if clipped and found.origin == USER:
        raise ValueError(
            f"a range must stay inside the schema's bounds, but `{leaf.name}` must be {leaf.bounds()} and the range is "
            f"{found.low:g}:{found.high:g}."
        )
    if integer and low.origin != SCHEMA and limits.low is low:
        low = End(math.ceil(low.value), low.origin)
    if integer and limits.high is high:
        high = End(math.floor(high.value), high.origin)
    return low, high


def _around_excluded(leaf: Leaf, low: float, high: float, step: int) -> tuple[float, float]:
    """The longer side of a range around the values that `!=` rules out."""
    for value in sorted(leaf.excluded):
        if low <= value <= high:
            whole = leaf.kind == "int"
            top = int(value) - step if whole else math.nextafter(value, -math.inf)
            bottom = int(value) + step if whole else math.nextafter(value, math.inf)
            low, high = (low, top) if top - low > high - bottom else (bottom, high)
    return low, high


def _told(entry: Mapping[str, Any], centre: float | None, default: float | None) -> Range | None:
    """What the overlay says: `range` as it stands, `around` as multiples of the effective value."""
    scale = entry.get("scale", "linear")
    if "range" in entry:
        low, high = entry["range"]
        return Range(float(low), float(high), scale, OVERLAY)
    middle = centre if centre is not None and centre > 0 else default
    if "around" not in entry or middle is None or middle <= 0:
        return None
    low, high = entry["around"]
    return Range(_tidy(middle * low), _tidy(middle * high), scale, f"{OVERLAY}: {low:g} to {high:g} times {middle:g}")


def _guessed(leaf: Leaf, centre: float | None, entry: Mapping[str, Any], limits: Limits) -> Range | str:
    """Rules of thumb for a number of which only type, bounds and default are known."""
    low, high = leaf.low, leaf.high
    if high is None and limits.high is not None:
        high = limits.high.value
    if centre is None or centre <= 0 or (low is not None and low < 0):
        if low is None or high is None:
            return "unbounded, and no default that tells its size: give it a range"
        wide = leaf.kind == "int" and low > 0 and high >= 50 * low
        return Range(low, high, "log" if wide else "linear", SCHEMA)
    if leaf.power:
        return Range(centre / 8, centre * 8, "log", f"{RULE}: an eighth to eight times {centre:g}")
    if leaf.kind == "int":
        return Range(max(1, centre // 2), max(2, centre * 2), "linear", f"{RULE}: half to twice {centre:g}")
    by_factor = _BY_FACTOR.search(leaf.name.rpartition(".")[2]) is not None or entry.get("scale") == "log"
    if 0.9 <= centre < 1 and (high is None or high <= 1):
        rest = 1 - centre
        words = f"{RULE}: 1 minus a third to three times {rest:.3g}"
        return Range(_tidy(1 - 3 * rest), _tidy(1 - rest / 3), "linear", words)
    if not by_factor and low is not None and high is not None and (high <= 1 or high <= 10 * centre):
        return Range(low, high, "linear", SCHEMA)
    return Range(_tidy(centre / 10), _tidy(centre * 10), "log", f"{RULE}: a tenth to ten times {centre:g}")


def _choices(leaf: Leaf, centre: Any) -> tuple[Any, ...] | None:
    """The values of a leaf that has a list of them, those that its bounds and rules allow; numbers in their order."""
    parts = [_choices(each, centre) for each in leaf.alternatives]
    if parts and None not in parts:  # true, false or one of some words
        return _spelled_once([choice for part in parts for choice in part or ()], centre)
    if leaf.kind == "bool" and leaf.choices is None:
        return (False, True)
    if leaf.choices is None or leaf.kind in ("list", "collection"):
        return None
    allowed = [choice for choice in leaf.choices if choice is not None and leaf.problem(choice) is None]
    if leaf.kind in ("int", "float", "ordered") and all(map(is_number, allowed)):
        return tuple(sorted(set(allowed)))
    return _spelled_once(allowed, centre)


def _spelled_once(choices: Sequence[Any], centre: Any) -> tuple[Any, ...]:
    """Names that differ by case and underscores only are one choice (`gcvit_tiny`, `gc_vit_tiny`): counted twice it
    would be drawn twice as often. The effective value's spelling stays, else the first."""
    kept: dict[str, Any] = {}
    for choice in choices:
        plain = choice.lower().replace("_", "") if isinstance(choice, str) else repr(choice)
        if plain not in kept or choice == centre:
            kept[plain] = choice
    return tuple(kept.values())


def _within(value: float | None, leaf: Leaf) -> float | None:
    """The nearest number inside the bounds: a default may lie outside."""
    if value is None:
        return None
    low = value if leaf.low is None else max(value, leaf.low)
    return low if leaf.high is None else min(low, leaf.high)


def _weights(leaf: Leaf, choices: tuple[Any, ...]) -> tuple[float, ...] | None:
    if leaf.weights is None or leaf.choices is None:
        return None
    by_choice = dict(zip(map(repr, leaf.choices), leaf.weights, strict=True))
    weights = tuple(by_choice[repr(choice)] for choice in choices)
    return weights if sum(weights) > 0 else None


def _alone(value: float) -> str:
    return f"only one value is possible: {value:g}"


def _tidy(value: float) -> float:
    """Without the last bits, which a multiplication leaves behind (2e-5 / 10)."""
    return float(f"{value:.12g}")


def _scale(found: Range) -> Literal["linear", "log"]:
    return "log" if found.scale == "log" else "linear"


def _number(value: Any) -> float | None:
    return value if is_number(value) and math.isfinite(value) else None
