"""Any TAO `*.schema.json`, or plain JSON Schema, to typed leaves. Knows no model and decides no range.

The dialect has its own type names, bare `Infinity`, lists among `properties`, flags in two places, and rules as text
(`> 0.0`, `/ 8`, `> depends_on`). Whatever contradicts itself becomes a Finding, never an exception.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from schemas import dotted

KINDS: Mapping[str, str] = {
    "int": "int", "integer": "int",
    "float": "float", "number": "float",
    "bool": "bool", "boolean": "bool",
    "string": "string", "str": "string",
    "categorical": "categorical", "ordered": "ordered", "ordered_int": "ordered",
    "list": "list", "array": "list", "tuple": "list", "optional_list": "list", "subset_list": "list",
    "collection": "collection", "object": "collection", "dict": "collection",
}  # fmt: skip
"""Every type name seen -> the one name used from here on; `list_<anything>` is a list too."""

_RULE = re.compile(r"\s*(>=|<=|!=|==|>|<|/|\^)\s*(depends_on|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:,|and)?")


class Finding(NamedTuple):
    """Something in a schema that its author would want to know."""

    name: str
    """Dotted name of the leaf, or the root key."""
    text: str


class Rule(NamedTuple):
    """One term of a `math_cond`."""

    op: str
    """`>`, `>=`, `<`, `<=`, `!=`, `==`; `/` a multiple of; `^` a power of."""
    rhs: float | None
    """None: the value of `depends_on`."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One key that holds a value."""

    name: str
    kind: str
    """A value of KINDS, or `unknown`."""
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
    weights: tuple[float, ...] | None = None
    """Relative weights of `choices`, from `option_weights`."""
    rules: tuple[Rule, ...] = ()
    depends_on: tuple[str, ...] = ()
    search: bool = False
    disabled: bool = False
    popular: bool = False
    pattern: str | None = None
    nullable: bool = True

    @property
    def multiple(self) -> int | None:
        """The number that every value is a multiple of (`/ 8`); for integers only."""
        found = [int(rule.rhs) for rule in self.rules if rule.op == "/" and rule.rhs and rule.rhs >= 1]
        return found[0] if found and self.kind in ("int", "ordered") and not self.depends_on else None

    @property
    def power(self) -> int | None:
        """The number that every value is a power of, exponent 1 and up (`^ 2`); for integers only."""
        found = [int(rule.rhs) for rule in self.rules if rule.op == "^" and rule.rhs and rule.rhs >= 2]
        return found[0] if found and self.kind in ("int", "ordered") else None

    @property
    def excluded(self) -> tuple[float, ...]:
        return tuple(rule.rhs for rule in self.rules if rule.op == "!=" and rule.rhs is not None)

    def bounds(self) -> str:
        """The allowed values in words, empty when anything goes."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if self.open_low else 'at least'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'below' if self.open_high else 'at most'} {self.high:g}")
        parts += [f"not {value:g}" for value in self.excluded]
        if self.multiple:
            parts.append(f"a multiple of {self.multiple}")
        if self.power:
            parts.append(f"a power of {self.power}")
        return " and ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A schema as its leaves, by dotted name in file order."""

    leaves: Mapping[str, Leaf]
    groups: frozenset[str]
    """Dotted names of the collections that have members."""
    default: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    """`x_tao_schema`: model, network_arch, action."""


