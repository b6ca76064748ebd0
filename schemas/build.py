"""Spec classes to schema files and templates in the TAO dialect. Turns the classes it is given; imports none."""

import dataclasses
import json
import math
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from schemas import yamlio
from schemas.fields import FieldInfo, members
from schemas.structure import MANDATORY, unstructure

_SCALARS = {int: "int", float: "float", bool: "bool", str: "string"}


def build_schema(
    classes: Sequence[type], sections: Collection[str], *, records: Collection[type] = (), origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The schema of one action.

    classes: spec classes whose fields are the top-level keys of a spec file; sections: which of them the action has;
    records: spec classes that the dialect shows as one opaque value (a data source); origin: `x_tao_schema`.
    """
    properties: dict[str, Any] = {}
    for cls in classes:
        for name, hint, item, info in members(cls):
            if name in sections:
                properties[name] = _node(name, hint, item, info, frozenset(records))
    missing = set(sections) - properties.keys()
    assert not missing, f"no class has the sections {sorted(missing)}"
    properties = dict(sorted(properties.items()))
    flags = _flags(properties)
    return {
        "type": "object",
        "x_tao_schema": dict(origin),
        "automl_default_parameters": sorted(name for name, flag in flags.items() if flag),
        "automl_disabled_parameters": sorted(name for name, flag in flags.items() if not flag),
        "popular": _popular(properties),
        "default": {name: node["default"] for name, node in properties.items()},
        "properties": properties,
    }


def to_json(document: Mapping[str, Any]) -> str:
    """Strict JSON (no `Infinity`), one trailing newline."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_template(document: Mapping[str, Any], heading: str) -> str:
    """The spec file that holds every default. `???` marks what has to be filled in."""
    return "".join(f"# {line}\n" for line in heading.splitlines()) + yamlio.dump(document["default"])


def _node(
    path: str, hint: Any, item: "dataclasses.Field[Any]", info: FieldInfo, records: frozenset[type]
) -> dict[str, Any]:
    kind, inner = _kind(hint, info, records)
    node: dict[str, Any] = {"type": kind, "title": info.title, "description": info.doc}
    flag = False if kind == "collection" else info.search
    if flag is not None:
        node["automl_enabled"] = flag
    if inner is not None:
        node["properties"] = {
            name: _node(f"{path}.{name}", inner_hint, inner_item, inner_info, records)
            for name, inner_hint, inner_item, inner_info in sorted(members(inner), key=lambda member: member[0])
        }
        node["default"] = {name: member["default"] for name, member in node["properties"].items()}
    else:
        node["default"] = MANDATORY if info.mandatory else _plain(hint, _default(item))
    for key, bound in (("minimum", info.low), ("maximum", info.high)):
        if bound is not None and math.isfinite(bound):
            node[key] = bound
    if info.enum is not None:
        node["enum"] = list(info.enum)
    if info.math_cond is not None:
        node["math_cond"] = info.math_cond
    if info.depends_on is not None:
        node["depends_on"] = info.depends_on
    if info.parent:
        node["parent_param"] = "TRUE"
    if info.popular:
        node["popular"] = list(info.popular) if isinstance(info.popular, tuple) else True
    if info.also:
        node["x_also"] = list(info.also)
    if info.note:
        node["x_note"] = info.note
    return {**node, **info.extra}


def _kind(hint: Any, info: FieldInfo, records: frozenset[type]) -> tuple[str, type | None]:
    """(dialect type name, spec class whose fields are shown as members or None)."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return "collection", None if hint in records else hint
    if info.kind is not None:
        return info.kind, None
    if hint is str and info.enum is not None:
        return "categorical", None
    if hint in _SCALARS:
        return _SCALARS[hint], None
    return ("list" if get_origin(hint) is tuple else "collection"), None


def _default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _plain(hint: Any, value: Any) -> Any:
    """A default as TAO writes it: an unset text is '', any other unset value null."""
    if value is None and str in get_args(hint):
        return ""
    records = dataclasses.is_dataclass(value) or (
        isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))
    )
    return _empty_text(unstructure(value)) if records else unstructure(value)


def _empty_text(value: Any) -> Any:
    # Every optional member of a record is a text (a path), so null is ''.
    if isinstance(value, dict):
        return {key: _empty_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_empty_text(each) for each in value]
    return "" if value is None else value


def _flags(properties: Mapping[str, Any], path: str = "") -> dict[str, bool]:
    found: dict[str, bool] = {}
    for key, node in properties.items():
        name = f"{path}.{key}" if path else key
        if "automl_enabled" in node:
            found[name] = node["automl_enabled"]
        found |= _flags(node.get("properties", {}), name)
    return found


def _popular(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Nested defaults of the popular leaves."""
    found: dict[str, Any] = {}
    for key, node in properties.items():
        if "properties" in node:
            inner = _popular(node["properties"])
            found |= {key: inner} if inner else {}
        elif node.get("popular"):
            found[key] = node["default"]
    return found
