"""What the author of a schema would want to know of its leaves. Knows no model, no spec and no file."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schemas.leaf import Finding, Leaf, is_number, number_text
from schemas.structure import MANDATORY


def lint(leaves: Mapping[str, Leaf]) -> list[Finding]:
    found = [finding for leaf in leaves.values() for finding in (*_alone(leaf), *_dependence(leaf, leaves))]
    return found + [Finding(name, "contradiction", text) for name, text in _circles(leaves)]


def _alone(leaf: Leaf) -> Iterator[Finding]:
    """What a leaf says about itself."""
    if _leaves_nothing(leaf):
        yield Finding(leaf.name, "contradiction", f"its bounds leave nothing: {leaf.bounds() or 'no choices'}")
    if leaf.has_default and leaf.default not in (None, "", MANDATORY) and leaf.problem(leaf.default) is not None:
        yield Finding(leaf.name, "default", _wrong_default(leaf))
    if {rule.op for rule in leaf.rules} & {"/", "^"} and leaf.multiple is None and leaf.power is None:
        ops = " and ".join(f"`{op}`" for op in ("/", "^") if any(rule.op == op for rule in leaf.rules))
        yield Finding(leaf.name, "unenforced", f"{ops} in its rules has no one meaning here; not enforced")
    if not leaf.search:
        return
    if leaf.kind in ("int", "float") and leaf.choices is None and (leaf.high is None or leaf.low is None):
        yield Finding(leaf.name, "unbounded", "is searchable and unbounded; ranges come from the default")
    if not leaf.has_default:
        yield Finding(leaf.name, "default", "is searchable and has no default")


def _wrong_default(leaf: Leaf) -> str:
    if leaf.choices is not None and not leaf.alternatives:
        return f"the default {leaf.default!r} is not among the choices ({leaf.bounds()})"
    if is_number(leaf.default) and leaf.kind in ("int", "float") and not leaf.interval.hold(leaf.default):
        return f"the default {number_text(leaf.default)} is outside its bounds ({leaf.bounds()})"
    return f"the default {leaf.default!r} is not what it must be ({leaf.described() or leaf.kind})"


def _leaves_nothing(leaf: Leaf) -> bool:
    if leaf.alternatives:
        return all(map(_leaves_nothing, leaf.alternatives))
    if leaf.choices is not None:
        return leaf.whole and all(leaf.problem(choice) is not None for choice in leaf.choices)
    if leaf.kind not in ("int", "float") or leaf.low is None or leaf.high is None:
        return False
    if leaf.low > leaf.high or (leaf.low == leaf.high and (leaf.open_low or leaf.open_high)):
        return True
    first = -(-leaf.low // 1) + (leaf.open_low and leaf.low == leaf.low // 1)
    return leaf.kind == "int" and not leaf.interval.hold(first)


def _dependence(leaf: Leaf, leaves: Mapping[str, Leaf]) -> Iterator[Finding]:
    for parent in leaf.depends_on:
        if parent not in leaves:
            yield Finding(leaf.name, "contradiction", f"depends on `{parent}`, and there is no such key")
    compares = any(rule.rhs is None for rule in leaf.rules)
    if leaf.depends_on and not compares and not any(rule.op == "/" for rule in leaf.rules):
        text = f"depends on {', '.join(leaf.depends_on)} by no stated rule; not enforced"
        yield Finding(leaf.name, "unenforced", text)
    if compares and not leaf.depends_on:
        yield Finding(leaf.name, "contradiction", "compares with `depends_on`, and depends on nothing; not enforced")


def _circles(leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, str]]:
    """Every leaf that depends on itself, through others or at once."""
    for name, leaf in leaves.items():
        reached: dict[str, Any] = {}
        waiting = list(leaf.depends_on)
        while waiting:
            parent = waiting.pop()
            if parent not in reached and parent in leaves:
                reached[parent] = None
                waiting += leaves[parent].depends_on
        if name in reached:
            yield name, f"depends on itself, through {_through(name, reached)}; that dependence is left out"


def _through(name: str, reached: Iterable[str]) -> str:
    return ", ".join(each for each in reached if each != name) or "nothing else"
