"""What a report is made of: sections of text, tables, figures, pictures and commands. Knows no run and no HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str
    tone: Literal["plain", "lead", "quiet", "warning"] = "plain"


@dataclass(frozen=True)
class Tiles:
    """A few numbers in large type."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str]]
    """(what, value)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[str] = frozenset()
    """Columns of words, which stand at the left and may wrap; numbers stand at the right."""
    marked: Mapping[int, Literal["best", "default"]] = field(default_factory=dict)
    """Rows that stand out, by place."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot in plotly's own form: data and layout."""

    kind: ClassVar[str] = "figure"
    name: str
    says: str
    """What it shows, for those who do not see it; and below it."""
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380
    least_width: int = 0
    """Pixels; a narrower screen scrolls."""


@dataclass(frozen=True)
class Picture:
    file: Path
    caption: str


@dataclass(frozen=True)
class Pictures:
    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Commands:
    kind: ClassVar[str] = "commands"
    rows: Sequence[tuple[str, str]]
    """(what it is for, what to type)."""


@dataclass(frozen=True)
class Folded:
    """Shown on a click."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence["Block"]


Block = Text | Tiles | Table | Figure | Pictures | Commands | Folded


@dataclass(frozen=True)
class Section:
    name: str
    """Of the link to it."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    title: str
    facts: str
    """One line below the title: what run this is."""
    sections: Sequence[Section]
    written: float
    """Seconds since 1970."""
    live_since: float | None = None
    """Present while the run goes on."""
    reload_s: int = 20
