"""Which keys might be searched: those of an overlay, those that the schema flags, those that the user names; and what
the user or the tier says against it. Knows no model, and no range of any key."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from schemas.dialect import Leaf, Schema
from search_spaces import overlays, ranges
from search_spaces.constraints import Relation

TIERS = ("narrow", "medium", "wide")
ON_REQUEST = "on request"
"""The tier of what is only searched when it is asked for by name."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user wants of the space. Names may be short (`lr`) where they are unique."""

    tier: str = "narrow"
    params: tuple[str, ...] | None = None
    """Exactly these; with a plus (`+lr_decay`) these and the tier's."""
    exclude: tuple[str, ...] = ()
    fix: Mapping[str, Any] = field(default_factory=dict)
    """Spec key -> the value it has in every trial."""
    ranges: Mapping[str, Any] = field(default_factory=dict)
    """Name -> `low:high` or `low:high:log`, inside the schema's bounds; a name given here is searched."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dimension that there might be."""

    name: str
    leaf: Leaf
    """Of the spec key that the dimension sets."""
    entry: Mapping[str, Any]
    """The overlay's words, or those of common.yaml."""
    asked: bool = False
    given: ranges.Range | None = None

    @property
    def shown(self) -> str:
        """The name under which it is reported when it is left out."""
        return self.leaf.name if self.leaf.search else self.name


def candidates(
    schema: Schema, overlay: Mapping[str, Any], choice: Choice, edges: Sequence[Relation]
) -> list[Candidate]:
    """The overlay's parameters, then what the schema calls searchable, then what only the user asks for."""
    following = derived(schema, overlay, edges)
    made: dict[str, Candidate] = {}
    asleep: dict[str, Candidate] = {}
    for name, entry in overlay.get("parameters", {}).items():
        leaf = schema.leaves.get(entry.get("target", name))
        if leaf is not None:
            where = asleep if entry.get("tier") == ON_REQUEST else made
            where[name] = Candidate(name=name, leaf=leaf, entry=entry)
    covered = {candidate.leaf.name for candidate in made.values()}
    for leaf in schema.leaves.values():
        if leaf.search and leaf.name not in covered and leaf.name not in following:
            known = _common(leaf, schema, edges)
            made[known.name] = known

    by_name = by_names(made.values())
    for text, given in [*((name, None) for name in choice.params or ()), *choice.ranges.items()]:
        name = full_name(text.removeprefix("+"), [*by_name, *schema.leaves])
        if name in following:
            continue
        leaf = schema.leaves.get(name)
        candidate = by_name.get(name)
        parsed = ranges.parse_range(name, given) if given is not None else None
        if candidate is None or (parsed is not None and candidate.name != name):
            # A range of a spec key is meant as it stands: it takes the place of a coordinate for that key.
            assert leaf is not None
            if leaf.disabled:
                raise ValueError(f"`{name}` cannot be searched: the schema lists it in automl_disabled_parameters.")
            made = {key: each for key, each in made.items() if each.leaf.name != name}
            if candidate is not None:
                candidate = Candidate(name=name, leaf=leaf, entry=_needs_only(candidate))
            else:
                candidate = asleep.get(name) or _common(leaf, schema, edges, plain=parsed is not None)
        made[candidate.name] = replace(candidate, asked=True, given=parsed or candidate.given)
        by_name = by_names(made.values())
    return list(made.values())


def _needs_only(candidate: Candidate) -> Mapping[str, Any]:
    return {key: candidate.entry[key] for key in ("needs",) if key in candidate.entry}


def _common(leaf: Leaf, schema: Schema, edges: Sequence[Relation], *, plain: bool = False) -> Candidate:
    """A key of which only its name and its neighbours tell something."""
    if (action := overlays.other_action(leaf, schema)) is not None:
        return Candidate(name=leaf.name, leaf=leaf, entry={"never": f"dead: {action} is an action of its own"})
    entry = overlays.entry(leaf, schema)
    tied = any(leaf.name in (edge.child, *edge.parents) for edge in edges)
    if plain or tied or leaf.choices is not None or any(rule.op in "/^!=" for rule in leaf.rules):
        # A grid, a list of choices or a relation of the schema leaves no room for a rule of ours.
        entry = {key: value for key, value in entry.items() if key not in ("rule", "of", "by", "cases")}
    name = f"{leaf.name}/{entry['by']}" if "rule" in entry else leaf.name
    general: list[Any] = overlays.entry(leaf, schema, "needs").get("needs", [])
    return Candidate(name=name, leaf=leaf, entry={**entry, "needs": [*entry.get("needs", []), *general]})


def derived(schema: Schema, overlay: Mapping[str, Any], edges: Sequence[Relation]) -> dict[str, Mapping[str, Any]]:
    """What follows from other values by a rule: spec key -> entry. A relation that the schema states comes first."""
    found = {name: entry for name, entry in overlay.get("derived", {}).items() if name in schema.leaves}
    related = {edge.child for edge in edges}
    for leaf in schema.leaves.values():
        if leaf.name not in found and leaf.name not in related and leaf.kind == "int":
            entry = overlays.entry(leaf, schema, "derived")
            if entry and leaf.choices is None and leaf.multiple is None and leaf.power is None and not leaf.excluded:
                found[leaf.name] = entry
    return found


def by_names(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    """By the name of the dimension and by the spec key that it sets."""
    given = list(candidates)
    by_target = {candidate.leaf.name: candidate for candidate in given}
    return {**by_target, **{candidate.name: candidate for candidate in given}}


def full_name(text: str, known: Iterable[str]) -> str:
    """The full name that `text` stands for: itself, or the only one that ends with it."""
    names = list(dict.fromkeys(known))
    ends = [name for name in names if name.endswith(f".{text}")]
    if text in names or len(ends) == 1:
        return text if text in names else ends[0]
    if ends:
        raise ValueError(f"`{text}` is not one name but {len(ends)}: {', '.join(sorted(ends))}; write it in full.")
    near = get_close_matches(text, [*names, *(name.rpartition(".")[2] for name in names)], n=1)
    raise ValueError(f"unknown parameter `{text}`" + (f"; did you mean `{near[0]}`?" if near else "."))


def short_name(name: str, known: Iterable[str]) -> str:
    """The shortest end of a name that stands for it alone."""
    others = [f".{each}" for each in known if each != name]
    parts = name.split(".")
    ends = (".".join(parts[place:]) for place in reversed(range(len(parts))))
    return next((end for end in ends if not any(each.endswith(f".{end}") for each in others)), name)


def unwanted(
    candidate: Candidate, choice: Choice, fixed: Mapping[str, Any], excluded: set[str], schema: Schema
) -> str | None:
    """Why the user or the tier leaves a dimension out, before any look at the spec."""
    entry, target = candidate.entry, candidate.leaf.name
    if target in fixed:
        return f"fixed to {fixed[target]} by you"
    if {candidate.name, target} & excluded:
        return "excluded by you"
    if "never" in entry:
        return str(entry["never"])
    if candidate.asked:
        return None
    if choice.params is not None and any(not name.startswith("+") for name in choice.params):
        return "not among automl.params"
    tier = entry.get("tier", "narrow")
    if TIERS.index(tier) > TIERS.index(choice.tier):
        name = short_name(candidate.name, schema.leaves)
        return (
            f"{entry.get('because', 'of a wider tier')}; ask for it with automl.params=[+{name}] or automl.tier={tier}"
        )
    return None
