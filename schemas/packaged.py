"""The schema files, templates and manifest that ship beside this module. Read-only: an override never edits them."""

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from schemas.dialect import Schema, read_schema

MANIFEST = "manifest.json"


def folder() -> Traversable:
    return files("schemas")


@functools.cache
def manifest() -> Mapping[str, Any]:
    """Actions with their files, those of an engine among them (`deploy`), `automl_enabled`, the metric with its goal,
    the dataset type and formats, and what each action takes from an earlier job (`inference`)."""
    return _read(MANIFEST)


@functools.cache
def document(action: str) -> Mapping[str, Any]:
    """The schema of an action as it stands in its file. KeyError for an action that the manifest does not name."""
    return _read(manifest()["actions"][action]["schema"])


@functools.cache
def schema(action: str) -> Schema:
    return read_schema(document(action))


def template(action: str, *, deploy: bool = False) -> str:
    """The text of the spec file that holds every default of an action; deploy: that of an action of a TensorRT engine,
    which is short (gen_trt_engine, evaluate, inference)."""
    name: str = manifest()["deploy" if deploy else "actions"][action]["template"]
    return (folder() / name).read_text(encoding="utf-8")


def _read(name: str) -> Mapping[str, Any]:
    found = json.loads((folder() / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found
