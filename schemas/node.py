"""One plain node of a schema, its joining words worked out, to a Leaf. Knows no other key.

What cannot be read, or excludes itself, goes to the notes and out of the leaf.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from schemas import dotted
from schemas.combine import Variants, variants
from schemas.leaf import WORDS, Bounds, FindingKind, Leaf, Rule, is_number

Notes = list[tuple[FindingKind, str]]
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
_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "uniqueItems")
DEEPEST_LIST = 8
"""Lists within lists whose items are still looked at."""


def parse_rules(text: str) -> tuple[tuple[Rule, ...], str]:
    """A `math_cond` as rules, and what of it could not be read. Spacing does not matter: `>0`, `> 0.0 <= 1.0`."""
    rules, place = [], 0
    for match in _RULE.finditer(text):
        if text[place : match.start()].strip():
            break
        rules.append(Rule(match[1], None if match[2] == "depends_on" else float(match[2])))
        place = match.end()
    return tuple(rules), text[place:].strip()


def leaf(
    name: str, found: Variants, document: Mapping[str, Any], above: frozenset[str], notes: Notes, depth: int = 0
) -> Leaf:
    """One leaf of all that a node may be. above: see `combine.variants`."""
    notes += found.notes
    plain = [each for each in found.nodes if each.get("type") != "null"]
    if not found.nodes and not any(kind == "unreadable" for kind, _ in found.notes):
        notes.append(("contradiction", "nothing can be all that it is said to be"))
    listed = [each for each in plain if isinstance(each.get("enum"), list)]
    if len(plain) > 1 and len(listed) == len(plain) and len({str(each.get("type")) for each in plain}) == 1:
        plain = [{**plain[0], "enum": [choice for each in plain for choice in each["enum"]]}]
    if not plain:
        plain = [{key: value for key, value in each.items() if key != "type"} for each in found.nodes[:1] or [{}]]
    deeper = above | found.refs
    told: list[Notes] = [[] for _ in plain]
    made = [_leaf(name, each, document, deeper, note, depth) for each, note in zip(plain, told, strict=True)]
    # What one alternative cannot be, another may: only what is wrong with each is wrong.
    notes += [note for note in chain(*told) if note[0] != "contradiction" or all(note in each for each in told)]
    distinct = [each for place, each in enumerate(made) if each not in made[:place]]
    return distinct[0] if len(distinct) == 1 else replace(distinct[0], alternatives=tuple(distinct))


def _leaf(
    name: str, node: Mapping[str, Any], document: Mapping[str, Any], above: frozenset[str], notes: Notes, depth: int
) -> Leaf:
    root = document.get("default")
    has_default = "default" in node or dotted.has(root, name)
    default = node["default"] if "default" in node else dotted.get(root, name)
    kind = _kind(node, default)
    if kind == "unknown":
        notes.append(("unreadable", f"unknown type {short(node.get('type'))}"))
    kind, choices, weights = _choices(node, kind, default, notes)
    rules = _rules(node, notes)
    bounds, places = _bounds(node, kind, notes)
    pattern = node.get("pattern")
    if pattern is not None and not _compiles(pattern):
        notes.append(("unreadable", f"`pattern` {short(pattern)} is no regular expression"))
        pattern = None
    if "properties" in node and not isinstance(node["properties"], Mapping):
        notes.append(("unreadable", "`properties` is not a group of keys"))
    lone = kind == "list" and node.get("type") != "array" and choices is None and not places
    item = None
    if kind == "list" and isinstance(node.get("items"), Mapping) and depth < DEEPEST_LIST:
        inner = variants(node["items"], document, above)
        item = leaf(name, inner, {**document, "default": None}, above, notes, depth + 1)
    return Leaf(
        name=name,
        kind=kind,
        title=_text(node.get("title")),
        doc=_text(node.get("description")),
        default=default,
        has_default=has_default,
        **_tightened(bounds, rules)._asdict(),
        choices=choices,
        also=tuple(node["x_also"]) if isinstance(node.get("x_also"), list) else (),
        weights=weights,
        rules=rules,
        depends_on=_parents(node.get("depends_on"), notes),
        flag=_flag(node.get("automl_enabled")),
        popular=node.get("popular") is True,
        pattern=pattern,
        limits={key: int(node[key]) for key in _LIMITS if _is_limit(node.get(key))},
        lone=lone and not (isinstance(default, list) and any(not isinstance(each, str) for each in default)),
        item=item,
        places=places,
    )


def _kind(node: Mapping[str, Any], default: Any) -> str:
    """The type by name; without one by the choices, the keys of a type, or the default."""
    given = node.get("type")
    if isinstance(given, str):
        name = given.strip().lower()
        return KINDS.get(name, "list" if name.startswith("list_") else "unknown")
    if given is not None:
        return "unknown"
    if isinstance(node.get("enum"), list) and node["enum"]:
        return "categorical"
    told = (("items", "list"), ("additionalProperties", "collection"), ("pattern", "string"), ("minLength", "string"))
    kinds = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "collection"}
    by_key = next((kind for key, kind in told if key in node), "unknown")
    return by_key if by_key != "unknown" else kinds.get(type(default), "unknown")


def _choices(
    node: Mapping[str, Any], kind: str, default: Any, notes: Notes
) -> tuple[str, tuple[Any, ...] | None, tuple[float, ...] | None]:
    """(kind, choices, weights): the choices that the type allows; where it allows none, they tell the type."""
    enum = node.get("enum")
    if not isinstance(enum, list) or not enum:
        if enum is not None:
            notes.append(("unreadable", "`enum` is not a list of choices"))
        if node.get("option_weights") is not None:
            notes.append(("unreadable", "option_weights do not fit the choices; ignored"))
        return kind, None, None
    given = _weights(node.get("option_weights"), len(enum), notes)
    pairs: list[tuple[Any, float]] = []
    seen: set[tuple[bool, Any]] = set()
    if any(_is_endless(choice) for choice in enum):
        notes.append(("unreadable", "its choices that are no finite numbers are left out"))
    for choice, weight in zip(enum, given or [1.0] * len(enum), strict=True):
        clean = choice.strip() if isinstance(choice, str) else choice
        key = (isinstance(clean, bool), json.dumps(clean) if isinstance(clean, list | dict) else clean)
        if clean is not None and not _is_endless(clean) and key not in seen:
            seen.add(key)
            pairs.append((clean, float(weight)))
    if not pairs:
        notes.append(("unreadable", "`enum` has no choice that a value could be; ignored"))
        return kind, None, None
    if any(isinstance(each, str) and each != each.strip() for each in enum):
        notes.append(("unreadable", "its choices have spaces or line breaks around them; taken without"))
    several = isinstance(default, list) and not any(isinstance(each, list) for each in enum)
    if kind in ("string", "categorical") and several:
        kind = "list"
    fitting = [(_as_kind(choice, kind), weight) for choice, weight in pairs if _as_kind(choice, kind) is not None]
    if not fitting:
        notes.append(("contradiction", f"none of its choices is {WORDS[kind]}; its type is taken from them"))
        kind, fitting = "categorical", pairs
    elif len(fitting) < len(pairs):
        notes.append(("contradiction", f"not all of its choices are {WORDS[kind]}; the others are left out"))
    weights = tuple(weight for _, weight in fitting) if given is not None else ()
    return kind, tuple(choice for choice, _ in fitting), weights if sum(weights) > 0 else None


def _weights(given: Any, count: int, notes: Notes) -> list[float] | None:
    if given is None:
        return None
    sound = isinstance(given, list) and len(given) == count and all(is_number(each) and each >= 0 for each in given)
    if sound and 0 < sum(map(float, given)) < math.inf:
        return list(map(float, given))
    notes.append(("unreadable", "option_weights do not fit the choices; ignored"))
    return None


def _is_endless(choice: Any) -> bool:
    return isinstance(choice, int | float) and not isinstance(choice, bool) and not is_number(choice)


def _as_kind(choice: Any, kind: str) -> Any:
    """A choice as a value of the type, None when it is none."""
    if kind == "bool":
        return {"true": True, "false": False}.get(choice.lower()) if isinstance(choice, str) else (
            choice if isinstance(choice, bool) else None
        )  # fmt: skip
    if kind in ("int", "float"):
        return choice if is_number(choice) and (kind == "float" or float(choice).is_integer()) else None
    return choice if kind != "string" or isinstance(choice, str) else None


def _rules(node: Mapping[str, Any], notes: Notes) -> tuple[Rule, ...]:
    """`math_cond`, `multipleOf`, and a `not` of numbers."""
    given = node.get("math_cond")
    rules, rest = parse_rules(given) if isinstance(given, str) else ((), "")
    if rest or not isinstance(given, str | None):
        notes.append(("unreadable", f"unreadable math_cond {short(given)}"))
    step = node.get("multipleOf")
    if step is not None:
        if is_number(step) and step > 0:
            rules = (*rules, Rule("/", float(step)))
        else:
            notes.append(("unreadable", f"`multipleOf` {short(step)} is not a number above 0"))
    refused = node.get("not")
    if refused is not None:
        one = [refused["const"]] if isinstance(refused, Mapping) and "const" in refused else None
        several = refused.get("enum") if isinstance(refused, Mapping) else None
        values = one or (several if isinstance(several, list) else [])
        if values and all(map(is_number, values)):
            rules = (*rules, *(Rule("!=", float(value)) for value in values))
        else:
            notes.append(("unenforced", "`not` is passed over"))
    return tuple(rule for rule in rules if rule.rhs is None or math.isfinite(rule.rhs))


def _bounds(node: Mapping[str, Any], kind: str, notes: Notes) -> tuple[Bounds, tuple[Bounds, ...]]:
    """Of the value, and item by item of a list. A list of bounds of one number counts by its first."""
    lows = _side(node, "minimum", "exclusiveMinimum", 1, notes)
    highs = _side(node, "maximum", "exclusiveMaximum", -1, notes)
    unbounded = (None, False)
    pairs = list(zip_longest(lows, highs, fillvalue=unbounded)) or [(unbounded, unbounded)]
    found = tuple(Bounds(low[0], high[0], low[1], high[1]) for low, high in pairs)
    by_place = kind == "list" and any(isinstance(node.get(key), list) for key in ("minimum", "maximum"))
    return (Bounds(), found) if by_place else (found[0], ())


def _side(
    node: Mapping[str, Any], inclusive: str, exclusive: str, sign: int, notes: Notes
) -> list[tuple[float | None, bool]]:
    """(bound, open) of one side, one for each item where the bound is a list. sign: 1 for the low side."""
    closed, opened = node.get(inclusive), _number(exclusive, node.get(exclusive), sign, notes)
    found: list[tuple[float | None, bool]] = []
    for value in closed if isinstance(closed, list) else [closed]:
        bound = _number(inclusive, value, sign, notes)
        stricter = opened is not None and (bound is None or sign * opened >= sign * bound)
        found.append((opened, True) if stricter else (bound, False))
    return found


def _number(key: str, value: Any, sign: int, notes: Notes) -> float | None:
    """A bound; None where there is none. Infinity is no bound on its own side."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            notes.append(("unreadable", f"`{key}` {short(value)} is no number"))
            return None
        notes.append(("unreadable", f"`{key}` is the text {short(value)}; read as a number"))
        value = int(number) if number.is_integer() and "." not in value else number
    if value is None:
        return None
    if is_number(value):
        return value if isinstance(value, int) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        notes.append(("unreadable", f"`{key}` {short(value)} is no number"))
    elif sign * value > 0:
        notes.append(("contradiction", f"`{key}` is {'' if value > 0 else '-'}Infinity, which leaves nothing; ignored"))
    return None


