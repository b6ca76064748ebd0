"""Schema, effective spec and overlay to the space worth searching, with a reason for everything left out.

Knows no model: what is known of one stands in its overlay. Changes nothing, draws nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from schemas import dotted
from schemas.dialect import Leaf, Schema, read_schema
from search_spaces import lists, ranges
from search_spaces.candidates import TIERS as TIERS
from search_spaces.candidates import Candidate, by_names, candidates, derived, unwanted
from search_spaces.candidates import Choice as Choice
from search_spaces.candidates import full_name as full_name
from search_spaces.constraints import DATA, UNSET, Relation, View, explain, holds, keys, number, relations
from search_spaces.ranges import Made
from search_spaces.relate import relate
from search_spaces.space import Dropped, Parameter, Rule, SearchSpace, beyond, is_number


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
    asked = candidates(read, overlay, choice, edges)
    fixed = {full_name(name, read.leaves): value for name, value in choice.fix.items()}
    effective = dotted.merge(read.default, _without_unset(spec))
    for name, value in fixed.items():
        effective = dotted.put(effective, name, value)
    view = View(spec=effective, schema=read, facts=overlay.get("facts", {}), data=data or {})

    excluded = {full_name(name, by_names(asked)) for name in choice.exclude}
    reasons = {each.name: unwanted(each, choice, fixed, excluded, read) for each in asked}
    found, rules, related, dropped = _settled(asked, {k: v for k, v in reasons.items() if v}, view, edges)
    found, picked = _ordered(found, read)
    rules = [*picked, *rules, *related]
    for name, entry in derived(read, overlay, edges).items():
        targets = {*found, *(rule.target for rule in rules)}
        moved = bool(targets & {key for key in entry["of"] if key != name})
        if moved and all(is_number(view.value(key)) for key in entry["of"]):
            low = read.leaves[name].low
            rules.append(Rule(kind=entry["rule"], target=name, of=tuple(entry["of"]), low=low))
        if moved or read.leaves[name].search:
            dropped.append(Dropped(name, explain(entry["because"], view)))
    return _space(found, rules, dropped, view, choice.tier)


def _settled(
    asked: Sequence[Candidate], refused: Mapping[str, str], view: View, edges: Sequence[Relation]
) -> tuple[dict[str, Parameter], list[Rule], list[Rule], list[Dropped]]:
    """The parameters, their rules, those of the schema's relations, and what is left out. That may leave another one
    without effect or without a value to read, so this looks again until nothing more is lost."""
    refused = dict(refused)
    view.wanted = {each.leaf.name for each in asked if each.name not in refused}
    while True:
        wanted = view.wanted
        view.searched = set()
        dropped: list[Dropped] = []
        found: dict[str, Parameter] = {}
        rules: list[Rule] = []
        for candidate in asked:
            # That a key does nothing here says more than that it belongs to a wider tier.
            made = _inert(candidate, view) or refused.get(candidate.name) or _dimensions(candidate, view, edges)
            if isinstance(made, str):
                view.wanted = view.wanted - {candidate.leaf.name}
                dropped.append(Dropped(candidate.shown, made))
                continue
            found |= {parameter.name: parameter for parameter in made.parameters}
            rules += [made.rule] if made.rule else []
            view.searched.add(candidate.name)
        if view.wanted != wanted:
            continue
        found, related, lost = relate(found, edges, view)
        if lost is None:
            return found, rules, related, dropped
        refused[lost.name] = lost.because
        view.wanted = view.wanted - {lost.name}


def _inert(candidate: Candidate, view: View) -> str | None:
    """Why the effective spec gives the key no effect."""
    missed = (need for need in candidate.entry.get("needs", ()) if holds(need["when"], view) is False)
    return next((explain(need["otherwise"], view) for need in missed), None)


def _dimensions(candidate: Candidate, view: View, edges: Sequence[Relation]) -> Made | str:
    """The parameter or parameters of a key and the rule that reads them, or why it has no range."""
    entry = candidate.entry
    case: Mapping[str, Any] = next((case for case in entry.get("cases", ()) if holds(case["when"], view)), {})
    entry = {**entry, **case}
    if candidate.name != candidate.leaf.name and _sound(candidate, view):
        return Made([ranges.coordinate(candidate.name, entry, candidate.given)], _rule(candidate))
    if lists.described(entry) and candidate.leaf.kind == "list":
        return lists.of_list(candidate.leaf, entry, candidate.given, view)
    if "rule" in entry:  # one that cannot be kept here: the key is drawn as it stands
        entry = {key: value for key, value in entry.items() if key not in ("range", "around")}
    limits = _limits(candidate.leaf, entry, view, edges)
    made = ranges.parameter(candidate.leaf, entry, view.value(candidate.leaf.name), candidate.given, limits)
    return made if isinstance(made, str) else Made([made])


def _sound(candidate: Candidate, view: View) -> bool:
    """Whether the rule of a coordinate makes a value of the key's type from numbers that are there."""
    kind = {"ratio": "float", "fraction": "int", "milestone": "list"}.get(candidate.entry["rule"])
    read = [view.schema.leaves[key].kind if key in view.wanted else view.value(key) for key in candidate.entry["of"]]
    return candidate.leaf.kind == kind and all(each in ("int", "float") or is_number(each) for each in read)


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


def _rule(candidate: Candidate) -> Rule:
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
