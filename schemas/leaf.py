"""One key that holds a value: what it may be, and what its author should be told. Knows no file and no model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FindingKind = Literal[
    "contradiction", "default", "unbounded", "unenforced", "unreadable", "dead", "throughput", "empty"
]
"""What is wrong with a key. contradiction: two statements that exclude each other; default: a default that its own
rules refuse, or none where a search needs one; unbounded: searchable without both bounds; unenforced: a rule that has
no one meaning; unreadable: words that this reader does not know. dead (changes nothing) and throughput (changes speed
only) need a spec or an overlay and come from the derivation of a space; so does empty, of a schema that leaves nothing
to search."""


class Finding(NamedTuple):
    """Something in a schema that its author would want to know."""

    name: str
    """Dotted name of the leaf, or the root key."""
    kind: FindingKind
    text: str
    """What is so, without the name."""


class Rule(NamedTuple):
    """One term of a `math_cond`."""

    op: str
    """`>`, `>=`, `<`, `<=`, `!=`, `==`; `/` a multiple of; `^` a power of."""
    rhs: float | None
    """None: the value of `depends_on`."""


class Bounds(NamedTuple):
    low: float | None = None
    """None: unbounded."""
    high: float | None = None
    open_low: bool = False
    """The value must be above `low`, not at it."""
    open_high: bool = False

    def hold(self, value: float) -> bool:
        low = self.low is None or value > self.low or (value == self.low and not self.open_low)
        return low and (self.high is None or value < self.high or (value == self.high and not self.open_high))


WORDS: Mapping[str, str] = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "collection": "a group of keys",
}  # fmt: skip
_LIMITS: Mapping[str, str] = {
    "minLength": "of at least {} characters", "maxLength": "of at most {} characters",
    "minItems": "of at least {} items", "maxItems": "of at most {} items", "uniqueItems": "with no item twice",
}  # fmt: skip
LARGEST = 10**308
"""Whole numbers beyond it have no float, and count as infinite."""
NUMERIC = ("int", "float", "ordered", "categorical")
"""Kinds whose numbers are held to bounds and rules."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One key that holds a value."""

    name: str
    kind: str
    """A value of dialect.KINDS, or `unknown`."""
    title: str = ""
    doc: str = ""
    default: Any = None
    has_default: bool = False
    low: float | None = None
    """Inclusive unless `open_low`; None: unbounded."""
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[Any, ...] | None = None
    """Of a list: what its items may be, unless the choices are lists themselves."""
    also: tuple[Any, ...] = ()
    """Values outside bounds and choices that mean something of their own (`x_also: [0]`, off)."""
    weights: tuple[float, ...] | None = None
    """Relative weights of `choices`, from `option_weights`."""
    rules: tuple[Rule, ...] = ()
    depends_on: tuple[str, ...] = ()
    flag: bool | None = None
    """Its own `automl_enabled`."""
    search: bool = False
    disabled: bool = False
    popular: bool = False
    pattern: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    """`minLength`, `maxLength`, `minItems`, `maxItems`, `uniqueItems` as in JSON Schema."""
    lone: bool = False
    """Of a list: one text may stand for a list of one, as TAO's own specs write it."""
    item: "Leaf | None" = None
    """What every item of a list must be."""
    places: tuple[Bounds, ...] = ()
    """Bounds of the first items of a list, one by one (`minimum: [0.8, 0.9]`)."""
    alternatives: tuple["Leaf", ...] = ()
    """All that the value may be (`anyOf`), when that is more than one thing; this leaf shows the first of them."""

    @property
    def interval(self) -> Bounds:
        return Bounds(self.low, self.high, self.open_low, self.open_high)

    @property
    def multiple(self) -> int | None:
        """The number that every value is a multiple of (`/ 8`); for integers only."""
        compares = any(rule.rhs is None for rule in self.rules)
        if self.kind not in ("int", "ordered") or (self.depends_on and not compares):  # a share of the other, then
            return None
        found = self._whole("/", 1)
        return math.lcm(*found) if found else None

    @property
    def power(self) -> int | None:
        """The number that every value is a power of, exponent 1 and up (`^ 2`); for integers only."""
        found = self._whole("^", 2)
        return found[0] if found and self.kind in ("int", "ordered") else None

    def _whole(self, op: str, least: int) -> list[int]:
        given = [rule.rhs for rule in self.rules if rule.op == op and rule.rhs is not None]
        return [int(number) for number in given if float(number).is_integer() and number >= least]

    @property
    def excluded(self) -> tuple[float, ...]:
        return tuple(rule.rhs for rule in self.rules if rule.op == "!=" and rule.rhs is not None)

    @property
    def whole(self) -> bool:
        """Whether `choices` of a list are values of the list as a whole."""
        return self.kind != "list" or all(isinstance(choice, list) for choice in self.choices or ())

    def bounds(self) -> str:
        """The allowed values in words, empty when anything goes."""
        rule = self._bounds()
        return f"{rule}, or {', '.join(map(str, self.also))}" if rule and self.also else rule

    def _bounds(self) -> str:
        if self.alternatives:
            return " or ".join(dict.fromkeys(filter(None, map(Leaf.described, self.alternatives))))
        if self.choices is not None:
            words = ", ".join(str(choice) for choice in self.choices if self._numeric(choice))
            return f"one of {words}" if self.whole else f"a list of items out of {words}"
        parts = []
        if self.low is not None and self.kind != "list":
            parts.append(f"{'above' if self.open_low else 'at least'} {number_text(self.low)}")
        if self.high is not None and self.kind != "list":
            parts.append(f"{'below' if self.open_high else 'at most'} {number_text(self.high)}")
        parts += [f"not {number_text(value)}" for value in self.excluded]
        if self.multiple:
            parts.append(f"a multiple of {self.multiple}")
        if self.power:
            parts.append(f"a power of {self.power}")
        if self.pattern is not None:
            parts.append(f"text that fits {self.pattern}")
        parts += [_LIMITS[key].format(limit) for key, limit in self.limits.items()]
        if self.item is not None and (inner := self.item.described()):
            parts.append(f"of items each {inner}")
        for place, bounds in enumerate(self.places):
            words = Leaf(name="", kind="float", **bounds._asdict()).bounds()
            parts += [f"item {place} {words}"] if words else []
        return " and ".join(parts)

    def described(self) -> str:
        """Type and allowed values in words."""
        rule = self.bounds()
        if self.choices is not None or self.alternatives or rule.startswith("text"):
            return rule
        return " ".join(filter(None, (WORDS.get(self.kind, ""), rule)))

    def at(self, place: int) -> "Leaf":
        """What item `place` of a list must be."""
        if self.choices is not None and not self.whole:
            return Leaf(name=self.name, kind="unknown", choices=self.choices)
        bounds = self.places[place] if place < len(self.places) else Bounds()
        return self.item or Leaf(name=self.name, kind="float", **bounds._asdict())

    def problem(self, value: Any) -> str | None:
        """The rule that a value breaks, in words, or None. Unset values (None) break none."""
        if value is None or any(same(value, each) for each in self.also):
            return None
        if self.alternatives:
            return None if any(each.problem(value) is None for each in self.alternatives) else self.bounds()
        holds = self._of_type(value) and self._chosen(value) and self._numeric(value) and self._sized(value)
        if holds and self.kind == "list" and isinstance(value, list):
            holds = all(self.item is None or item is None or self.item.problem(item) is None for item in value)
        return None if holds else self.described() or "of another type"

    def _of_type(self, value: Any) -> bool:
        if self.kind in ("int", "float"):
            return is_number(value) and (self.kind == "float" or isinstance(value, int) or value.is_integer())
        if self.kind == "list":
            return isinstance(value, list) or (self.lone and isinstance(value, str))
        types: dict[str, Any] = {"bool": bool, "string": str, "collection": Mapping}
        return isinstance(value, types.get(self.kind, object))

    def _chosen(self, value: Any) -> bool:
        if self.choices is None:
            return True
        asked = value if not self.whole and isinstance(value, list) else [value]
        return all(any(same(item, choice) for choice in self.choices) for item in asked)

    def _numeric(self, value: Any) -> bool:
        if self.kind == "list" and isinstance(value, list):
            pairs = zip(value, self.places, strict=False)
            return all(bounds.hold(item) for item, bounds in pairs if is_number(item))
        if not is_number(value) or self.kind not in NUMERIC:
            return True
        grid = self.multiple is None or value % self.multiple == 0
        grid = grid and (self.power is None or value in powers(self.power))
        return self.interval.hold(value) and grid and not any(value == each for each in self.excluded)

    def _sized(self, value: Any) -> bool:
        if not isinstance(value, str | list):
            return True
        size = "Length" if isinstance(value, str) else "Items"
        low, high = self.limits.get(f"min{size}", 0), self.limits.get(f"max{size}", math.inf)
        unique = not (isinstance(value, list) and self.limits.get("uniqueItems"))
        unique = unique or not any(same(a, b) for place, a in enumerate(value) for b in value[:place])
        return low <= len(value) <= high and unique


def is_number(value: Any) -> bool:
    """A finite number, and no flag."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def powers(base: int) -> list[int]:
    """Every power that a whole number of 64 bits can be, exponent 1 and up."""
    return [base**exponent for exponent in range(1, int(63 / math.log2(base)) + 1)]


def number_text(value: float) -> str:
    """A number for people: no `.0`, no thirteen digits."""
    whole = isinstance(value, int) or value.is_integer()
    return str(int(value)) if whole and abs(value) < 1e15 else f"{float(value):g}"


def same(a: Any, b: Any) -> bool:
    """Equality as JSON Schema has it: 1 equals 1.0, and True equals neither."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
