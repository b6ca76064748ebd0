"""Schema, effective spec and overlay to the space worth searching, with a reason for everything left out.

Knows no model: what is known of one stands in its overlay. Changes nothing, draws nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from schemas import dotted
from schemas.dialect import Leaf, Schema, read_schema
from search_spaces import lists, overlays, ranges
from search_spaces.constraints import DATA, UNSET, Relation, View, explain, holds, keys, number, relations
from search_spaces.relate import relate
from search_spaces.space import Dropped, Parameter, Rule, SearchSpace, beyond, is_number

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
    data: Mapping[str, float] | None = None,
) -> SearchSpace:
    """The space of one run.

    schema: a schema document, or one already read; spec: the nested effective spec (what is missing or unset has the
    schema's default); overlay: see `overlays.overlay`; data: facts of the training data (`images`, `most_objects` in
    one image, `shortest_side` and `longest_side` in pixels, `most_per_forward` images that fit the memory), absent
    where unknown. ValueError for a choice that the schema does not allow.
    """
    read = schema if isinstance(schema, Schema) else read_schema(schema)
    overlay, choice = overlay or {}, choice or Choice()
    if choice.tier not in TIERS:
        raise ValueError(f"`tier` must be one of {', '.join(TIERS)}, but is {choice.tier!r}.")
    edges = relations(read)
    candidates = _candidates(read, overlay, choice, edges)
    fixed = {full_name(name, read.leaves): value for name, value in choice.fix.items()}
    effective = dotted.merge(read.default, _without_unset(spec))
    for name, value in fixed.items():
        effective = dotted.put(effective, name, value)
    view = View(spec=effective, schema=read, facts=overlay.get("facts", {}), data=data or {})

    dropped: list[Dropped] = []
    refused: dict[str, str] = {}
    excluded = {full_name(name, _names(candidates)) for name in choice.exclude}
    for candidate in candidates:
        if reason := _unwanted(candidate, choice, fixed, excluded, read):
            refused[candidate.name] = reason
    view.wanted = {each.leaf.name for each in candidates if each.name not in refused}
    found, rules = _settled(candidates, refused, view, edges, dropped)
    found, related = relate(found, edges, view, dropped)
    found, picked = _ordered(found, read)
    rules = [*picked, *rules, *related]
    for name, entry in _derived(read, overlay, edges).items():
        targets = {*found, *(rule.target for rule in rules)}
        dropped.append(Dropped(name, explain(entry["because"], view)))
        others = [key for key in entry["of"] if key != name]
        if targets & set(others) and all(is_number(view.value(key)) for key in entry["of"]):
            low = read.leaves[name].low
            rules.append(Rule(kind=entry["rule"], target=name, of=tuple(entry["of"]), low=low))
    return _space(found, rules, dropped, view, choice.tier)


def _settled(
    candidates: Sequence[_Candidate],
    refused: Mapping[str, str],
    view: View,
    edges: Sequence[Relation],
    dropped: list[Dropped],
) -> tuple[dict[str, Parameter], list[Rule]]:
    """The parameters and their rules. What is left out may leave another one without effect, so this looks again until
    nothing more is lost."""
    while True:
        wanted = view.wanted
        view.searched = set()
        lost: list[Dropped] = []
        found: dict[str, Parameter] = {}
        rules: list[Rule] = []
        for candidate in candidates:
            # That a key does nothing here says more than that it belongs to a wider tier.
            made = _inert(candidate, view) or refused.get(candidate.name) or _dimensions(candidate, view, edges)
            if isinstance(made, str):
                view.wanted = view.wanted - {candidate.leaf.name}
                lost.append(Dropped(candidate.shown, made))
                continue
            found |= {parameter.name: parameter for parameter in made.parameters}
            rules += [made.rule] if made.rule else []
            view.searched.add(candidate.name)
        if view.wanted == wanted:
            dropped += lost
            return found, rules


def _candidates(
    schema: Schema, overlay: Mapping[str, Any], choice: Choice, edges: Sequence[Relation]
) -> list[_Candidate]:
    """The overlay's parameters, then what the schema calls searchable, then what only the user asks for."""
    derived = _derived(schema, overlay, edges)
    made: dict[str, _Candidate] = {}
    asleep: dict[str, _Candidate] = {}
    for name, entry in overlay.get("parameters", {}).items():
        leaf = schema.leaves.get(entry.get("target", name))
        if leaf is not None:
            where = asleep if entry.get("tier") == ON_REQUEST else made
            where[name] = _Candidate(name=name, leaf=leaf, entry=entry)
    covered = {candidate.leaf.name for candidate in made.values()}
    for leaf in schema.leaves.values():
        if leaf.search and leaf.name not in covered and leaf.name not in derived:
            known = _common(leaf, schema, edges)
            made[known.name] = known

    by_name = _names(made.values())
    for text, given in [*((name, None) for name in choice.params or ()), *choice.ranges.items()]:
        name = full_name(text.lstrip("+"), [*by_name, *schema.leaves])
        if name in derived:
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
                candidate = _Candidate(name=name, leaf=leaf, entry=_needs_only(candidate))
            else:
                candidate = asleep.get(name) or _common(leaf, schema, edges, plain=parsed is not None)
        made[candidate.name] = replace(candidate, asked=True, given=parsed or candidate.given)
        by_name = _names(made.values())
    return list(made.values())


