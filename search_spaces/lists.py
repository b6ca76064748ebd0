"""Lists as a box: rising numbers as fractions of what is left, and lists whose items each have a range of their own.

The words of an overlay:
  rising: 3 | same   so many rising numbers, or as many as the effective value has, within
  range: [low, high] as it stands, or, with `times: key`, as fractions of that key's value; whole numbers are all
                     different, and multiples of `multiple` where that is given
  items: [[low, high], ...]   one range for each item, whatever the others are
"""

import math
from collections.abc import Mapping
from typing import Any

from schemas.dialect import Leaf
from search_spaces.constraints import View, number
from search_spaces.ranges import OVERLAY, SCHEMA, USER, Made, Range, origin_text
from search_spaces.space import Parameter, Rule, beyond


def described(entry: Mapping[str, Any]) -> bool:
    """Whether an overlay's words are those of a list."""
    return "rising" in entry or "items" in entry


def of_list(leaf: Leaf, entry: Mapping[str, Any], given: Range | None, view: View) -> Made | str:
    """The coordinates of a list and the rule that makes it of them, or why there are none. ValueError for a user's
    range that cannot be."""
    if "items" in entry:
        return _items(leaf, entry, given, view)
    value = view.value(leaf.name)
    length = len(value) if entry["rising"] == "same" and isinstance(value, list | tuple) else entry["rising"]
    if not isinstance(length, int) or length < 1:
        return "a list, and no value that tells how long"
    rule = _rising(leaf, entry, given)
    coordinates = tuple(f"{leaf.name}/{place}" for place in range(1, length + 1))
    if rule.integer and (room := _room(rule, view)) is not None and room < length:
        return f"no room for {length} different values" + (f" within {_words(rule, view)}" if rule.of else "")
    origin = USER if given else OVERLAY
    parameters = [
        Parameter(name=name, kind="float", low=0.0, high=1.0, default=0.5, origin=f"fraction of what is left; {origin}")
        for name in coordinates
    ]
    return Made(parameters, Rule(**{**vars(rule), "coordinates": coordinates}))


def _rising(leaf: Leaf, entry: Mapping[str, Any], given: Range | None) -> Rule:
    integer = bool(entry.get("integer", False))
    low, high = (given.low, given.high) if given else entry["range"]
    times = () if given else tuple(key for key in [entry.get("times")] if key)
    if not times:
        edges = _clip(leaf.low, leaf.high, float(low), float(high))
        if given and edges != (low, high):
            raise ValueError(
                f"a range must stay inside the schema's bounds, but `{leaf.name}` must be {leaf.bounds()}."
            )
        low, high = edges
    return Rule(
        kind="rising", target=leaf.name, of=times, low=low, high=high, integer=integer,
        step=int(entry.get("multiple", 1)),
    )  # fmt: skip


def _room(rule: Rule, view: View) -> int | None:
    """How many different values there are; None where that depends on a key that is searched."""
    assert rule.low is not None
    assert rule.high is not None
    low, high = rule.low, rule.high
    if not rule.of:
        return math.floor(high / rule.step) - math.ceil(low / rule.step) + 1
    run = number(rule.of[0], view)
    if run is None:
        return None
    last = min(math.floor(high * run / rule.step), math.ceil(run / rule.step) - 1)
    return last - max(1, math.ceil(low * run / rule.step)) + 1


def _words(rule: Rule, view: View) -> str:
    return f"{rule.of[0]} ({view.value(rule.of[0])})"


def _items(leaf: Leaf, entry: Mapping[str, Any], given: Range | None, view: View) -> Made | str:
    if given:
        raise ValueError(f"one range does not fit the items of a list, but `{leaf.name}` has {len(entry['items'])}.")
    value, parameters = view.value(leaf.name), []
    if isinstance(value, list | tuple) and len(value) != len(entry["items"]):
        return f"a list of {len(value)}, and the overlay knows {len(entry['items'])} items"
    integer = bool(entry.get("integer", False))
    for place, (low, high) in enumerate(entry["items"]):
        bounds = leaf.places[place] if place < len(leaf.places) else leaf.interval
        least = None if bounds.low is None else beyond(bounds.low, bounds.open_low, integer)
        most = None if bounds.high is None else beyond(bounds.high, bounds.open_high, integer, side=-1)
        edges = _clip(least, most, float(low), float(high))
        if edges[0] >= edges[1]:
            return f"its bounds leave nothing ({leaf.bounds()})"
        origins = [OVERLAY if edge == float(told) else SCHEMA for edge, told in zip(edges, (low, high), strict=True)]
        parameters.append(
            Parameter(
                name=f"{leaf.name}/{place + 1}", kind="int" if integer else "float", low=edges[0], high=edges[1],
                default=edges[0], origin=origin_text(*origins),
            )
        )  # fmt: skip
    coordinates = tuple(parameter.name for parameter in parameters)
    return Made(parameters, Rule(kind="items", target=leaf.name, coordinates=coordinates, integer=integer))


def _clip(least: float | None, most: float | None, low: float, high: float) -> tuple[float, float]:
    return low if least is None else max(low, least), high if most is None else min(high, most)
