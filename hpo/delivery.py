"""What was handed over of a winner, in a table: one row a file, with what it costs and how accurate it is. Knows no
network; the numbers are given."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from hpo.files import write_json
from hpo.screen import near
from model.errors import Kind

DELIVERY = "delivery.json"
"""What was handed over and how it was measured."""

Split = Literal["val", "test"]
HEADINGS: Mapping[Split, str] = {"val": "val mAP50", "test": "test mAP50"}


class DeliveryError(RuntimeError):
    """A file of the winner loses more accuracy than was allowed; the message names precision, loss and limit."""

    kind: ClassVar[Kind] = "run"


class Row(NamedTuple):
    """One file of the winner."""

    form: str
    """What runs it, and its precision."""
    file: Path
    bytes: int
    map50: Mapping[Split, float]
    """By split, all images resized to the export's size; empty where it was not measured."""
    drop: float | None = None
    """PyTorch's mAP50 less this one's, on the validation images, or on the test images where there are no others."""
    latency_ms: float | None = None
    """Median of the network alone at batch 1, on the machine that handed it over."""
    note: str = ""


class Delivery(NamedTuple):
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    """What was not done and why, what to know before use, what to install; a sentence each."""
    failures: tuple[str, ...] = ()
    """A sentence for each precision that could not be had within its tolerance."""

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; files relative to its folder."""
        rows = [{**row._asdict(), "file": os.path.relpath(row.file, path.parent)} for row in self.rows]
        write_json({**self._asdict(), "rows": rows}, path)

    def require(self) -> None:
        """Raises DeliveryError where a precision failed."""
        if self.failures:
            raise DeliveryError(" ".join(self.failures))

    def table(self) -> Table:
        splits = [split for split in HEADINGS if any(split in row.map50 for row in self.rows)]
        table = Table(title="Handed over")
        table.add_column("form")
        table.add_column("file")
        for name in ("MB", *(HEADINGS[split] for split in splits), "drop", "ms"):
            table.add_column(name, justify="right")
        table.add_column("note")
        for row in self.rows:
            scores = [f"{row.map50[split]:.4f}" if split in row.map50 else "not measured" for split in splits]
            cost = "" if row.latency_ms is None else f"{row.latency_ms:.3g}"
            drop = "" if row.drop is None else f"{row.drop:+.4f}"
            file = Text(near(row.file), overflow="fold")
            table.add_row(row.form, file, f"{row.bytes / 1e6:.1f}", *scores, drop, cost, Text(row.note))
        return table