def _needs_only(candidate: _Candidate) -> Mapping[str, Any]:
    return {key: candidate.entry[key] for key in ("needs",) if key in candidate.entry}


def _common(leaf: Leaf, schema: Schema, edges: Sequence[Relation], *, plain: bool = False) -> _Candidate:
    """A key of which only its name and its neighbours tell something."""
    if (action := overlays.other_action(leaf, schema)) is not None:
        return _Candidate(name=leaf.name, leaf=leaf, entry={"never": f"dead: {action} is an action of its own"})
    entry = overlays.entry(leaf, schema)
    tied = any(leaf.name in (edge.child, *edge.parents) for edge in edges)
    if plain or tied or leaf.choices is not None or any(rule.op in "/^!=" for rule in leaf.rules):
        # A grid, a list of choices or a relation of the schema leaves no room for a rule of ours.
        entry = {key: value for key, value in entry.items() if key not in ("rule", "of", "by", "cases")}
    name = f"{leaf.name}/{entry['by']}" if "rule" in entry else leaf.name
    general: list[Any] = overlays.entry(leaf, schema, "needs").get("needs", [])
    return _Candidate(name=name, leaf=leaf, entry={**entry, "needs": [*entry.get("needs", []), *general]})


def _derived(schema: Schema, overlay: Mapping[str, Any], edges: Sequence[Relation]) -> dict[str, Mapping[str, Any]]:
    """What follows from other values by a rule: spec key -> entry. A relation that the schema states comes first."""
    found = {name: entry for name, entry in overlay.get("derived", {}).items() if name in schema.leaves}
    related = {edge.child for edge in edges}
    for leaf in schema.leaves.values():
        if leaf.search and leaf.name not in found and leaf.name not in related and leaf.kind == "int":
            entry = overlays.entry(leaf, schema, "derived")
            if entry and leaf.choices is None and leaf.multiple is None and leaf.power is None and not leaf.excluded:
                found[leaf.name] = entry
    return found


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


def short_name(name: str, known: Iterable[str]) -> str:
    """The shortest end of a name that stands for it alone."""
    others = [f".{each}" for each in known if each != name]
    parts = name.split(".")
    ends = (".".join(parts[place:]) for place in reversed(range(len(parts))))
    return next((end for end in ends if not any(each.endswith(f".{end}") for each in others)), name)


