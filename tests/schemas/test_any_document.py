"""Properties of the reader and of validation over any schema that hypothesis can write."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import dotted, validate
from schemas.dialect import Schema, read_schema
from schemas.structure import MANDATORY
from tests.schemas.strategies import NUMBERS, Node, any_documents, documents, json_values, junk

QUIET = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
UNSET = (None, "", MANDATORY)


def refused(schema: Schema, name: str, value: Any) -> list[str]:
    """The keys that are wrong in a spec that says nothing but one value."""
    return [problem.name for problem in validate.check(dotted.put({}, name, value), {"any": schema})]


@QUIET
@given(any_documents)
def test_reading_never_raises_and_the_translation_is_draft_2020_12(document: Node) -> None:
    schema = read_schema(document)
    Draft202012Validator.check_schema(validate.to_json_schema(schema))
    assert all(finding.text and finding.kind != "dead" for finding in schema.findings)
    for leaf in schema.leaves.values():
        assert isinstance(leaf.bounds() + leaf.described(), str)


@QUIET
@given(junk(), json_values)
def test_validation_never_raises(document: Node, spec: Any) -> None:
    schema = read_schema(document)
    for each in (spec, schema.default):
        if isinstance(each, dict):
            for problem in validate.check(each, {"any": schema}):
                assert problem.text


@QUIET
@given(documents())
def test_its_own_default_is_accepted(document: Node) -> None:
    schema = read_schema(document)
    assert validate.check(schema.default, {"any": schema}) == []


@QUIET
@given(documents(), st.sampled_from([*NUMBERS, "a", "b", True, [], [1], ["a"], [0.9, 2.0], [1, 1.0], [True, 1]]))
def test_json_schema_and_the_leaf_itself_judge_alike(document: Node, value: Any) -> None:
    """Two statements of the same rules: `Leaf.problem` by hand, and the translation as `jsonschema` understands it."""
    schema = read_schema(document)
    judge = validate.validator(schema)
    for name, leaf in schema.leaves.items():
        alone: Node = {}
        *groups, key = name.split(".")
        inner = alone
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = value
        assert judge.is_valid(alone) == (leaf.problem(value) is None), (leaf, value)


@QUIET
@given(documents())
def test_default_findings_are_what_the_rules_refuse(document: Node) -> None:
    schema = read_schema(document)
    found = {name for name, kind, text in schema.findings if kind == "default" and text.startswith("the default")}
    wrong = {
        leaf.name for leaf in schema.leaves.values()
        if leaf.has_default and leaf.default not in UNSET and leaf.problem(leaf.default) is not None
    }  # fmt: skip
    assert found == wrong


@QUIET
@given(documents(plain=False))
def test_a_value_outside_the_bounds_is_refused_by_its_name(document: Node) -> None:
    schema = read_schema(document)
    numbers = [leaf for leaf in schema.leaves.values() if leaf.kind in ("int", "float") and "[" not in leaf.name]
    outside = {leaf.name: leaf.low - 1 for leaf in numbers if leaf.low is not None}
    outside |= {leaf.name: leaf.high + 1 for leaf in numbers if leaf.high is not None}
    outside = {name: value for name, value in outside.items() if schema.leaves[name].default != value}
    assume(outside)
    spec: Node = {}
    for name, value in outside.items():
        spec = dotted.put(spec, name, value)
    assert {problem.name for problem in validate.check(spec, {"any": schema})} == set(outside)
    for name, value in outside.items():
        assert refused(schema, name, value) == [name]


@pytest.mark.parametrize("levels", [30, 60, 400])
def test_deep_schemas(levels: int) -> None:
    node: Node = {"type": "int", "default": 1}
    for word in ("properties", "anyOf", "items"):
        deep: Node = node
        for _ in range(levels):
            deep = {"properties": {"x": deep}} if word == "properties" else {word: [deep] if word == "anyOf" else deep}
        schema = read_schema({"properties": {"x": deep}})
        Draft202012Validator.check_schema(validate.to_json_schema(schema))


def test_references_that_grow_without_end() -> None:
    """A few lines that stand for more than a thousand million keys, and an endless tree."""
    defs: Node = {f"d{n}": {"properties": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "ab"}} for n in range(30)}
    defs["tree"] = {"properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "integer"}}}
    defs |= {f"e{n}": {"anyOf": [{"$ref": f"#/$defs/e{n + 1}"}] * 2} for n in range(40)}
    document = {"properties": {"wide": {"$ref": "#/$defs/d0"}, "tree": {"$ref": "#/$defs/tree"},
                               "many": {"$ref": "#/$defs/e0"}}, "$defs": defs}  # fmt: skip
    document["properties"] = dict(reversed(document["properties"].items()))
    schema = read_schema(json.loads(json.dumps(document)))
    assert schema.leaves["tree.leaf"].kind == "int"
    assert "tree.left" in schema.leaves
    texts = [finding.text for finding in schema.findings]
    assert any("only the first" in text for text in texts)
    assert any("leads back to itself" in text for text in texts)
