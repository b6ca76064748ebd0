"""`quantize.layers` and `quantize.skip_names`: which layers become which type. Knows names and classes; no network, no
graph."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from model.quantised import DTYPES

NATIVE = "native"
"""The type that leaves a layer alone."""
ALIASES: Mapping[str, str] = {
    "float8_e4m3fn": "fp8_e4m3fn",
    "float8_e5m2": "fp8_e4m3fn",
    "fp8_e5m2": "fp8_e4m3fn",
}
"""Weights need the digits of e4m3 rather than the range of e5m2, which their scales give them."""


class Rule(NamedTuple):
    """One item of `quantize.layers`."""

    pattern: str
    """Of shell kind; of a layer's name, or of its class."""
    dtype: str
    """A key of DTYPES, or NATIVE."""


def rules(layers: Sequence[Any]) -> tuple[Rule, ...]:
    """`quantize.layers` as rules. Without any: everything that can be, to int8."""
    return tuple(_rule(layer) for layer in layers) or (Rule("*", "int8"),)


def _rule(layer: Any) -> Rule:
    pattern = layer.get("module_name") if isinstance(layer, Mapping) else None
    weights = layer.get("weights") if isinstance(layer, Mapping) else None
    named = str(weights.get("dtype") if isinstance(weights, Mapping) else None)
    dtype = ALIASES.get(named, named)
    if not isinstance(pattern, str) or dtype not in (*DTYPES, NATIVE):
        raise ValueError(
            f"each of `quantize.layers` must have a module_name and weights.dtype, one of "
            f"{', '.join((*DTYPES, *ALIASES, NATIVE))}, but one is {layer!r}; write it as {{module_name: 'Linear', "
            "weights: {dtype: int8}}."
        )
    return Rule(pattern, dtype)


def select(known: Mapping[str, Sequence[str]], wanted: Sequence[Rule], skipped: Sequence[str]) -> dict[str, str]:
    """Each layer that is quantised, to its type; the last rule that fits counts. known: every layer that can be, to its
    classes. Raises ValueError for a pattern that fits none, and where nothing is left to do."""

    def fits(pattern: str, name: str) -> bool:
        return any(fnmatchcase(each, pattern) for each in (name, *known[name]))

    for key, patterns in {"layers": [rule.pattern for rule in wanted], "skip_names": skipped}.items():
        for pattern in patterns:
            if not any(fits(pattern, name) for name in known):
                some = list(known)[:: max(1, len(known) // 3)][:3]
                kinds = sorted({kind for each in known.values() for kind in each})
                raise ValueError(
                    f"each pattern of `quantize.{key}` must fit a layer that can be quantised, by its name or as "
                    f"{', '.join(kinds)}, but `{pattern}` fits none of {len(known)}, such as {', '.join(some)}; "
                    "correct it, or leave it out."
                )
    found = {
        name: next((rule.dtype for rule in reversed(wanted) if fits(rule.pattern, name)), NATIVE) for name in known
    }
    chosen = {
        name: dtype
        for name, dtype in found.items()
        if dtype != NATIVE and not any(fits(pattern, name) for pattern in skipped)
    }
    if not chosen:
        raise ValueError(
            "`quantize.layers` and `quantize.skip_names` must leave something to quantise, but no layer is; change "
            "them, or leave both out to quantise all that can be."
        )
    return chosen
