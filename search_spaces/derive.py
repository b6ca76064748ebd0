"""Schema, effective spec and overlay to the space worth searching, with a reason for everything left out.

Knows no model: what is known of one stands in its overlay. Changes nothing, draws nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from schemas import dotted
from schemas.dialect import Leaf, Schema, read_schema
from search_spaces import overlays, ranges
from search_spaces.constraints import UNSET, View, explain, holds, relations
from search_spaces.relate import relate
from search_spaces.space import Dropped, Parameter, Rule, SearchSpace, beyond

TIERS = ("narrow", "medium", "wide")


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
class _Candidate:
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


def derive(
    schema: Mapping[str, Any] | Schema,
    spec: Mapping[str, Any],
    overlay: Mapping[str, Any] | None = None,
    choice: Choice | None = None,
) -> SearchSpace:
    """The space of one run.

    schema: a schema document, or one already read; spec: the nested effective spec (what is missing or unset has the
    schema's default); overlay: see `overlays.overlay`. ValueError for a choice that the schema does not allow.
    """
    read = schema if isinstance(schema, Schema) else read_schema(schema)
    overlay, choice = overlay or {}, choice or Choice()
    if choice.tier not in TIERS:
        raise ValueError(f"`tier` must be one of {', '.join(TIERS)}, but is {choice.tier!r}.")
    candidates = _candidates(read, overlay, choice)
    fixed = {full_name(name, read.leaves): value for name, value in choice.fix.items()}
    effective = dotted.merge(read.default, _without_unset(spec))
    for name, value in fixed.items():
        effective = dotted.put(effective, name, value)
    view = View(spec=effective, schema=read, facts=overlay.get("facts", {}))

    dropped: list[Dropped] = []
    refused: dict[str, str] = {}
    excluded = {full_name(name, _names(candidates)) for name in choice.exclude}
    for candidate in candidates:
        if reason := _unwanted(candidate, choice, fixed, excluded):
            refused[candidate.name] = reason
    view.wanted = {each.leaf.name for each in candidates if each.name not in refused}
    found: dict[str, Parameter] = {}
    rules: list[Rule] = []
    for candidate in candidates:
        # That a key does nothing here says more than that it belongs to a wider tier.
        made = _inert(candidate, view) or refused.get(candidate.name) or _dimension(candidate, view)
        if isinstance(made, str):
            view.wanted = view.wanted - {candidate.leaf.name}
            dropped.append(Dropped(candidate.shown, made))
            continue
        found[candidate.name] = made
        view.searched.add(candidate.name)
        if candidate.name != candidate.leaf.name:
            rules.append(_rule(candidate))
    found, related = relate(found, relations(read), view, dropped)
    for name, entry in overlay.get("derived", {}).items():
        targets = {*found, *(rule.target for rule in rules)}
        if name in read.leaves:
            dropped.append(Dropped(name, explain(entry["because"], view)))
            if targets & {key for key in entry["of"] if key != name}:
                related.append(Rule(kind=entry["rule"], target=name, of=tuple(entry["of"])))
    return _space(found, [*rules, *related], dropped, view, choice.tier)


def _candidates(schema: Schema, overlay: Mapping[str, Any], choice: Choice) -> list[_Candidate]:
    """The overlay's parameters, then what the schema calls searchable, then what only the user asks for."""
    derived = overlay.get("derived", {})
    made: dict[str, _Candidate] = {}
    for name, entry in overlay.get("parameters", {}).items():
        leaf = schema.leaves.get(entry.get("target", name))
        if leaf is not None:
            made[name] = _Candidate(name=name, leaf=leaf, entry=entry)
    covered = {candidate.leaf.name for candidate in made.values()}
    for leaf in schema.leaves.values():
        if leaf.search and leaf.name not in covered and leaf.name not in derived:
            made[leaf.name] = _Candidate(name=leaf.name, leaf=leaf, entry=_common(leaf.name))

    by_name = _names(made.values())
    for text, given in [*((name, None) for name in choice.params or ()), *choice.ranges.items()]:
        name = full_name(text.lstrip("+"), [*by_name, *schema.leaves])
        if name in derived:
            continue
        leaf = schema.leaves.get(name)
        known = by_name.get(name)
        parsed = ranges.parse_range(name, given) if given is not None else None
        if known is None or (parsed is not None and known.name != name):
            # A range of a spec key is meant as it stands: it takes the place of a coordinate for that key.
            assert leaf is not None
            if leaf.disabled:
                raise ValueError(f"`{name}` cannot be searched: the schema lists it in automl_disabled_parameters.")
            made = {key: each for key, each in made.items() if each.leaf.name != name}
            known = _Candidate(name=name, leaf=leaf, entry=_needs_only(known))
        made[known.name] = replace(known, asked=True, given=parsed or known.given)
        by_name = _names(made.values())
    return list(made.values())


def _needs_only(candidate: _Candidate | None) -> Mapping[str, Any]:
    return {} if candidate is None else {key: candidate.entry[key] for key in ("needs",) if key in candidate.entry}


def _common(name: str) -> Mapping[str, Any]:
    patterns: Mapping[str, Mapping[str, Any]] = overlays.common()["parameters"]
    return next((entry for pattern, entry in patterns.items() if fnmatchcase(name, pattern)), {})


def _names(candidates: Iterable[_Candidate]) -> dict[str, _Candidate]:
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


def _unwanted(candidate: _Candidate, choice: Choice, fixed: Mapping[str, Any], excluded: set[str]) -> str | None:
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
        name = candidate.name.rpartition(".")[2]
        return (
            f"{entry.get('because', 'of a wider tier')}; ask for it with automl.params=[+{name}] or automl.tier={tier}"
        )
    return None


def _inert(candidate: _Candidate, view: View) -> str | None:
    """Why the effective spec gives the key no effect."""
    missed = (need for need in candidate.entry.get("needs", ()) if holds(need["when"], view) is False)
    return next((explain(need["otherwise"], view) for need in missed), None)


def _dimension(candidate: _Candidate, view: View) -> Parameter | str:
    """The parameter, or why it has no range."""
    entry = candidate.entry
    case: Mapping[str, Any] = next((case for case in entry.get("cases", ()) if holds(case["when"], view)), {})
    entry = {**entry, **case}
    if candidate.name != candidate.leaf.name:
        return ranges.coordinate(candidate.name, entry, candidate.given)
    return ranges.parameter(candidate.leaf, entry, view.value(candidate.name), candidate.given)


def _rule(candidate: _Candidate) -> Rule:
    leaf, integer = candidate.leaf, candidate.leaf.kind == "int"
    return Rule(
        kind=candidate.entry["rule"],
        target=leaf.name,
        of=tuple(candidate.entry["of"]),
        coordinates=(candidate.name,),
        low=None if leaf.low is None else beyond(leaf.low, leaf.open_low, integer),
        high=None if leaf.high is None else beyond(leaf.high, leaf.open_high, integer, side=-1),
        integer=integer,
    )


def _space(
    found: Mapping[str, Parameter], rules: Sequence[Rule], dropped: Sequence[Dropped], view: View, tier: str
) -> SearchSpace:
    """The parts put together; every parameter's default is where the effective spec stands."""
    targets = {*found, *(rule.target for rule in rules)}
    read = {key for rule in rules for key in rule.of if key == rule.target or key not in targets}
    space = SearchSpace(
        parameters=tuple(found.values()),
        rules=tuple(rules),
        context={key: view.value(key) for key in sorted(read)},
        dropped=tuple(dropped),
        tier=tier,
    )
    stands = space.encode(view.spec)
    parameters = tuple(replace(each, default=stands[each.name]) for each in space.parameters)
    return replace(space, parameters=parameters)


def _without_unset(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_unset(value) if isinstance(value, Mapping) else value
        for key, value in spec.items()
        if isinstance(value, Mapping | list | tuple) or value not in UNSET
    }