def _tightened(bounds: Bounds, rules: Iterable[Rule]) -> Bounds:
    """Bounds with the terms of a `math_cond` that compare with a number."""
    low, high, open_low, open_high = bounds
    for op, rhs in rules:
        if rhs is None:
            continue
        if op in (">", ">=", "==") and (low is None or rhs > low or (rhs == low and op == ">")):
            low, open_low = rhs, op == ">"
        if op in ("<", "<=", "==") and (high is None or rhs < high or (rhs == high and op == "<")):
            high, open_high = rhs, op == "<"
    return Bounds(low, high, open_low, open_high)


def _parents(given: Any, notes: Notes) -> tuple[str, ...]:
    """Names between commas, or in a list."""
    named = given if isinstance(given, list) else [given] if given is not None else []
    if any(not isinstance(each, str) for each in named):
        notes.append(("unreadable", f"`depends_on` {short(given)} names no key"))
    parts = (part.strip() for each in named if isinstance(each, str) for part in each.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def texts(value: Any) -> list[str]:
    """The texts of a list, nothing of anything else."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def short(value: Any) -> str:
    """A value for a message, however large it is."""
    return reprlib.repr(value)


def _flag(value: Any) -> bool | None:
    words = {"true": True, "false": False}
    return value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def _is_limit(value: Any) -> bool:
    return value is True or (is_number(value) and value > 0 and float(value).is_integer())