def loads(text: str) -> dict[str, Any]:
    """JSON as TAO writes it (`Infinity` is accepted). ValueError when it is no object."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("a schema is a JSON object with `properties`.")
    return document


def read_schema(document: Mapping[str, Any]) -> Schema:
    """Types, bounds, rules and flags of every leaf, and what is odd about them."""
    findings: list[Finding] = []
    given = document.get("default")
    default: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    listed = _names(document, "automl_default_parameters", findings)
    barred = _names(document, "automl_disabled_parameters", findings)
    leaves: dict[str, Leaf] = {}
    groups: set[str] = set()
    for name, node, is_group in _walk(document, "", findings):
        if is_group:
            groups.add(name)
            continue
        leaf = _leaf(name, node, default, findings)
        flag = node.get("automl_enabled")
        search = flag is True or (flag is None and name in listed)
        if (name in listed) != (flag is True):
            findings.append(Finding(name, "`automl_enabled` and the list of default parameters disagree"))
        leaves[name] = replace(leaf, search=search, disabled=not search and (flag is False or name in barred))
    for name in sorted(listed - leaves.keys()):
        findings.append(Finding(name, "is in automl_default_parameters, but there is no such key"))
    for leaf in leaves.values():
        findings += _lint(leaf, leaves)
    origin = document.get("x_tao_schema")
    return Schema(
        leaves=leaves,
        groups=frozenset(groups),
        default=default,
        findings=tuple(findings),
        origin=origin if isinstance(origin, Mapping) else {},
    )


def parse_rules(text: str) -> tuple[tuple[Rule, ...], str]:
    """A `math_cond` as rules, and what of it could not be read. Spacing does not matter: `>0`, `> 0.0 <= 1.0`."""
    rules, place = [], 0
    for match in _RULE.finditer(text):
        if text[place : match.start()].strip():
            break
        rules.append(Rule(match[1], None if match[2] == "depends_on" else float(match[2])))
        place = match.end()
    return tuple(rules), text[place:].strip()


def _names(document: Mapping[str, Any], key: str, findings: list[Finding]) -> set[str]:
    value = document.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str):
        findings.append(Finding(key, "is not a list"))
        return set()
    return {str(name) for name in value}


def _walk(node: Mapping[str, Any], path: str, findings: list[Finding]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    members = node.get("properties")
    for key, member in members.items() if isinstance(members, Mapping) else ():
        name = f"{path}.{key}" if path else str(key)
        if not isinstance(member, Mapping):
            findings.append(Finding(name, "a list among properties, not a key; ignored"))
            continue
        inner = member.get("properties")
        is_group = isinstance(inner, Mapping) and bool(inner)
        yield name, member, is_group
        if is_group:
            yield from _walk(member, name, findings)


def _leaf(name: str, node: Mapping[str, Any], root: Mapping[str, Any], findings: list[Finding]) -> Leaf:
    has_default = "default" in node or dotted.has(root, name)
    default = node["default"] if "default" in node else dotted.get(root, name)
    choices = _choices(node)
    kind = _kind(node, choices, default)
    if kind == "unknown":
        findings.append(Finding(name, f"unknown type {node.get('type')!r}"))
    rules, rest = parse_rules(str(node.get("math_cond") or ""))
    if rest:
        findings.append(Finding(name, f"unreadable math_cond {node.get('math_cond')!r}"))
    low, open_low = _bound(node, "minimum", "exclusiveMinimum", -1)
    high, open_high = _bound(node, "maximum", "exclusiveMaximum", 1)
    for op, rhs in rules:
        if rhs is None:
            continue
        if op in (">", ">=") and (low is None or rhs > low or (rhs == low and op == ">")):
            low, open_low = rhs, op == ">"
        if op in ("<", "<=") and (high is None or rhs < high or (rhs == high and op == "<")):
            high, open_high = rhs, op == "<"
    weights = node.get("option_weights")
    usable = (
        choices is not None
        and isinstance(weights, Sequence)
        and len(weights) == len(choices)
        and all(_number(weight) is not None and weight >= 0 for weight in weights)
        and sum(weights) > 0
    )
    if weights is not None and not usable:
        findings.append(Finding(name, "option_weights do not fit the choices; ignored"))
    depends = node.get("depends_on")
    return Leaf(
        name=name,
        kind=kind,
        title=str(node.get("title") or ""),
        doc=str(node.get("description") or ""),
        default=default,
        has_default=has_default,
        low=low,
        high=high,
        open_low=open_low,
        open_high=open_high,
        choices=choices,
        weights=tuple(map(float, weights)) if usable and weights else None,
        rules=rules,
        depends_on=tuple(part.strip() for part in str(depends).split(",") if part.strip()) if depends else (),
        popular=node.get("popular") is True,
        pattern=node.get("pattern") if isinstance(node.get("pattern"), str) else None,
    )


def _choices(node: Mapping[str, Any]) -> tuple[Any, ...] | None:
    if "const" in node:
        return (node["const"],)
    for source in (node, *_alternatives(node)):
        enum = source.get("enum")
        if isinstance(enum, Sequence) and not isinstance(enum, str) and enum:
            return tuple(enum)
    return None


def _alternatives(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = node.get("anyOf") or node.get("oneOf") or []
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, Sequence) else []


def _kind(node: Mapping[str, Any], choices: tuple[Any, ...] | None, default: Any) -> str:
    """The type by name; without one by the first alternative, the choices or the default."""
    given = node.get("type")
    for name in given if isinstance(given, list) else [given]:
        if isinstance(name, str) and name != "null":
            return KINDS.get(name, "list" if name.startswith("list_") else "unknown")
    for alternative in _alternatives(node):
        if (kind := _kind(alternative, None, None)) != "unknown":
            return kind
    if choices is not None:
        return "categorical"
    kinds = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "collection"}
    return kinds.get(type(default), "unknown")


def _bound(node: Mapping[str, Any], inclusive: str, exclusive: str, side: int) -> tuple[float | None, bool]:
    """(bound, open) of one side; `side` is -1 for minimum. Infinity is no bound; of a list the first item counts."""
    closed, opened = _number(node.get(inclusive)), _number(node.get(exclusive))
    if opened is not None and (closed is None or side * opened <= side * closed):
        return opened, True
    return closed, False


def _number(value: Any) -> Any:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _lint(leaf: Leaf, leaves: Mapping[str, Leaf]) -> Iterator[Finding]:
    value = _number(leaf.default) if not isinstance(leaf.default, list) else None
    if value is not None and leaf.kind in ("int", "float"):
        below = leaf.low is not None and (value < leaf.low or (value == leaf.low and leaf.open_low))
        above = leaf.high is not None and (value > leaf.high or (value == leaf.high and leaf.open_high))
        if below or above:
            yield Finding(leaf.name, f"the default {value:g} is outside its bounds ({leaf.bounds()})")
    scalar = leaf.kind in ("int", "float", "bool", "string", "categorical", "ordered")
    if leaf.choices and scalar and leaf.has_default and leaf.default is not None and leaf.default not in leaf.choices:
        yield Finding(leaf.name, f"the default {leaf.default!r} is not among the choices")
    if leaf.low is not None and leaf.high is not None and leaf.low > leaf.high:
        yield Finding(leaf.name, f"its bounds leave nothing: {leaf.bounds()}")
    for op in {rule.op for rule in leaf.rules} & {"/", "^"}:
        if leaf.multiple is None and leaf.power is None:
            yield Finding(leaf.name, f"`{op}` in its math_cond has no one meaning here; not enforced")
    for parent in leaf.depends_on:
        if parent not in leaves:
            yield Finding(leaf.name, f"depends on `{parent}`, and there is no such key")
    if leaf.depends_on and not any(rule.rhs is None or rule.op == "/" for rule in leaf.rules):
        yield Finding(leaf.name, f"depends on {', '.join(leaf.depends_on)} by no stated rule; not enforced")
    if leaf.search and leaf.kind in ("int", "float") and (leaf.high is None or leaf.low is None):
        yield Finding(leaf.name, "is searchable and unbounded; ranges come from the default")
    if leaf.search and not leaf.has_default:
        yield Finding(leaf.name, "is searchable and has no default")
