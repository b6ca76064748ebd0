"""Conditions on an effective spec, and the order that `depends_on` puts between keys. Knows no key by name.

A condition is data from an overlay, never code: `{equal: {train.optim.optimizer: SGD}}`, `{like: {key: a pattern}}`,
`{unset: some.path}`, `{below: [term, term]}`, `{any_below: [key of a list, term]}`, `{default: key}`,
`{searched: parameter}`, `{known: term}`, `{all: [...]}`, `{any: [...]}`, `{not: ...}`, or the name of a fact.
A term is a number, a key, `data.` and a fact of the training data, `{largest: key of a list}`, `{times: [...]}` or
`{over: [term, term]}`. A condition on what is not known (a key that is searched, data that nobody looked at, a relative
that the schema lacks) is neither true nor false.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas import dotted
from schemas.dialect import Leaf, Schema
from search_spaces.space import is_number

UNSET = (None, "", "???")
RELATIONS: Mapping[str, str] = {">": "above", ">=": "at_least", "<": "below", "<=": "at_most"}
DATA, RELATIVE = "data.", "~"


@dataclass(kw_only=True)
class View:
    """What conditions can see: the effective spec, the schema's defaults, and what is searched so far."""

    spec: Mapping[str, Any]
    schema: Schema
    facts: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, float] = field(default_factory=dict)
    """Facts of the training data; those that are absent are unknown."""
    wanted: Set[str] = frozenset()
    """Spec keys that may be searched: their value is not known yet."""
    searched: set[str] = field(default_factory=set)
    """Names of parameters in the space so far."""

    def value(self, key: str) -> Any:
        """The effective value: the spec's, or the schema's default where the spec's is unset. None where unknown."""
        if key.startswith(DATA):
            return self.data.get(key.removeprefix(DATA))
        value = dotted.get(self.spec, key)
        return self.default(key) if value in UNSET else value

    def default(self, key: str) -> Any:
        leaf = self.schema.leaves.get(key)
        value = leaf.default if leaf is not None else dotted.get(self.schema.default, key)
        return None if value in UNSET else value

    def unknown(self, key: str) -> bool:
        """Whether nothing can be said of a key yet."""
        if key.startswith(DATA):
            return key.removeprefix(DATA) not in self.data
        return key in self.wanted or key.startswith(RELATIVE)

    def possible(self, key: str) -> list[Any]:
        """The values that a key may have: its choices where it is searched, else the effective one. Empty: any."""
        if not self.unknown(key):
            return [self.value(key)]
        leaf = self.schema.leaves.get(key)
        return list(leaf.choices or ()) if leaf is not None else []


def holds(condition: Any, view: View) -> bool | None:
    """Whether a condition is true; None when it depends on a key that is searched."""
    if isinstance(condition, str):
        if condition not in view.facts:
            raise ValueError(f"an overlay may only name its own facts, but names {condition!r}.")
        return holds(view.facts[condition], view)
    if not isinstance(condition, Mapping) or len(condition) != 1:
        raise ValueError(f"a condition has one key, but is {condition!r}.")
    ((word, rest),) = condition.items()
    if word not in _WORDS:
        raise ValueError(f"a condition is one of {', '.join(_WORDS)}, but is {word!r}.")
    return _WORDS[word](rest, view)


def explain(text: str, view: View) -> str:
    """`text` with each `{some.key}` replaced by its effective value."""
    return re.sub(r"\{([~\w.]+)\}", lambda match: str(view.value(match[1])), text)


def number(term: Any, view: View) -> float | None:
    """The value of a term; None where it is unknown or no number."""
    if isinstance(term, str):
        value = None if view.unknown(term) else view.value(term)
        return value if is_number(value) else None
    if not isinstance(term, Mapping):
        return term if is_number(term) else None
    ((word, rest),) = term.items()
    if word == "largest":
        items = None if view.unknown(rest) else view.value(rest)
        return max(items) if isinstance(items, list | tuple) and items and all(map(is_number, items)) else None
    if word not in ("times", "over"):
        raise ValueError(f"a term is a number, a key, largest, times or over, but is {word!r}.")
    parts = [number(each, view) for each in rest]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if word == "times":
        return math.prod(known)
    return known[0] / known[1] if known[1] else None


