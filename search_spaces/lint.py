"""What the author of a schema, or of a spec, would want to know of a search: the reader's findings, and those that only
the derivation of a space can tell. Knows no model."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from schemas import dotted
from schemas.dialect import Finding, FindingKind, Schema
from search_spaces.constraints import relations
from search_spaces.space import SearchSpace, is_number

_KINDS: Mapping[str, FindingKind] = {
    "inert: ": "dead", "dead: ": "dead", "out of reach": "dead", "throughput only: ": "throughput",
}  # fmt: skip
"""How a reason begins -> what it is a case of."""
_KNOB = re.compile(r"(^|_)(lr|learning_rate|weight_decay)$")


def lint(schema: Schema, space: SearchSpace, spec: Mapping[str, Any] | None = None) -> list[Finding]:
    """All findings, those of one kind together. spec: the nested effective spec; the schema's defaults without one."""
    found = [
        *_of_schema(schema, space),
        *_left_out(schema, space),
        *_outside(schema, space, spec or {}),
        *_empty(schema, space),
    ]
    order = list(dict.fromkeys(finding.kind for finding in found))
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.kind))


def _of_schema(schema: Schema, space: SearchSpace) -> Iterator[Finding]:
    """The reader's findings without the dependences that the space does keep, by an overlay's rule or as a share."""
    kept = {edge.child for edge in relations(schema)}
    kept |= {name for name, because in space.dropped if because.startswith("derived: ")}
    yield from (each for each in schema.findings if each.kind != "unenforced" or each.name not in kept)


def _left_out(schema: Schema, space: SearchSpace) -> Iterator[Finding]:
    """Keys that the schema calls searchable, and whose search would change nothing that is measured."""
    for name, because in space.dropped:
        kind = next((kind for start, kind in _KINDS.items() if because.startswith(start)), None)
        if kind is not None and name in schema.leaves and schema.leaves[name].search:
            yield Finding(name, kind, because)


def _outside(schema: Schema, space: SearchSpace, spec: Mapping[str, Any]) -> Iterator[Finding]:
    """Effective values that no draw can give: the first trial has them, and no other."""
    effective = dotted.merge(schema.default, spec)
    nearest = space.resolve(space.encode(effective)) if space.parameters else {}
    fixed = {rule.target for rule in space.rules if not rule.coordinates}
    for name, near in nearest.items():
        value = dotted.get(effective, name)
        if value is not None and name not in fixed and not _same(value, near):
            yield Finding(
                name, "default", f"its value {_text(value)} is outside the search, where {_text(near)} is next"
            )


def _empty(schema: Schema, space: SearchSpace) -> Iterator[Finding]:
    if space.parameters:
        return
    flagged = sum(leaf.search for leaf in schema.leaves.values())
    knobs = [
        leaf.name
        for leaf in schema.leaves.values()
        if leaf.kind == "float" and not leaf.disabled and _KNOB.search(leaf.name.rpartition(".")[2])
    ]
    ask = f", such as {', '.join(knobs[:3])}" if knobs else ""
    text = (
        f"no learning knob is searchable in this schema: of the {flagged} keys that it flags, none is left "
        f"(tier {space.tier or 'narrow'}); ask for one with automl.params{ask}"
    )
    yield Finding("automl_default_parameters", "empty", text)


def _same(a: Any, b: Any) -> bool:
    """Equal but for the last bits of floats, which a coordinate does not keep."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return math.isclose(a, b, rel_tol=1e-9) if is_number(a) and is_number(b) else bool(a == b)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
