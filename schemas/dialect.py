"""Any TAO `*.schema.json`, or plain JSON Schema, to typed leaves. Knows no model and decides no range.

The dialect has its own type names, bare `Infinity`, lists among `properties`, flags in two places, and rules as text
(`> 0.0`, `/ 8`, `> depends_on`). Whatever contradicts itself becomes a Finding, never an exception.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from schemas import dotted
from schemas.combine import Variants, variants
from schemas.leaf import Bounds as Bounds
from schemas.leaf import Finding as Finding
from schemas.leaf import FindingKind as FindingKind
from schemas.leaf import Leaf as Leaf
from schemas.leaf import Rule as Rule
from schemas.lint import lint
from schemas.node import KINDS as KINDS
from schemas.node import Notes, leaf, texts
from schemas.node import parse_rules as parse_rules

DEEPEST, MOST_LEAVES = 40, 20_000
"""Groups within groups, and leaves, beyond which a schema is cut off: no spec file has them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Schema:
    """A schema as its leaves, by dotted name in file order. Equal only to itself, so that what is made of it once can
    be kept."""

    leaves: Mapping[str, Leaf]
    groups: frozenset[str]
    """Dotted names of the collections that have members."""
    open_groups: frozenset[str] = frozenset()
    """Those that may hold further keys, or be something else than a group; the root is ''."""
    default: Mapping[str, Any]
    """The nested default spec: the root's, completed from the leaves."""
    findings: tuple[Finding, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    """`x_tao_schema`: model, network_arch, action."""


def loads(text: str) -> dict[str, Any]:
    """JSON as TAO writes it (`Infinity` is accepted). ValueError when it is no object."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("a schema must have fewer levels than this one.") from None
    if not isinstance(document, dict):
        raise ValueError("a schema is a JSON object with `properties`.")
    return document


def read_schema(document: Mapping[str, Any]) -> Schema:
    """Types, bounds, rules and flags of every leaf, and what is odd about them."""
    reader = _Reader(document)
    reader.read_group(variants(document, document), "", frozenset(), 0)
    reader.read_default(reader.default, "")
    leaves = reader.flagged()
    reader.findings += lint(leaves)
    default = dict(reader.default)
    for name, each in leaves.items():
        if each.has_default and "[" not in name and not dotted.has(default, name):
            default = dotted.put(default, name, each.default)
    origin = document.get("x_tao_schema")
    return Schema(
        leaves=leaves,
        groups=frozenset(reader.groups),
        open_groups=frozenset(reader.open_groups),
        default=default,
        findings=tuple(dict.fromkeys(reader.findings)),
        origin=origin if isinstance(origin, Mapping) else {},
    )


class _Reader:
    """One pass over a document: the leaves and groups so far, and what was odd."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.leaves: dict[str, Leaf] = {}
        self.groups: set[str] = set()
        self.open_groups: set[str] = set()
        self.findings: list[Finding] = []
        given = document.get("default")
        self.default: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        if given is not None and not isinstance(given, Mapping):
            self.findings.append(Finding("default", "unreadable", "is not a group of keys"))

    def read_group(self, found: Variants, path: str, above: frozenset[str], depth: int) -> bool:
        """Reads a node as a group with all that is below it. False when it is none."""
        plain = [each for each in found.nodes if each.get("type") != "null"]
        with_members = [each for each in plain if isinstance(each.get("properties"), Mapping) and each["properties"]]
        if not with_members and path:
            return False
        self._tell(path or "properties", found.notes)
        if not with_members:
            self._tell("properties", [("unreadable", "names no keys")])
        if depth >= DEEPEST:
            self._tell(path, [("unreadable", "has too many levels of groups; taken as one value")])
            return False
        if path:
            self.groups.add(path)
        free = ("patternProperties", "additionalProperties")
        if len(with_members) < len(plain) or any(
            each.get(word) not in (None, False) for each in plain for word in free
        ):
            self.open_groups.add(path)
        members: dict[str, list[Any]] = {}
        for each in with_members:
            for key, member in each["properties"].items():
                members.setdefault(str(key), []).append(member)
        for key, nodes in members.items():
            self._member(f"{path}.{key}" if path else key, key, nodes, above | found.refs, depth)
        names = [name for each in plain for name in texts(each.get("required"))]
        for name in dict.fromkeys(names):
            if with_members and name not in members:
                text = "is required, and there is no such key"
                self.findings.append(Finding(f"{path}.{name}" if path else name, "contradiction", text))
        return True

    def read_default(self, nested: Mapping[str, Any], path: str) -> None:
        """Keys that only the default spec has: every template holds them, so a spec may."""
        for key, value in nested.items():
            name = f"{path}.{key}" if path else str(key)
            if name in self.groups and isinstance(value, Mapping):
                self.read_default(value, name)
            elif name not in self.groups and name not in self.leaves and key and "." not in str(key):
                self.leaves[name] = Leaf(name=name, kind="unknown", default=value, has_default=True)
                self._tell(name, [("contradiction", "stands in the default spec, and is no key of the schema")])

    def _member(self, name: str, key: str, nodes: list[Any], above: frozenset[str], depth: int) -> None:
        schemas = [node for node in nodes if isinstance(node, Mapping)]
        if not schemas:
            kind = "a list" if isinstance(nodes[0], list) else "no schema"
            self._tell(name, [("unreadable", f"{kind} among properties, not a key; ignored")])
        elif not key or "." in key:
            self._tell(name, [("unreadable", "a key with a dot, or without a letter, has no dotted name; ignored")])
        elif len(self.leaves) >= MOST_LEAVES:
            self.findings.append(Finding("properties", "unreadable", f"only the first {MOST_LEAVES} keys are read"))
        else:
            node = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            found = variants(node, self.document, above)
            if not self.read_group(found, name, above, depth + 1):
                notes: Notes = []
                self.leaves[name] = leaf(name, found, self.document, above, notes)
                self._tell(name, notes)

    def _tell(self, name: str, notes: Sequence[tuple[FindingKind, str]]) -> None:
        self.findings += [Finding(name, kind, text) for kind, text in notes]

    def flagged(self) -> dict[str, Leaf]:
        """The leaves with their flags, from the leaf itself and from the two lists, and their parents by full name."""
        listed, barred = self._listed("automl_default_parameters"), self._listed("automl_disabled_parameters")
        made: dict[str, Leaf] = {}
        both = "automl_default_parameters" in self.document
        for name, each in self.leaves.items():
            search = each.flag is True or (each.flag is None and name in listed)
            if both and (name in listed) != (each.flag is True):
                where = "the list has it" if name in listed else "the list lacks it"
                text = f"`automl_enabled` and automl_default_parameters disagree: {where}"
                self._tell(name, [("contradiction", text)])
            disabled = not search and (each.flag is False or name in barred)
            parents = tuple(map(partial(self._full, name), each.depends_on))
            made[name] = replace(each, search=search, disabled=disabled, depends_on=parents)
        for name in sorted(listed - made.keys()):
            self._tell(name, [("contradiction", "is in automl_default_parameters, but there is no such key")])
        return made

    def _full(self, name: str, parent: str) -> str:
        """The full name of a parent that may be given by its last name, as a sibling of `name`."""
        sibling = f"{name.rpartition('.')[0]}.{parent}"
        return sibling if parent not in self.leaves and sibling in self.leaves else parent

    def _listed(self, key: str) -> set[str]:
        value = self.document.get(key)
        if value is not None and not isinstance(value, list):
            self._tell(key, [("unreadable", "is not a list")])
        return set(texts(value))
