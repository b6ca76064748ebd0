"""A report as Markdown: the same words and tables; plots are named and left to the HTML file. Knows blocks only."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hpo.reporting.blocks import Block, Commands, Figure, Folded, Page, Pictures, Table, Text, Tiles
from hpo.reporting.names import moment


def markdown(page: Page, folder: Path) -> str:
    """`folder`: where the file will lie; pictures are linked from there."""
    parts = [f"# {escape(page.title)}", escape(page.facts)]
    if page.live_since is not None:
        parts.append(f"Live since {moment(page.live_since)}, as of {moment(page.written)}.")
    for section in page.sections:
        parts += [f"## {escape(section.title)}", *_blocks(section.blocks, folder)]
    return "\n\n".join(filter(None, parts)) + "\n"


def escape(text: str) -> str:
    """No sign of a name is taken for markup, in Markdown or in the HTML that it may hold."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text).replace("\n", " ")


def _blocks(blocks: Sequence[Block], folder: Path) -> list[str]:
    return [part for block in blocks for part in _block(block, folder)]


def _block(block: Block, folder: Path) -> list[str]:
    match block:
        case Text():
            return [f"**{escape(block.text)}**" if block.tone == "lead" else escape(block.text)]
        case Tiles():
            return ["\n".join(f"- {escape(what)}: {escape(value)}" for what, value in block.tiles)]
        case Table():
            return [_table(block)]
        case Figure():
            return [f"*Plot in report.html: {escape(block.says)}*"]
        case Pictures():
            return [
                f"![{escape(each.caption)}](<{os.path.relpath(each.file, folder)}>)\n{escape(each.caption)}"
                for each in block.pictures
            ]
        case Commands():
            rows = [(what, command.replace("\n", "\n    ")) for what, command in block.rows]
            return ["\n".join(f"{escape(what)}:\n\n    {command}\n" for what, command in rows).rstrip()]
        case Folded():
            return [f"{escape(block.summary)}:", *_blocks(block.blocks, folder)]


def _table(block: Table) -> str:
    head = [escape(column) or " " for column in block.columns]
    rule = [":---" if column in block.words else "---:" for column in block.columns]
    rows = [[escape(cell) for cell in row] for row in block.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
