"""The generator on a toy tree; the real tree is in test_packaged.py."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.build import build_schema, to_json, to_template
from schemas.dialect import read_schema
from schemas.fields import field
from schemas.yamlio import loads


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str | None = field(None, title="Path", doc="A path.")


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = field(0.1, title="Rate", doc="r", low=0.0, high=float("inf"), math_cond="> 0.0", search=True)
    kind: str = field("a", title="Kind", doc="k", enum=("a", "b"))
    top: int | None = field(None, title="Top", doc="t", low=1, depends_on="inner.rate", parent=True)
    names: tuple[str, ...] = field(("x",), title="Names", doc="n", search=False, kind="list_2", popular=True)
    more: Mapping[str, str] = field(dict, title="More", doc="m", search=False)


@dataclass(frozen=True, kw_only=True)
class Root:
    label: str | None = field(None, title="Label", doc="l")
    file: str | None = field(None, title="File", doc="f", mandatory=True)
    inner: Inner = field(Inner, title="Inner", doc="i", popular=("names",))
    sources: tuple[Source, ...] = field((Source(),), title="Sources", doc="s", search=False)
    source: Source = field(Source, title="Source", doc="s", search=False)
    other: int = field(1, title="Other", doc="o")


def document() -> dict:
    return build_schema(
        (Root,), ("label", "file", "inner", "sources", "source"), records=(Source,), origin={"action": "toy"}
    )


def test_toy_schema() -> None:
    found = document()
    assert found["automl_default_parameters"] == ["inner.rate"]
    assert found["automl_disabled_parameters"] == ["inner", "inner.more", "inner.names", "source", "sources"]
    assert found["popular"] == {"inner": {"names": ["x"]}}
    assert found["default"] == {
        "file": "???",
        "inner": {"kind": "a", "more": {}, "names": ["x"], "rate": 0.1, "top": None},
        "label": "",
        "source": {"path": ""},
        "sources": [{"path": ""}],
    }
    inner = found["properties"]["inner"]
    assert inner["popular"] == ["names"]
    rate = {"type": "float", "title": "Rate", "description": "r", "automl_enabled": True, "default": 0.1}
    assert inner["properties"]["rate"] == {**rate, "minimum": 0.0, "math_cond": "> 0.0"}
    assert inner["properties"]["kind"]["type"] == "categorical"
    assert inner["properties"]["names"]["type"] == "list_2"
    assert inner["properties"]["top"]["parent_param"] == "TRUE"
    assert found["properties"]["source"]["type"] == "collection"
    assert "properties" not in found["properties"]["source"]


def test_text_is_strict_json_and_reads_back() -> None:
    text = to_json(document())
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == document()
    schema = read_schema(json.loads(text))
    assert schema.leaves["inner.rate"].open_low
    assert [finding.name for finding in schema.findings] == ["inner.rate", "inner.top"]  # unbounded; no stated rule


def test_template_is_the_default_tree() -> None:
    text = to_template(document(), "A toy.")
    assert text.startswith("# A toy.\n")
    assert loads(text).data == document()["default"]
