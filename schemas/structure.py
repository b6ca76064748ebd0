"""Nested mappings to trees of frozen dataclasses and back, all problems at once. Knows no field by name."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin

from schemas.fields import members

T = TypeVar("T")
MANDATORY = "???"
"""TAO's mark for a value that the user must give; treated as unset until an action needs it."""
SECRETS = frozenset(("encryption_key",))
"""Keys whose values no message repeats."""


def unknown_key(path: str, name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}."
    return f"unknown key `{_join(path, name)}`; {hint}"


def structure(
    cls: type[T], given: Mapping[str, Any], path: str = "", *, ignore: Sequence[str] = ()
) -> tuple[T, list[str]]:
    """Builds `cls` from a nested mapping. Returns the instance (defaults where a value is wrong) and all problems.

    null, and an empty string where the field may be None, mean unset. Keys in `ignore` are passed over.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    fields = {name: (hint, item, info) for name, hint, item, info in members(cls)}
    for name, value in given.items():
        if name in ignore:
            continue
        if name not in fields:
            problems.append(unknown_key(path, str(name), list(fields)))
            continue
        hint, _, info = fields[name]
        where = _join(path, name)
        if value is None or value == MANDATORY:
            continue
        try:
            values[name] = _convert(hint, value, where, problems)
        except (TypeError, ValueError) as error:
            problems.append(f"`{where}` {error}, but is {shown(where, value)}.")
            continue
        broken = info.problem(values[name])
        if broken:
            problems.append(f"`{where}` {broken}, but is {value!r}.")
            del values[name]
    return cls(**values), problems


def shown(name: str, value: Any) -> str:
    """A value as an error repeats it."""
    return "[a secret]" if name in SECRETS else repr(value)


def unstructure(spec: Any) -> Any:
    """The plain JSON form of a spec tree: dicts, lists, numbers, strings, None."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {item.name: unstructure(getattr(spec, item.name)) for item in dataclasses.fields(spec)}
    if isinstance(spec, Mapping):
        return {key: unstructure(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [unstructure(value) for value in spec]
    return spec


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as the annotation `hint` wants it. Raises ValueError with the rule (the caller adds path and value)."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value == "" and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path, problems)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError("must be a group of keys")
        built, inner = structure(hint, value, path)
        problems.extend(inner)
        return built
    if origin is tuple:
        return _sequence(args[0], value, path, problems)
    if hint is Any:
        return value
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError("must be a group of keys")
        return dict(value)
    return _SCALARS[hint](value)


def _sequence(item: Any, value: Any, path: str, problems: list[str]) -> tuple[Any, ...]:
    if isinstance(value, str) and item is str:
        value = [value] if value else []  # one name where several may stand, as TAO's own specs write it
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list")
    items = []
    for place, each in enumerate(value):
        where = f"{path}[{place}]"
        try:
            items.append(_convert(item, each, where, problems))
        except ValueError as error:
            problems.append(f"`{where}` {error}, but is {each!r}.")
    return tuple(items)


def _int(value: Any) -> int:
    number = _float(value)
    if not number.is_integer():
        raise ValueError("must be a whole number")
    return int(number)


def _float(value: Any) -> float:
    # Numbers in quotes are accepted, as OmegaConf does: users' files have them.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _bool(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false"):
        raise ValueError("must be true or false")
    return word == "true"


def _str(value: Any) -> str:
    if isinstance(value, bool | list | tuple | Mapping):
        raise ValueError("must be text")
    return str(value)


_SCALARS = {int: _int, float: _float, bool: _bool, str: _str}
