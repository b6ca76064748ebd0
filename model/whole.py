"""Files that are written whole or not at all: beside their place, then renamed. Knows nothing of what is in them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_place(*files: Path) -> Iterator[tuple[Path, ...]]:
    """Paths to write to, beside `files`. They get their names when the block ends, and vanish when it raises."""
    partials = tuple(file.with_name(f".{file.name}.partial") for file in files)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partials
        for partial, file in zip(partials, files, strict=True):
            os.replace(partial, file)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """In UTF-8, each line ending as it is in `text`."""
    with in_place(path) as (partial,):
        partial.write_text(text, encoding="utf-8", newline="")
