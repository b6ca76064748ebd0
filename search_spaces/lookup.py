"""One key of a schema, and all that a search makes of it: `ddetr explain`. Derives nothing and prints nothing."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from schemas import dotted
from schemas.dialect import Leaf, Schema
from search_spaces import overlays
from search_spaces.candidates import full_name, short_name
from search_spaces.constraints import keys
from search_spaces.space import Parameter, Rule, SearchSpace


class Entry(NamedTuple):
    name: str
    """The spec key in full; of a coordinate, the key that it sets."""
    doc: str
    kind: str
    default: Any
    value: Any
    """In the effective spec."""
    bounds: str
    """The schema's, in words; empty when anything goes."""
    depends_on: tuple[str, ...]
    """Keys that decide its value, its range or whether it matters."""
    dependents: tuple[str, ...]
    """Keys of which this one decides such things."""
    searched: bool
    parameters: tuple[Parameter, ...]
    """The dimensions that set it: itself, or coordinates. Each has its scale, range and origin."""
    rule: str
    """How its value follows from the coordinates, in words; empty where it is drawn as it stands."""
    because: str
    """Why it is, or is not, searched."""


def look_up(name: str, schema: Schema, space: SearchSpace, spec: Mapping[str, Any]) -> Entry:
    """What is known of a key by its full name, its unique ending (`lr`), or the name of a coordinate. spec: the nested
    effective spec. ValueError, with the nearest name, for one that there is not."""
    targets = {coordinate: rule.target for rule in space.rules for coordinate in rule.coordinates}
    found = full_name(name, [*schema.leaves, *targets])
    key = targets.get(found, found)
    leaf = schema.leaves[key]
    rule = next((rule for rule in space.rules if rule.target == key), None)
    dimensions = rule.coordinates if rule else (key,)
    parameters = tuple(parameter for parameter in space.parameters if parameter.name in dimensions)
    ties = set(_ties(schema, space))
    value = dotted.get(spec, key)
    return Entry(
        name=key,
        doc=leaf.doc or leaf.title,
        kind=leaf.kind,
        default=leaf.default,
        value=leaf.default if value is None else value,
        bounds=leaf.bounds(),
        depends_on=tuple(sorted(parent for child, parent in ties if child == key)),
        dependents=tuple(sorted(child for child, parent in ties if parent == key)),
        searched=bool(parameters),
        parameters=parameters,
        rule=_in_words(rule) if rule else "",
        because=_because(leaf, schema, space, parameters),
    )


def _because(leaf: Leaf, schema: Schema, space: SearchSpace, parameters: tuple[Parameter, ...]) -> str:
    if parameters:
        return "the schema calls it searchable" if leaf.search else "the overlay or you ask for it"
    reason = next((because for name, because in space.dropped if name == leaf.name), None)
    if reason is not None:
        return reason
    if leaf.disabled:
        return "the schema lists it in automl_disabled_parameters"
    ask = f"; ask for it with automl.params=[+{short_name(leaf.name, schema.leaves)}]"
    return "the schema does not call it searchable" + (ask if leaf.kind not in ("string", "list", "collection") else "")


def _in_words(rule: Rule) -> str:
    of, target = " and ".join(rule.of), rule.target
    words = {
        "ratio": f"{target} is the drawn ratio times {of}, inside its bounds",
        "fraction": f"{target} is the drawn fraction of {of}, a whole number",
        "milestone": f"{target} is one epoch: the drawn fraction of {of}",
        "below_product": f"{target} is the spec's value, kept below the product of {of}",
        "capped": f"{target} is the spec's value, kept at most {of}",
        "rising": f"{target} is a list of rising numbers, each a drawn fraction of what those before it leave",
        "items": f"{target} is the list of the drawn numbers",
        "pick": f"{target} is the drawn one of {', '.join(map(str, rule.choices))}",
    }
    return words.get(rule.kind, f"{target} is the drawn fraction of what is left {rule.kind.replace('_', ' ')} {of}")


def _ties(schema: Schema, space: SearchSpace) -> Iterator[tuple[str, str]]:
    """(child, parent): what the schema states, what the rules of the space read, what the overlays make a condition."""
    known = schema.leaves
    for leaf in known.values():
        yield from ((leaf.name, parent) for parent in leaf.depends_on if parent in known)
    for rule in space.rules:
        yield from ((rule.target, key) for key in rule.of if key != rule.target)
    overlay = overlays.overlay(str(schema.origin.get("network_arch", ""))) or {}
    for name, entry in overlay.get("parameters", {}).items():
        child = entry.get("target", name)
        yield from ((child, key) for key in _read(entry, overlay.get("facts", {})) if key in known and child in known)
    for leaf in known.values():
        if leaf.search and not overlay:
            yield from ((leaf.name, key) for key in _read(overlays.entry(leaf, schema), {}) if key in known)


def _read(entry: Mapping[str, Any], facts: Mapping[str, Any]) -> set[str]:
    """The keys in an entry's conditions, those behind a fact's name included."""
    conditions = [part["when"] for word in ("needs", "cases") for part in entry.get(word, ())]
    found: set[str] = set()
    waiting = [*conditions, entry.get("of", []), entry.get("at_least", []), entry.get("at_most", [])]
    while waiting:
        for key in _names(waiting.pop()):
            if key in facts:
                waiting.append(facts[key])
            found.add(key)
    return found


def _names(condition: Any) -> list[str]:
    """Every text in a condition, keys of mappings included."""
    if isinstance(condition, Mapping):
        return [name for key, value in condition.items() for name in (str(key), *_names(value))]
    return [name for part in condition for name in _names(part)] if isinstance(condition, list) else keys(condition)
