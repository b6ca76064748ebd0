"""How names and numbers of a run are written in a report: short, and the same everywhere."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hpo.show_space import short


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted name, or as many as tell it from the others. A coordinate stays with
    its key: `lr_steps/0` is the first one of lr_steps."""
    whole = list(dict.fromkeys(names))
    parts = {name: _parts(name) for name in whole}
    most = max((len(each) for each in parts.values()), default=0)
    found: dict[str, str] = {}
    for count in range(1, most + 1):
        tails = {name: ".".join(each[-count:]) for name, each in parts.items()}
        often = Counter(tails.values())
        for name, tail in tails.items():
            if name not in found and often[tail] == 1:
                found[name] = tail
    return {name: found.get(name, name) for name in whole}


def _parts(name: str) -> list[str]:
    key, slash, coordinate = name.partition("/")
    *first, last = key.split(".")
    return [*first, last + slash + coordinate]


def value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={value_text(each)}" for key, each in value.items())
    return "" if value is None else short(value)


def moment(seconds: float) -> str:
    """Seconds since 1970 as the machine's own date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def gain(value: float) -> str:
    """A difference with its sign."""
    return minus(f"{value:+.4f}")


def minus(text: str) -> str:
    """With a true minus, which is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")
