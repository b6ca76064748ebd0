"""The words of JSON Schema that join nodes (`$ref`, `allOf`, `anyOf`, `oneOf`, a list of types) worked out.

A node becomes the plain nodes that it may be, each without those words. Knows only what a reader of values needs:
conditions between keys (`if`, `dependentSchemas`) are told and passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from schemas.leaf import FindingKind, is_number, same

JOINING = ("$ref", "allOf", "anyOf", "oneOf")
PASSED_OVER = ("if", "dependentSchemas", "dependentRequired", "$dynamicRef", "contains")
MOST = 16
"""Plain nodes of one node, and a limit to the steps that lead there: schemas can be written that have millions."""
_SAME_NUMBERS = {frozenset(("int", "integer")), frozenset(("float", "number"))}


class Variants(NamedTuple):
    nodes: list[dict[str, Any]]
    """Empty when the statements exclude each other."""
    refs: frozenset[str]
    """Every `$ref` that was followed."""
    notes: list[tuple[FindingKind, str]]


def variants(node: Mapping[str, Any], root: Mapping[str, Any], above: frozenset[str] = frozenset()) -> Variants:
    """The plain nodes of `node`. above: references that lead here, which would go on for ever if followed again."""
    work = _Work(root)
    found = work.expand(node, above)
    return Variants(found[:MOST], frozenset(work.refs), list(dict.fromkeys(work.notes)))


class _Work:
    """One expansion: what it followed, what it has to tell, how many steps it has left."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.refs: set[str] = set()
        self.notes: list[tuple[FindingKind, str]] = []
        self.steps = 20 * MOST

    def expand(self, node: Mapping[str, Any], seen: frozenset[str]) -> list[dict[str, Any]]:
        self.steps -= 1
        if self.steps < 0:
            self.notes.append(("unreadable", "more is joined here than can be followed; the rest is passed over"))
            return []
        self._note_passed_over(node)
        found = _plain(node)
        ref = node.get("$ref")
        if ref is not None:
            found = _cross(found, self._follow(ref, seen))
        parts = node.get("allOf")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping):
                found = _cross(found, self.expand(part, seen))
        for word in ("anyOf", "oneOf"):
            choices = node.get(word)
            nodes = [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []
            if nodes:
                found = _cross(found, [each for choice in nodes for each in self.expand(choice, seen)])
        return found[:MOST]

    def _follow(self, ref: Any, seen: frozenset[str]) -> list[dict[str, Any]]:
        if not isinstance(ref, str) or (target := _target(ref, self.root)) is None:
            self.notes.append(("unreadable", f"`$ref` {ref!r} leads to nothing in this file"))
            return [{}]
        if ref in seen:
            self.notes.append(("unreadable", f"`$ref` {ref!r} leads back to itself"))
            return []
        self.refs.add(ref)
        return self.expand(target, seen | {ref})

    def _note_passed_over(self, node: Mapping[str, Any]) -> None:
        for word in PASSED_OVER:
            if word in node:
                self.notes.append(("unenforced", f"`{word}` is passed over"))
        for word in JOINING[1:]:
            if word in node and not isinstance(node[word], list):
                self.notes.append(("unreadable", f"`{word}` is not a list"))


def _plain(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`node` without joining words, one for each of its types; `const` as `enum`, draft 4's flags as numbers."""
    own = {key: value for key, value in node.items() if key not in JOINING}
    if "const" in own:
        own["enum"] = [own.pop("const")]
    for opened, closed in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(own.get(opened), bool):
            flag = own.pop(opened)
            if flag and closed in own:
                own[opened] = own.pop(closed)
    names = own.get("type")
    if not isinstance(names, list):
        return [own]
    known = list(dict.fromkeys(each for each in names if isinstance(each, str)))
    return [{**own, "type": name} for name in known] or [own]


def _cross(left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    joined = (_both(a, b) for a in left[:MOST] for b in right[:MOST])
    return [each for each in joined if each is not None][:MOST]


def _both(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `a` and `b` say together; `a` has the word where only one can. None when nothing can be both."""
    joined = {**b, **a}
    if "type" in a and "type" in b and (kind := _common_type(a["type"], b["type"])) is not None:
        if not kind:
            return None
        joined["type"] = kind
    if isinstance(a.get("enum"), list) and isinstance(b.get("enum"), list):
        joined["enum"] = [each for each in a["enum"] if any(same(each, other) for other in b["enum"])]
        if not joined["enum"]:
            return None
    for key, pick in (("minimum", max), ("exclusiveMinimum", max), ("maximum", min), ("exclusiveMaximum", min)):
        if is_number(a.get(key)) and is_number(b.get(key)):
            joined[key] = pick(a[key], b[key])
    mine, other = a.get("properties"), b.get("properties")
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        shared = {key: {"allOf": [mine[key], other[key]]} for key in mine if key in other}
        joined["properties"] = {**mine, **other, **shared}
    if "math_cond" in a and "math_cond" in b and a["math_cond"] != b["math_cond"]:
        joined["math_cond"] = f"{a['math_cond']} {b['math_cond']}"
    return joined


def _common_type(a: Any, b: Any) -> Any:
    """The narrower of two type names, '' when nothing is both, None when that cannot be told."""
    if not isinstance(a, str) or not isinstance(b, str):
        return None
    if a == b or frozenset((a, b)) in _SAME_NUMBERS:
        return a
    whole, number = {"int", "integer"}, {"float", "number"}
    if {a, b} <= whole | number:
        return a if a in whole else b
    json = {"integer", "number", "string", "boolean", "array", "object", "null"}
    return "" if {a, b} <= json else None


def _target(ref: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a pointer within this file leads to: `#/$defs/x`, `#anchor`, or either after the file's own `$id`."""
    own = root.get("$id")
    head, _, pointer = ref.partition("#")
    if head and head != (own.rstrip("#") if isinstance(own, str) else None):
        return None
    if pointer and not pointer.startswith("/"):
        return _anchored(root, pointer)
    node: Any = root
    for step in pointer.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node if isinstance(node, Mapping) else None


def _anchored(root: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    for word in ("$defs", "definitions"):
        defs = root.get(word)
        for node in defs.values() if isinstance(defs, Mapping) else ():
            if isinstance(node, Mapping) and node.get("$anchor") == name:
                return node
    return None