def _unwanted(
    candidate: _Candidate, choice: Choice, fixed: Mapping[str, Any], excluded: set[str], schema: Schema
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


def _inert(candidate: _Candidate, view: View) -> str | None:
    """Why the effective spec gives the key no effect."""
    missed = (need for need in candidate.entry.get("needs", ()) if holds(need["when"], view) is False)
    return next((explain(need["otherwise"], view) for need in missed), None)


class _Made(NamedTuple):
    parameters: Sequence[Parameter]
    rule: Rule | None = None


def _dimensions(candidate: _Candidate, view: View, edges: Sequence[Relation]) -> "_Made | lists.Made | str":
    """The parameter or parameters of a key and the rule that reads them, or why it has no range."""
    entry = candidate.entry
    case: Mapping[str, Any] = next((case for case in entry.get("cases", ()) if holds(case["when"], view)), {})
    entry = {**entry, **case}
    if candidate.name != candidate.leaf.name:
        return _Made([ranges.coordinate(candidate.name, entry, candidate.given)], _rule(candidate))
    if lists.described(entry) and candidate.leaf.kind == "list":
        return lists.of_list(candidate.leaf, entry, candidate.given, view)
    limits = _limits(candidate.leaf, entry, view, edges)
    made = ranges.parameter(candidate.leaf, entry, view.value(candidate.name), candidate.given, limits)
    return made if isinstance(made, str) else _Made([made])


def _limits(leaf: Leaf, entry: Mapping[str, Any], view: View, edges: Sequence[Relation]) -> ranges.Limits:
    """The ends that the data, other values of the spec or, where the schema sets none, a relation put to a range."""
    low = [_end(term, view) for term in entry.get("at_least", ())]
    high = [_end(term, view) for term in entry.get("at_most", ())]
    lows, highs = [end for end in low if end], [end for end in high if end]
    for edge in edges if leaf.high is None else ():
        if edge.child == leaf.name and edge.kind in ("below", "at_most"):
            tops = [_top(parent, view) for parent in edge.parents]
            highs += [ranges.End(top * edge.factor, f"schema: {edge.parents[0]}") for top in tops if top is not None]
    return ranges.Limits(max(lows, default=None), min(highs, default=None))


def _end(term: Any, view: View) -> ranges.End | None:
    value = number(term, view)
    if value is None:
        return None
    read = keys(term)
    origin = "data" if any(key.startswith(DATA) for key in read) else ranges.OVERLAY
    return ranges.End(
        value, f"{origin}: " + ", ".join(f"{key.removeprefix(DATA)} is {view.value(key)}" for key in read)
    )


def _top(name: str, view: View) -> float | None:
    """The largest value that a key can have."""
    leaf = view.schema.leaves[name]
    value = leaf.high if name in view.wanted and leaf.high is not None else view.value(name)
    return value if is_number(value) else None


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


def _ordered(found: Mapping[str, Parameter], schema: Schema) -> tuple[dict[str, Parameter], list[Rule]]:
    """Numbers of a list by their place in it, so that a searcher sees their order. Weighted ones stay as they are, and
    two have no order to tell."""
    placed: dict[str, Parameter] = {}
    rules: list[Rule] = []
    for name, parameter in found.items():
        leaf = schema.leaves.get(name)
        numeric = (
            leaf is not None and leaf.kind in ("int", "float", "ordered") and all(map(is_number, parameter.choices))
        )
        if not numeric or len(parameter.choices) < 3 or parameter.weights is not None:
            placed[name] = parameter
            continue
        way, last = f"{name}/place", len(parameter.choices) - 1
        values = ", ".join(map(str, parameter.choices))
        placed[way] = Parameter(
            name=way, kind="int", low=0, high=last, default=0, origin=f"place among {values}; {parameter.origin}"
        )
        rules.append(Rule(kind="pick", target=name, coordinates=(way,), choices=parameter.choices))
    return placed, rules


def _space(
    found: Mapping[str, Parameter], rules: Sequence[Rule], dropped: Sequence[Dropped], view: View, tier: str
) -> SearchSpace:
    """The parts put together; every parameter's default is where the effective spec stands."""
    targets = {*found, *(rule.target for rule in rules)}
    read = {key for rule in rules for key in rule.of if key == rule.target or key not in targets}
    space = SearchSpace(
        parameters=tuple(found.values()),
        rules=_in_order(rules),
        context={key: view.value(key) for key in sorted(read)},
        dropped=tuple(dropped),
        tier=tier,
    )
    stands = space.encode(view.spec)
    parameters = tuple(replace(each, default=stands[each.name]) for each in space.parameters)
    return replace(space, parameters=parameters)


def _in_order(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Each after those whose targets it reads."""
    waiting, ordered = list(rules), []
    while waiting:
        open_targets = {rule.target for rule in waiting}
        ready = [rule for rule in waiting if not open_targets & (set(rule.of) - {rule.target})] or waiting
        ordered += ready
        waiting = [rule for rule in waiting if rule not in ready]
    return tuple(ordered)


def _without_unset(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_unset(value) if isinstance(value, Mapping) else value
        for key, value in spec.items()
        if isinstance(value, Mapping | list | tuple) or value not in UNSET
    }