def keys(term: Any) -> list[str]:
    """The keys that a term reads."""
    if isinstance(term, str):
        return [term]
    parts = list(term.values()) if isinstance(term, Mapping) else term if isinstance(term, list) else []
    return [key for part in parts for key in keys(part)]


def _equal(rest: Mapping[str, Any], view: View) -> bool | None:
    ((key, wanted),) = rest.items()
    allowed = wanted if isinstance(wanted, list) else [wanted]
    return _among([value in allowed for value in view.possible(key)])


def _like(rest: Mapping[str, str], view: View) -> bool | None:
    """The whole value fits a regular expression, upper and lower case alike."""
    ((key, pattern),) = rest.items()
    values = view.possible(key)
    if None in values:
        return None
    return _among([re.fullmatch(pattern, str(value), re.IGNORECASE) is not None for value in values])


def _among(answers: list[bool]) -> bool | None:
    """True or false where all possible values agree."""
    return answers[0] if len(set(answers)) == 1 else None


def _below(rest: list[Any], view: View) -> bool | None:
    low, high = (number(each, view) for each in rest)
    return None if low is None or high is None else bool(low < high)


def _any_below(rest: list[Any], view: View) -> bool | None:
    values, high = None if view.unknown(rest[0]) else view.value(rest[0]), number(rest[1], view)
    if not isinstance(values, list | tuple) or high is None:
        return None
    return any(is_number(value) and value < high for value in values)


def _set(key: str, view: View) -> bool | None:
    return None if key.startswith(RELATIVE) else view.value(key) is not None


def _not(rest: Any, view: View) -> bool | None:
    inner = holds(rest, view)
    return None if inner is None else not inner


def _all(rest: Iterable[Any], view: View) -> bool | None:
    inner = [holds(each, view) for each in rest]
    return False if False in inner else None if None in inner else True


def _any(rest: Iterable[Any], view: View) -> bool | None:
    inner = [holds(each, view) for each in rest]
    return True if True in inner else None if None in inner else False


_WORDS: Mapping[str, Callable[[Any, View], bool | None]] = {
    "equal": _equal,
    "like": _like,
    "set": _set,
    "unset": lambda key, view: _not({"set": key}, view),
    "known": lambda term, view: number(term, view) is not None,
    "default": lambda key, view: view.value(key) == view.default(key),
    "below": _below,
    "any_below": _any_below,
    "searched": lambda name, view: name in view.searched,
    "not": _not,
    "all": _all,
    "any": _any,
}


class Relation(NamedTuple):
    """`child` has to be above (at_least, below, at_most) `factor` times each of `parents`."""

    kind: str
    child: str
    parents: tuple[str, ...]
    factor: float = 1.0


def relations(schema: Schema) -> list[Relation]:
    """What `math_cond` with `depends_on` demands, parents before children. An edge that would close a circle is left
    out; so is one to a key that does not exist."""
    found: dict[str, Relation] = {}
    for leaf in schema.leaves.values():
        if relation := _relation(leaf, schema):
            found[leaf.name] = relation
    ordered: list[Relation] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done or name not in found:
            return
        relation = found[name]
        free = tuple(parent for parent in relation.parents if parent not in (*path, name))
        for parent in free:
            visit(parent, (*path, name))
        if name not in done and free:
            ordered.append(relation._replace(parents=free))
        done.add(name)

    for name in found:
        visit(name, ())
    return ordered


def _relation(leaf: Leaf, schema: Schema) -> Relation | None:
    parents = tuple(name for name in leaf.depends_on if name in schema.leaves)
    if not parents:
        return None
    for rule in leaf.rules:
        if rule.rhs is None and rule.op in RELATIONS:
            return Relation(RELATIONS[rule.op], leaf.name, parents)
    for rule in leaf.rules if all(rule.rhs is not None for rule in leaf.rules) else ():
        if rule.op == "/" and rule.rhs and rule.rhs >= 1:  # a share of the other: warm-up, at most half of the epochs
            return Relation("at_most", leaf.name, parents, 1 / rule.rhs)
    return None
