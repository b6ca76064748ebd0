"""A nested spec against packaged schemas with `jsonschema`: types, bounds, enums and unknown keys, all at once.

Accepts what `schemas.structure` accepts (quoted numbers, "TRUE", null and '' and `???` as unset). Rules between keys
are not its business.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from schemas.dialect import Schema
from schemas.leaf import NUMERIC, Bounds, Leaf, is_number, powers, same
from schemas.structure import MANDATORY, shown

_TYPES: Mapping[str, str] = {
    "int": "integer", "float": "number", "bool": "boolean", "string": "string", "list": "array", "collection": "object",
}  # fmt: skip
_PLACE = re.compile(r"(.+)\[(\d{1,4})\]")
MOST_PLACES = 64
"""Items of a list that may have a key of their own (`weight[1]`)."""


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
        if owner is None and any("" in schema.open_groups for schema in schemas.values()):
            continue
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
    root: dict[str, Any] = _group("" in schema.open_groups)
    nodes = {"": root}
    for group in sorted(schema.groups):
        parent, _, key = group.rpartition(".")
        nodes[group] = nodes[parent]["properties"][key] = _group(group in schema.open_groups)
    for name, leaf in schema.leaves.items():
        parent, _, key = name.rpartition(".")
        nodes[parent]["properties"][key] = _leaf(leaf)
        if (place := _PLACE.fullmatch(key)) and int(place[2]) < MOST_PLACES:
            _put_item(nodes[parent]["properties"].setdefault(place[1], {}), int(place[2]), _leaf(leaf))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root}


def _put_item(node: dict[str, Any], place: int, rules: Mapping[str, Any]) -> None:
    """`weight[1]` among the keys is a rule for item 1 of the list `weight`."""
    items: list[Any] = node.setdefault("prefixItems", [])
    items += [node.get("items", {}) for _ in range(len(items), place + 1)]
    items[place] = {"allOf": [items[place], rules]} if items[place] else rules


def _group(is_open: bool) -> dict[str, Any]:
    return {"properties": {}} if is_open else {
        "type": ["object", "null"], "properties": {}, "additionalProperties": False
    }  # fmt: skip


def _leaf(leaf: Leaf) -> dict[str, Any]:
    if leaf.alternatives:
        return {"anyOf": list(map(_leaf, leaf.alternatives))}
    return {"anyOf": [{"enum": list(leaf.also)}, _ruled(leaf)]} if leaf.also else _ruled(leaf)


def _ruled(leaf: Leaf) -> dict[str, Any]:
    node: dict[str, Any] = {}
    if leaf.kind in _TYPES:
        node["type"] = [_TYPES[leaf.kind], *(["string"] if leaf.lone else []), "null"]
    if leaf.kind in NUMERIC:
        node |= _numeric(leaf.interval)
        if leaf.multiple is not None:
            node["multipleOf"] = leaf.multiple
        barred = [{"enum": list(leaf.excluded)}] if leaf.excluded else []
        # A power of two is no keyword of JSON Schema; a number that is none of the 63 breaks the rule.
        powers_only = [{"type": "number", "not": {"enum": powers(leaf.power)}}] if leaf.power else []
        if barred or powers_only:
            node["not"] = {"anyOf": [*barred, *powers_only]}
    if leaf.kind == "list":
        if leaf.item is not None:
            node["items"] = _leaf(leaf.item)
        if leaf.places:
            node["prefixItems"] = [_numeric(bounds) for bounds in leaf.places]
    if leaf.choices is not None and leaf.whole:
        node["enum"] = [*leaf.choices, None]
    elif leaf.choices is not None:
        node["items"] = {**node.get("items", {}), "enum": list(leaf.choices)}
    if leaf.pattern is not None:
        node["pattern"] = leaf.pattern
    limits = {key: bool(limit) if key == "uniqueItems" else limit for key, limit in leaf.limits.items()}
    return {**node, **limits}


def _numeric(bounds: Bounds) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if bounds.low is not None:
        found["exclusiveMinimum" if bounds.open_low else "minimum"] = bounds.low
    if bounds.high is not None:
        found["exclusiveMaximum" if bounds.open_high else "maximum"] = bounds.high
    return found


def _is_finite(checker: TypeChecker, value: Any) -> bool:
    return is_number(value)


def _is_whole(checker: TypeChecker, value: Any) -> bool:
    return is_number(value) and float(value).is_integer()


_Validator: type[Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_finite, "integer": _is_whole}),
)
"""NaN and the infinities are YAML, but no JSON and no value of a spec."""


@functools.lru_cache(maxsize=256)
def validator(schema: Schema) -> Validator:
    """The compiled translation, made once for each schema that is read."""
    return _Validator(to_json_schema(schema))


def _errors(schema: Schema, ready: Mapping[str, Any]) -> list[ValidationError]:
    return sorted(validator(schema).iter_errors(ready), key=lambda error: error.json_path)


def _sections(schema: Schema) -> set[str]:
    names = {name.split(".", 1)[0] for name in (*schema.leaves, *schema.groups)}
    return names | {place[1] for name in names if (place := _PLACE.fullmatch(name))}


def _ready(given: Mapping[str, Any], schema: Schema, path: str = "") -> dict[str, Any]:
    """A copy without unset values and defaults, numbers and flags out of their quotes.

    A default that its own schema forbids is a finding about the schema (`schemas.lint`): a spec that holds it, and
    every template does, is not to blame."""
    ready: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{path}.{key}" if path else str(key)
        leaf = schema.leaves.get(name)
        if value is None or value == MANDATORY or (leaf is not None and leaf.has_default and same(value, leaf.default)):
            continue
        if isinstance(value, Mapping) and name in schema.groups:
            ready[str(key)] = _ready(value, schema, name)
        elif leaf is None:
            ready[str(key)] = value
        elif not (value == "" and leaf.kind == "string" and leaf.default in ("", None, MANDATORY)):
            ready[str(key)] = _coerced(value, leaf)
    return ready


def _coerced(value: Any, leaf: Leaf) -> Any:
    if leaf.problem(value) is None:
        return value
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
    steps = [str(step) for step in error.absolute_path]
    name, value = ".".join(steps), _at(given, error.absolute_path)
    if error.validator == "additionalProperties":
        known = sorted(_members(schema, name))
        unknown = [key for key in value if key not in known] if isinstance(value, Mapping) else []
        return [Problem(f"{name}.{key}", _unknown(f"{name}.{key}", known, schemas)) for key in unknown]
    leaf = _leaf_at(schema, steps)
    if leaf is None:
        return [Problem(name, f"`{name}` must be a group of keys, but is {shown(name, value)}.")]
    rule = leaf.described() if error.validator in ("type", "anyOf") else leaf.bounds()
    told = f"`{name}` must be {rule or leaf.described()}, but is {shown(name, value)}"
    return [Problem(name, f"{told}{_near_choice(value, leaf)}")]


def _leaf_at(schema: Schema, steps: list[str]) -> Leaf | None:
    """The leaf that a path leads to, or to an item of which it leads."""
    for length in range(len(steps), 0, -1):
        *head, last = steps[:length]
        leaf = schema.leaves.get(".".join([*head, last])) or schema.leaves.get(f"{'.'.join(head)}[{last}]")
        if leaf is not None:
            for step in steps[length:]:
                leaf = leaf.at(int(step) if step.isdecimal() else 0)
            return leaf
    return None


def _at(given: Any, path: Iterable[str | int]) -> Any:
    for step in path:
        given = given[step]
    return given


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
