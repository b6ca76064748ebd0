"""Values in nested mappings and lists by dotted name (`train.optim.lr`, `dataset.train_data_sources.0.image_dir`).

Nothing here changes what it is given. Knows no schema.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_MISSING = object()


def split(name: str) -> tuple[str, ...]:
    """The steps of a dotted name; `a[0].b` and `a.0.b` are the same."""
    return tuple(name.replace("[", ".").replace("]", "").split("."))


def get(nested: Any, name: str, default: Any = None) -> Any:
    """The value at `name`, or `default` where the path ends early."""
    found = _find(nested, name)
    return default if found is _MISSING else found


def has(nested: Any, name: str) -> bool:
    return _find(nested, name) is not _MISSING


def put(nested: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of `nested` with `value` at `name`; missing groups are made. Only the path to the value is copied."""
    placed = _put(nested, split(name), value)
    assert isinstance(placed, dict)
    return placed


def drop(nested: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of `nested` without the value at `name`; no error where there is none. A key that itself has dots in it
    counts too. An item of a list becomes None, so that the places of the others stay what they were."""
    dropped = _drop(nested, ".".join(split(name)))
    assert isinstance(dropped, dict)
    return dropped


def leaves(nested: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is not a non-empty mapping, in order."""
    for key, value in nested.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, name)
        else:
            yield name, value


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, group by group; lists are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return merged


def _find(nested: Any, name: str) -> Any:
    for step in split(name):
        if isinstance(nested, Mapping):
            nested = nested.get(step, _MISSING)
        elif isinstance(nested, list | tuple) and step.isdecimal() and int(step) < len(nested):
            nested = nested[int(step)]
        else:
            return _MISSING
    return nested


def _put(nested: Any, steps: tuple[str, ...], value: Any) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(nested, list | tuple) and step.isdecimal() and int(step) <= len(nested):
        items = list(nested)
        place = int(step)
        items[place:place] = [None] if place == len(items) else []
        items[place] = _put(items[place], rest, value)
        return items
    if step == "0" and not isinstance(nested, Mapping):
        return [_put(None, rest, value)]  # `sources.0.image_dir=...` where the file has no list yet
    copy = dict(nested) if isinstance(nested, Mapping) else {}
    copy[step] = _put(copy.get(step), rest, value)
    return copy


def _drop(nested: Any, name: str) -> Any:
    first, _, rest = name.partition(".")
    if isinstance(nested, list) and first.isdecimal():
        return [each if place != int(first) else _drop(each, rest) if rest else None
                for place, each in enumerate(nested)]  # fmt: skip
    if not isinstance(nested, Mapping):
        return nested
    kept = {key: value for key, value in nested.items() if str(key) != name}
    if rest and first in kept:
        kept[first] = _drop(kept[first], rest)
    return kept
