"""The rules of a schema read a second time, slowly and from the raw JSON: nothing of the reader or the space is used.

`RawRules(document, spec).broken(values)` names every rule that `values` (spec key -> value, all of a draw) break.
"""

import math
import operator
import re
from typing import Any

from jsonschema import Draft202012Validator

COMPARE = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "!=": operator.ne, "==": operator.eq,
}  # fmt: skip
TERM = re.compile(r"(>=|<=|!=|==|>|<|/|\^)(depends_on|[-+]?[\d.]+(?:[eE][-+]?\d+)?)")
WHOLE = ("int", "integer", "ordered_int")
NUMBERS = (*WHOLE, "float", "number")
LISTS = ("list", "array", "tuple", "optional_list", "subset_list")
PLAIN = ("integer", "number", "array", "object", "boolean", None)


class RawRules:
    """The rules of one document under one spec."""

    def __init__(self, document: dict[str, Any], spec: dict[str, Any]) -> None:
        self.document, self.spec, self.nodes = document, spec, dict(nodes(document))

    def broken(self, values: dict[str, Any]) -> list[str]:
        found = []
        for name, node in self.nodes.items():
            mine = alone(node, values[name], self.document) if name in values else []
            ties = self._together(name, node, values) if node.get("depends_on") else []
            found += [f"{name}={values.get(name)!r}: {rule}" for rule in [*mine, *ties]]
        return found

    def _together(self, name: str, node: dict[str, Any], values: dict[str, Any]) -> list[str]:
        """The relations to other keys that do not hold, where one of the two is drawn."""
        found = []
        parents = [part.strip() for part in str(node["depends_on"]).split(",") if part.strip()]
        value = self._effective(name, values)
        for parent in parents:
            other = self._effective(parent, values)
            if not {name, parent} & set(values) or not number(value) or not number(other):
                continue
            for op, rhs in terms(node):
                if rhs == "depends_on" and op in COMPARE and not COMPARE[op](value, other):
                    found.append(f"{op} {parent} ({other})")
                share = op == "/" and "depends_on" not in dict(terms(node)).values()
                if share and value > other / float(rhs) * (1 + 1e-12):
                    found.append(f"at most {parent} ({other}) / {rhs}")
            if not terms(node) and name.endswith("num_select") and parent in values and value > other:
                found.append(f"at most {parent} ({other})")
        return found

    def _effective(self, name: str, values: dict[str, Any]) -> Any:
        if name in values:
            return values[name]
        node = self.nodes.get(name, {})
        for found in (self.spec, node.get("default"), self.document.get("default")):
            for step in name.split(".") if isinstance(found, dict) else ():
                found = found.get(step) if isinstance(found, dict) else None
            if found is not None:
                return found
        return None


def nodes(node: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for key, member in node.get("properties", {}).items():
        name = f"{path}.{key}" if path else key
        if isinstance(member, dict):
            found += nodes(member, name) if member.get("properties") else [(name, member)]
    return found


def alone(node: dict[str, Any], value: Any, document: dict[str, Any]) -> list[str]:
    """What a value breaks that needs no other one."""
    kind = node.get("type")
    if (kind in PLAIN or isinstance(kind, list)) and by_the_standard(node, value, document):
        return ["JSON Schema"]
    found = []
    if kind in ("int", "integer") and (isinstance(value, bool) or not isinstance(value, int)):
        found.append("not whole")
    if kind in ("float", "number") and (isinstance(value, bool) or not isinstance(value, int | float)):
        found.append("no number")
    if kind in ("bool", "boolean") and not isinstance(value, bool):
        found.append("no flag")
    enum = node.get("enum")
    if enum and kind not in PLAIN:
        choices = [each.strip() if isinstance(each, str) else each for each in enum]
        items = value if isinstance(value, list) and not isinstance(choices[0], list) else [value]
        found += [f"{item!r} not in the enum" for item in items if not any(same(item, each) for each in choices)]
    items = value if isinstance(value, list) else [value]
    for place, item in enumerate(items):
        for key, inside in (("minimum", operator.ge), ("maximum", operator.le)):
            bound = node.get(key)
            if isinstance(bound, list):
                bound = bound[min(place, len(bound) - 1)]
            if number(bound) and number(item) and not inside(item, bound):
                found.append(f"{key} {bound}")
    compares = any(rhs == "depends_on" for _, rhs in terms(node))
    if kind in NUMBERS and number(value):
        for op, rhs in terms(node):
            if rhs != "depends_on" and op in COMPARE and not COMPARE[op](value, float(rhs)):
                found.append(f"{op} {rhs}")
            if op == "/" and (not node.get("depends_on") or compares) and kind in WHOLE and value % float(rhs):
                found.append(f"{op} {rhs}")
            if op == "^" and kind in WHOLE and value not in [int(rhs) ** exponent for exponent in range(1, 64)]:
                found.append(f"{op} {rhs}")
    return found


def terms(node: dict[str, Any]) -> list[tuple[str, str]]:
    return TERM.findall(re.sub(r"\s+", "", str(node.get("math_cond") or "")))


def by_the_standard(node: dict[str, Any], value: Any, document: dict[str, Any]) -> bool:
    """Whether `jsonschema` refuses a value. Words that the dialect uses otherwise are left out."""
    clean = {key: each for key, each in node.items() if number(each) or not (key.endswith("imum"))}
    if node.get("exclusiveMinimum") is True:  # draft 4
        clean["exclusiveMinimum"] = clean.pop("minimum")
    if isinstance(clean.get("enum"), list):
        words = [each.strip() if isinstance(each, str) else each for each in clean["enum"]]
        clean["enum"] = [*words, *({"true": True, "false": False}[each] for each in words if each in ("true", "false"))]
    return not Draft202012Validator({**clean, "$defs": document.get("$defs", {})}).is_valid(value)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)
