"""What a check found: how bad it is, what was seen, what to change. Knows no check."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from model.errors import Kind

Level = Literal["ok", "note", "warning", "problem"]
"""note: worth knowing; warning: runs, but worse than it could; problem: does not run, or is not worth it."""


class Finding(NamedTuple):
    kind: Kind
    level: Level
    seen: str
    """The rule or the fact, with its value; a sentence without its full stop."""
    change: str = ""
    """What to change, in the imperative; empty exactly when all is well."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        told = {"class": self.kind, "level": self.level, "seen": self.seen}
        return {**told, "change": self.change} if self.change else told


def of_error(kind: Kind, error: BaseException | str, level: Level = "problem") -> Finding:
    """The finding that an error of ours states: its last clause is the fix."""
    seen, _, change = str(error).rpartition("; ")
    return Finding(kind, level, seen or change.rstrip("."), change.rstrip(".") if seen else "correct it as it says")


def some(names: Sequence[object], shown: int = 5) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(map(str, names[:shown])) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def them(names: Sequence[object]) -> str:
    return "it" if len(names) == 1 else "them"
