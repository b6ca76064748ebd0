"""Conditions on an effective spec, and the order that `depends_on` puts between keys. Knows no key by name.

A condition is data from an overlay, never code: `{equal: {train.optim.optimizer: SGD}}`, `{unset: some.path}`,
`{below: [key or number, key or number]}`, `{any_below: [key of a list, key or number]}`, `{default: key}`,
`{searched: parameter}`, `{all: [...]}`, `{any: [...]}`, `{not: ...}`, or the name of a fact.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas import dotted
from schemas.dialect import Schema

UNSET = (None, "", "???")
RELATIONS: Mapping[str, str] = {">": "above", ">=": "at_least", "<": "below", "<=": "at_most"}


@dataclass(kw_only=True)
class View:
    """What conditions can see: the effective spec, the schema's defaults, and what is searched so far."""

    spec: Mapping[str, Any]
    schema: Schema
    facts: Mapping[str, Any] = field(default_factory=dict)
    wanted: Set[str] = frozenset()
    """Spec keys that may be searched: their value is not known yet."""
    searched: set[str] = field(default_factory=set)
    """Names of parameters in the space so far."""

    def value(self, key: str) -> Any:
        """The effective value: the spec's, or the schema's default where the spec's is unset."""
        value = dotted.get(self.spec, key)
        return self.default(key) if value in UNSET else value

    def default(self, key: str) -> Any:
        leaf = self.schema.leaves.get(key)
        value = leaf.default if leaf is not None else dotted.get(self.schema.default, key)
        return None if value in UNSET else value


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
    return re.sub(r"\{([\w.]+)\}", lambda match: str(view.value(match[1])), text)


def _equal(rest: Mapping[str, Any], view: View) -> bool | None:
    ((key, wanted),) = rest.items()
    if key in view.wanted:
        return None
    return view.value(key) in (wanted if isinstance(wanted, list) else [wanted])


def _below(rest: list[Any], view: View) -> bool | None:
    low, high = (_number(each, view) for each in rest)
    return None if low is None or high is None else bool(low < high)


def _any_below(rest: list[Any], view: View) -> bool | None:
    values, high = view.value(rest[0]), _number(rest[1], view)
    return None if values is None or high is None else any(value < high for value in values)


def _number(given: Any, view: View) -> Any:
    if not isinstance(given, str):
        return given
    return None if given in view.wanted else view.value(given)


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
    "set": lambda key, view: view.value(key) is not None,
    "unset": lambda key, view: view.value(key) is None,
    "default": lambda key, view: view.value(key) == view.default(key),
    "below": _below,
    "any_below": _any_below,
    "searched": lambda name, view: name in view.searched,
    "not": _not,
    "all": _all,
    "any": _any,
}


class Relation(NamedTuple):
    """`child` has to be above (at_least, below, at_most) all of `parents`."""

    kind: str
    child: str
    parents: tuple[str, ...]


def relations(schema: Schema) -> list[Relation]:
    """What `math_cond` with `depends_on` demands, parents before children. An edge that would close a circle is left
    out; so is one to a key that does not exist."""
    found: dict[str, Relation] = {}
    for leaf in schema.leaves.values():
        kinds = [RELATIONS[rule.op] for rule in leaf.rules if rule.rhs is None and rule.op in RELATIONS]
        parents = tuple(name for name in leaf.depends_on if name in schema.leaves)
        if kinds and parents:
            found[leaf.name] = Relation(kinds[0], leaf.name, parents)
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
