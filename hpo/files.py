"""The small files of a run folder, each written whole or not at all. Knows YAML and JSON; knows no study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.whole import write_text


def write_spec(spec: Mapping[str, Any], path: Path) -> None:
    """The secret key is never written; who reads it checks the values."""
    write_text(yaml.safe_dump({**spec, "encryption_key": None}, sort_keys=False), path)


def write_json(value: Mapping[str, Any] | Sequence[Any], path: Path) -> None:
    write_text(json.dumps(value, indent=2) + "\n", path)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())
