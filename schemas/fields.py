"""How one field of a spec class states its range, dependence and searchability. Knows no particular field.

A spec is a tree of frozen dataclasses. Each leaf is made by `field()`; everything a schema needs is kept in the
dataclass field's metadata, so the class is the only source of schema, template and validation.
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

KEY = "ddetr"
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"(>=|<=|!=|>|<)\s*(-?[\d.]+(?:[eE][-+]?\d+)?)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What a spec field says beyond its type and default."""

    title: str
    doc: str
    low: float | None = None
    """Inclusive minimum; `math_cond` may open it."""
    high: float | None = None
    """Inclusive maximum; infinity means unbounded."""
    enum: tuple[Any, ...] | None = None
    search: bool | None = None
    """True: in `automl_default_parameters`; False: in `automl_disabled_parameters`; None: in neither."""
    also: tuple[Any, ...] = ()
    """Values outside the range that mean something of their own (0: off)."""
    math_cond: str | None = None
    depends_on: str | None = None
    """Dotted name of the field that `math_cond` (or an overlay's rule) refers to."""
    parent: bool = False
    popular: bool | tuple[str, ...] = False
    kind: str | None = None
    """The dialect's type name where it does not follow from the annotation (list_2, ordered_int)."""
    mandatory: bool = False
    """Written as `???` in templates: the action cannot run without it."""
    note: str | None = None
    """Why ours differs from the field table of TAO."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further schema keys, copied as they are (`pattern`, `required`)."""

    def problem(self, value: Any) -> str | None:
        """The rule that `value` breaks, or None. Numbers are checked against bounds, anything against the enum."""
        if value is None or value in self.also:
            return None
        if self.enum is not None and value not in self.enum:
            return f"must be one of {', '.join(map(str, self.enum))}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}"
        for symbol, bound in _CONDITION.findall(self.math_cond or ""):
            if not _OPERATORS[symbol](value, float(bound)):
                return f"must be {symbol} {bound}"
        return None


def field(default: Any, *, title: str, doc: str, **info: Any) -> Any:
    """A dataclass field with its FieldInfo. A callable default (a spec class) is a factory."""
    metadata = {KEY: FieldInfo(title=title, doc=doc, **info)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def info(item: "dataclasses.Field[Any]") -> FieldInfo:
    found = item.metadata.get(KEY)
    assert isinstance(found, FieldInfo), f"{item.name} was not made by schemas.fields.field"
    return found


def members(cls: type) -> Iterator[tuple[str, Any, "dataclasses.Field[Any]", FieldInfo]]:
    """(name, resolved annotation, dataclass field, info) of each field of a spec class, in order."""
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        yield item.name, hints[item.name], item, info(item)
