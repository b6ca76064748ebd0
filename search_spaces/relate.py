"""Relations between parameters made to hold for every draw: ranges narrowed, children turned into fractions.

Knows ranges and relations; no schema, no overlay and no reason for a range.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from schemas.leaf import is_number
from search_spaces.constraints import Relation, View
from search_spaces.space import Dropped, Parameter, Rule, beyond


def relate(
    given: Mapping[str, Parameter], edges: Sequence[Relation], view: View
) -> tuple[dict[str, Parameter], list[Rule], Dropped | None]:
    """Makes every relation hold for every draw: ranges are narrowed, and a child whose parent is searched becomes a
    fraction of what is left. The last item is a parameter for which there is no room; without it the rest may have."""
    found, rules = dict(given), []
    for edge in reversed(edges):  # children first, so that a grandparent sees its child's narrowed range
        for parent in [name for name in edge.parents if name in found]:
            limit = _limit(edge, found, view)
            if limit is None:
                continue
            less = _narrow(
                found[parent], limit / edge.factor, edge.kind in ("above", "at_least"), edge.kind in ("above", "below")
            )
            if less is None:
                return found, [], Dropped(parent, f"no room beside {edge.child}, which is {_mirror(edge)} it")
            found[parent] = less
    for edge in edges:
        child = found.get(edge.child)
        if child is None:
            continue
        for value in [view.value(name) for name in edge.parents if name not in found]:
            if not is_number(value):
                continue
            less = _narrow(
                child, value * edge.factor, edge.kind in ("below", "at_most"), edge.kind in ("above", "below")
            )
            if less is None:
                return found, [], Dropped(edge.child, f"no room {_mirror(edge)} {', '.join(edge.parents)} ({value})")
            found[edge.child] = child = less
        searched = tuple(name for name in edge.parents if name in found)
        if searched and child.kind != "categorical" and child.step == 1:
            rule, way = _fraction_of(edge, child, searched)
            rules.append(rule)
            found = dict((way.name, way) if name == edge.child else (name, each) for name, each in found.items())
    return found, rules, None


def _fraction_of(edge: Relation, child: Parameter, parents: tuple[str, ...]) -> tuple[Rule, Parameter]:
    """The child as a fraction of what its parents leave of its range."""
    way = f"{edge.child}/left"
    names = ", ".join(name.rpartition(".")[2] for name in parents)
    rule = Rule(
        kind=edge.kind,
        target=edge.child,
        of=parents,
        coordinates=(way,),
        low=child.low,
        high=child.high,
        integer=child.kind == "int",
        factor=edge.factor,
    )
    origin = f"fraction of what {names} leaves; {child.origin}"
    return rule, Parameter(name=way, kind="float", low=0.0, high=1.0, default=0.5, origin=origin)


def _limit(edge: Relation, found: Mapping[str, Parameter], view: View) -> Any:
    """The number that the parents of an edge have to leave room for: the child's far end where it can move away, its
    near end where it cannot (a grid or a list of choices), its value where it is not searched."""
    child = found.get(edge.child)
    if child is None:
        value = view.value(edge.child)
        return value if is_number(value) else None
    upwards = edge.kind in ("above", "at_least")
    if child.kind == "categorical":
        numbers = [choice for choice in child.choices if is_number(choice)]
        return (min(numbers) if upwards else max(numbers)) if numbers else None
    if child.step > 1:
        return child.low if upwards else child.high
    return child.high if upwards else child.low


def _narrow(parameter: Parameter, limit: float, from_above: bool, strict: bool) -> Parameter | None:
    """The parameter's values below (`from_above`) or above a limit; None when fewer than two are left."""
    if parameter.kind == "categorical":
        kept = tuple(
            choice
            for choice in parameter.choices
            if not is_number(choice)
            or (choice < limit if from_above else choice > limit)
            or (choice == limit and not strict)
        )
        weights = None
        if parameter.weights is not None:
            weights = tuple(w for w, c in zip(parameter.weights, parameter.choices, strict=True) if c in kept)
        if len(kept) < 2:
            return None
        less = replace(parameter, choices=kept, weights=weights)
        return replace(less, default=less.clip(parameter.default))
    assert parameter.low is not None
    assert parameter.high is not None
    integer = parameter.kind == "int"
    edge = beyond(limit, strict, integer, side=-1 if from_above else 1)
    low, high = (parameter.low, min(parameter.high, edge)) if from_above else (max(parameter.low, edge), parameter.high)
    if integer:
        high -= (high - low) % parameter.step if from_above else 0
        low += (parameter.low - low) % parameter.step if not from_above else 0
    if low >= high:
        return None
    note = parameter.origin if (low, high) == (parameter.low, parameter.high) else f"{parameter.origin}, narrowed"
    less = replace(parameter, low=low, high=high, origin=note)
    return replace(less, default=less.clip(parameter.default))


def _mirror(edge: Relation) -> str:
    return edge.kind.replace("_", " ")
