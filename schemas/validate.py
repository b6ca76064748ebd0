"""A nested spec against packaged schemas with `jsonschema`: types, bounds, enums and unknown keys, all at once.

Accepts what `schemas.structure` accepts (quoted numbers, "TRUE", null and '' and `???` as unset). Rules between keys
are not its business.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, ValidationError

from schemas import dotted
from schemas.dialect import Leaf, Schema
from schemas.structure import MANDATORY

_TYPES: Mapping[str, list[str]] = {
    "int": ["integer"], "float": ["number"], "bool": ["boolean"], "string": ["string"],
    "list": ["array", "string"],  # one name may stand for a list of one; `structure` knows where
    "collection": ["object"],
}  # fmt: skip
_WORDS: Mapping[str, str] = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "collection": "a group of keys",
}  # fmt: skip


class Problem(NamedTuple):
    name: str
    """Dotted name of the key."""
    text: str
    """The rule, then the value; a sentence."""


def check(given: Mapping[str, Any], schemas: Mapping[str, Schema]) -> list[Problem]:
    """Every problem of a spec. schemas: action -> its schema, the one that is run first; a top-level section that only
    another action has is checked against that action's schema."""
    problems: list[Problem] = []
    owners: dict[str, list[str]] = {}
    for section in given:
        owner = next((action for action, schema in schemas.items() if section in _sections(schema)), None)
        if owner is None:
            known = sorted({name for schema in schemas.values() for name in _sections(schema)})
            problems.append(Problem(str(section), _unknown(str(section), known, schemas.values())))
        else:
            owners.setdefault(owner, []).append(section)
    for action, sections in owners.items():
        schema = schemas[action]
        ready = _ready({section: given[section] for section in sections}, schema)
        for error in _errors(schema, ready):
            problems += _explain(error, schema, given, schemas.values())
    first = {problem.name: problem for problem in reversed(problems)}  # one key, one problem
    return [problem for problem in problems if first[problem.name] is problem]


def to_json_schema(schema: Schema) -> dict[str, Any]:
    """The schema in JSON Schema draft 2020-12. `required` is left out: a spec may omit anything that has a default."""
    root: dict[str, Any] = _group()
    nodes = {"": root}
    for group in sorted(schema.groups):
        parent, _, key = group.rpartition(".")
        nodes[group] = nodes[parent]["properties"][key] = _group()
    for name, leaf in schema.leaves.items():
        parent, _, key = name.rpartition(".")
        nodes[parent]["properties"][key] = _leaf(leaf)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root}


def _group() -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": {}, "additionalProperties": False}


def _leaf(leaf: Leaf) -> dict[str, Any]:
    node: dict[str, Any] = {}
    if leaf.kind in _TYPES:
        node["type"] = [*_TYPES[leaf.kind], "null"]
    if leaf.choices is not None:
        node["enum"] = [*leaf.choices, None]
    if leaf.kind in ("int", "float"):
        for bound, is_open, closed, opened in (
            (leaf.low, leaf.open_low, "minimum", "exclusiveMinimum"),
            (leaf.high, leaf.open_high, "maximum", "exclusiveMaximum"),
        ):
            if bound is not None:
                node[opened if is_open else closed] = bound
        if leaf.multiple is not None:
            node["multipleOf"] = leaf.multiple
        if leaf.excluded:
            node["not"] = {"enum": list(leaf.excluded)}
    if leaf.pattern is not None:
        node["pattern"] = leaf.pattern
    return node


def _errors(schema: Schema, ready: Mapping[str, Any]) -> list[ValidationError]:
    return sorted(Draft202012Validator(to_json_schema(schema)).iter_errors(ready), key=lambda error: error.json_path)


def _sections(schema: Schema) -> set[str]:
    return {name.split(".", 1)[0] for name in (*schema.leaves, *schema.groups)}


def _ready(given: Mapping[str, Any], schema: Schema, path: str = "") -> dict[str, Any]:
    """A copy without unset values, numbers and flags out of their quotes."""
    ready: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{path}.{key}" if path else str(key)
        leaf = schema.leaves.get(name)
        if value is None or value == MANDATORY:
            continue
        if isinstance(value, Mapping) and name in schema.groups:
            ready[str(key)] = _ready(value, schema, name)
        elif leaf is None:
            ready[str(key)] = value
        elif not (value == "" and leaf.kind == "string" and leaf.default in ("", None, MANDATORY)):
            ready[str(key)] = _coerced(value, leaf)
    return ready


def _coerced(value: Any, leaf: Leaf) -> Any:
    numeric = leaf.kind in ("int", "float") or (
        leaf.kind == "ordered" and leaf.choices is not None and not any(isinstance(each, str) for each in leaf.choices)
    )
    if numeric and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    if leaf.kind == "bool" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    words = leaf.kind == "categorical" and all(isinstance(each, str) for each in leaf.choices or ())
    textual = leaf.kind == "string" or words
    if textual and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _explain(
    error: ValidationError, schema: Schema, given: Mapping[str, Any], schemas: Iterable[Schema]
) -> list[Problem]:
    """One sentence for one `jsonschema` error; several for several unknown keys of a group."""
    name = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = sorted(_members(schema, name))
        unknown = [key for key in dotted.get(given, name, {}) if key not in known]
        return [Problem(f"{name}.{key}", _unknown(f"{name}.{key}", known, schemas)) for key in unknown]
    leaf = schema.leaves.get(name)
    value = dotted.get(given, name)
    if leaf is None:
        return [Problem(name, f"`{name}` must be a group of keys, but is {value!r}.")]
    rule = leaf.bounds()
    if error.validator == "type":
        rule = _WORDS[leaf.kind] + (f" {rule}" if rule and not leaf.choices else "")
    elif error.validator == "pattern":
        rule = f"text that fits {leaf.pattern}"
    return [Problem(name, f"`{name}` must be {rule}, but is {value!r}{_near_choice(value, leaf)}")]


def _members(schema: Schema, group: str) -> set[str]:
    inside = [name for name in (*schema.leaves, *schema.groups) if name.startswith(f"{group}.")]
    return {name[len(group) + 1 :].split(".", 1)[0] for name in inside}


def _near_choice(value: Any, leaf: Leaf) -> str:
    choices = {str(each).lower(): str(each) for each in leaf.choices or ()}
    near = get_close_matches(str(value).lower(), list(choices), n=1)
    return f"; did you mean `{choices[near[0]]}`?" if near else "."


def _unknown(name: str, siblings: list[str], schemas: Iterable[Schema]) -> str:
    """The nearest sibling; else the same last name elsewhere; else what is known here."""
    key = name.rpartition(".")[2]
    if any(name in schema.leaves or name in schema.groups for schema in schemas):
        # `train.optim.lr: 1e-4` in a file: the dotted form is for the command line.
        return f"unknown key `{name}`: a file has groups in place of the dots, each nested in the one before."
    near = get_close_matches(key, siblings, n=1)
    if near:
        head = name[: len(name) - len(key)]
        return f"unknown key `{name}`; did you mean `{head}{near[0]}`?"
    everywhere = sorted({leaf for schema in schemas for leaf in (*schema.leaves, *schema.groups)})
    same = [leaf for leaf in everywhere if leaf.rpartition(".")[2] == key]
    if not same:
        last_names = {leaf.rpartition(".")[2]: leaf for leaf in everywhere}
        same = [last_names[each] for each in get_close_matches(key, list(last_names), n=1, cutoff=0.75)]
    if same:
        return f"unknown key `{name}`; did you mean `{same[0]}`?"
    return f"unknown key `{name}`; known keys here: {', '.join(siblings)}."
