"""`ddetr explain KEY`: what a key means, what it may be, what it is now, and why it is or is not searched.

Of a spec's keys by schema and space, of the `automl:` keys by their own class. Derives nothing itself.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpo.overrides import BLOCK, POLICY
from hpo.screen import next_step, out, say
from hpo.show_space import Subject, range_text, read_subject, short
from hpo.sweep_spec import SweepSpec
from schemas import packaged
from schemas.dialect import Leaf
from schemas.fields import FieldInfo, members
from search_spaces.derive import full_name
from search_spaces.lookup import look_up

Row = tuple[str, str]
NEVER: Row = ("searched", "no: it decides about the search")


def explain(arguments: argparse.Namespace) -> None:
    """Prints what is known of `arguments.key`. ValueError for a key that there is not, or that is several."""
    subject = read_subject(arguments)
    automl = {f"{BLOCK}.{name}": (info, hint) for name, hint, _, info in members(SweepSpec)}
    elsewhere = {} if arguments.schema else _other_actions(subject)
    coordinates = [name for rule in subject.space.rules for name in rule.coordinates]
    tiers = [[*subject.schema.leaves, *subject.schema.groups, *coordinates], [*automl, POLICY], list(elsewhere)]
    name, others = _resolved(arguments.key, tiers)
    also = [("also", ", ".join(others))] if others else []
    if name in subject.schema.groups:
        _print(name, "a group of keys", [*_members(name, subject.schema.leaves), *also])
    elif name in automl:
        info, hint = automl[name]
        _print(name, getattr(hint, "__name__", str(hint)), [*_setting(name, info), *also], info.title, info.doc)
    elif name == POLICY:
        words = "Whether `ddetr train` searches: auto, on or off, or words that mean off."
        _print(name, "text", [("default", "auto"), NEVER], "Policy", words)
    elif name in elsewhere:
        action, leaf = elsewhere[name]
        rows = [*_plain(leaf), ("searched", f"no: only `{action}` reads it, and only `train` is searched"), *also]
        _print(name, leaf.kind, rows, leaf.title, leaf.doc)
    else:
        _print_key(name, subject, also)
    given = [("--schema", arguments.schema), ("-e", arguments.spec)]
    next_step(arguments, "space", *(word for flag, file in given if file is not None for word in (flag, file)))


def _resolved(key: str, tiers: list[list[str]]) -> tuple[str, list[str]]:
    """The full name of a key, and the others that it may be short for. A key that training reads comes before one of
    the search, and that before one of another action."""
    fits = [[name for name in tier if name == key or name.endswith(f".{key}")] for tier in tiers]
    for tier, found in zip(tiers, fits, strict=True):
        if found:
            name = full_name(key, tier)
            return name, sorted({other for each in fits for other in each if other != name})
    every = [name for tier in tiers for name in tier]
    inside = [name for name in every if key.lower() in name.rpartition(".")[2]]
    if inside:
        raise ValueError(f"unknown key `{key}`; did you mean {' or '.join(f'`{name}`' for name in inside[:5])}?")
    return full_name(key, every), []


def _print_key(name: str, subject: Subject, also: list[Row]) -> None:
    entry = look_up(name, subject.schema, subject.space, subject.spec)
    leaf = subject.schema.leaves[entry.name]
    rows = _plain(leaf)
    if entry.value != entry.default:
        rows.append(("in effect", _text(entry.value)))
    rows.append(("searched", f"{'yes' if entry.searched else 'no'}: {entry.because}"))
    for parameter in entry.parameters:
        scale = "" if parameter.kind == "categorical" else f", {parameter.scale}"
        drawn = "" if parameter.name == entry.name else f"{parameter.name}: "
        rows.append(("range", f"{drawn}{range_text(parameter)}{scale} ({parameter.origin})"))
    if entry.rule:
        rows.append(("rule", entry.rule))
    for head, keys in (("depends on", entry.depends_on), ("decides over", entry.dependents)):
        if others := [key for key in keys if key != entry.name]:
            rows.append((head, ", ".join(others)))
    _print(entry.name, entry.kind, [*rows, *also], leaf.title, leaf.doc)


def _plain(leaf: Leaf) -> list[Row]:
    """What a schema alone says."""
    rows = [("default", _text(leaf.default) if leaf.has_default else "none")]
    if leaf.bounds():
        rows.append(("allowed", leaf.bounds()))
    return rows


def _setting(name: str, info: FieldInfo) -> list[Row]:
    """A key of the `automl:` block."""
    item = next(each for each in dataclasses.fields(SweepSpec) if f"{BLOCK}.{each.name}" == name)
    default = item.default if item.default is not dataclasses.MISSING else {}
    rows = [("default", _text(default))]
    allowed = [f"one of {', '.join(map(str, info.enum))}"] if info.enum else []
    allowed += [f"at least {info.low:g}"] if info.low is not None else []
    allowed += [f"at most {info.high:g}"] if info.high is not None else []
    allowed += [info.math_cond] if info.math_cond else []
    if allowed:
        rows.append(("allowed", " and ".join(allowed)))
    return [*rows, NEVER]


def _other_actions(subject: Subject) -> dict[str, tuple[str, Leaf]]:
    """Keys of our other actions that the train schema does not have."""
    found: dict[str, tuple[str, Leaf]] = {}
    for action in packaged.manifest()["actions"]:
        for name, leaf in packaged.schema(action).leaves.items():
            if name not in subject.schema.leaves:
                found.setdefault(name, (action, leaf))
    return found


def _members(group: str, leaves: Mapping[str, Leaf]) -> list[Row]:
    return [(name[len(group) + 1 :], leaf.title) for name, leaf in leaves.items() if name.startswith(f"{group}.")]


def _print(name: str, kind: str, rows: list[Row], title: str = "", doc: str = "") -> None:
    say(f"{name} ({kind})" + (f": {title}" if title else ""))
    if doc and doc != title:
        say(f"  {doc}")
    table = Table.grid(padding=(0, 2, 0, 0))
    last = ""
    for head, text in rows:
        table.add_row(Text("" if head == last else head), Text(text, overflow="fold"))
        last = head
    out.print(Padding(table, (0, 0, 0, 2), expand=False))


def _text(value: Any) -> str:
    if value is None or value == "" or value == {}:
        return "unset"
    return ", ".join(map(short, value)) or "empty" if isinstance(value, list | tuple) else short(value)
