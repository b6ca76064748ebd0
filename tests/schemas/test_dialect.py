import json
from typing import Any

import pytest

from schemas.dialect import KINDS, Rule, loads, parse_rules, read_schema


def leaf(node: dict[str, Any], **root: Any) -> Any:
    return read_schema({"properties": {"x": node}, **root}).leaves["x"]


def texts(document: dict[str, Any]) -> list[str]:
    return [f"{name}: {text}" for name, _, text in read_schema(document).findings]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("> 0.0", [Rule(">", 0.0)]),
        (">0", [Rule(">", 0.0)]),
        ("  >=1 ", [Rule(">=", 1.0)]),
        ("> depends_on", [Rule(">", None)]),
        (">depends_on", [Rule(">", None)]),
        ("!= 0", [Rule("!=", 0.0)]),
        ("> 0.0 <= 1.0", [Rule(">", 0.0), Rule("<=", 1.0)]),
        (">0,<1e3", [Rule(">", 0.0), Rule("<", 1000.0)]),
        ("/ 8", [Rule("/", 8.0)]),
        ("^2", [Rule("^", 2.0)]),
        ("", []),
    ],
)
def test_every_form_of_math_cond(text: str, rules: list[Rule]) -> None:
    assert parse_rules(text) == (tuple(rules), "")


def test_unreadable_math_cond_is_a_finding() -> None:
    assert parse_rules("> 0 sometimes")[1] == "sometimes"
    assert "x: unreadable math_cond 'odd'" in texts({"properties": {"x": {"type": "int", "math_cond": "odd"}}})


@pytest.mark.parametrize("name", [*KINDS, "list_2", "list_3", "list_1_backbone"])
def test_every_type_name_is_known(name: str) -> None:
    assert leaf({"type": name}).kind == KINDS.get(name, "list")


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ({"type": ["number", "null"]}, "float"),
        ({"anyOf": [{"type": "null"}, {"type": "number"}, {"type": "array"}]}, "float"),
        ({"enum": ["a", "b"]}, "categorical"),
        ({"const": 3}, "categorical"),
        ({"default": True}, "bool"),
        ({"default": 1.5}, "float"),
        ({"type": "tensor"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_types_without_a_plain_name(node: dict[str, Any], kind: str) -> None:
    assert leaf(node).kind == kind


def test_infinity_is_no_bound_and_conditions_open_bounds() -> None:
    text = '{"properties": {"x": {"type": "float", "minimum": 0, "maximum": Infinity, "math_cond": "> 0.0"}}}'
    found = read_schema(loads(text)).leaves["x"]
    assert (found.low, found.high, found.open_low) == (0, None, True)
    assert found.bounds() == "above 0"


def test_bounds_from_everywhere() -> None:
    assert leaf({"type": "int", "minimum": [1, 2], "maximum": [8, 9]}).high == 8
    opened = leaf({"type": "number", "exclusiveMinimum": 0, "maximum": 3, "math_cond": "< 2"})
    assert (opened.low, opened.open_low, opened.high, opened.open_high) == (0, True, 2, True)
    stricter = leaf({"type": "int", "minimum": 5, "math_cond": ">= 1"})
    assert (stricter.low, stricter.open_low) == (5, False)


def test_lists_among_properties_and_nested_groups() -> None:
    schema = read_schema({
        "properties": {
            "automl_disabled_parameters": ["train"],
            "train": {"type": "collection", "properties": {"lr": {"type": "float", "default": 1.0}}},
            "empty": {"type": "collection", "properties": {}},
        },
        "required": ["quantize"],
    })  # fmt: skip
    assert list(schema.leaves) == ["train.lr", "empty"]
    assert schema.groups == {"train"}
    assert [finding[:2] for finding in schema.findings] == [
        ("automl_disabled_parameters", "unreadable"),
        ("quantize", "contradiction"),
    ]


def test_flags_come_from_leaf_and_list() -> None:
    document = {
        "automl_default_parameters": ["a", "ghost"],
        "automl_disabled_parameters": ["c"],
        "properties": {
            "a": {"type": "bool", "default": True},
            "b": {"type": "bool", "default": True, "automl_enabled": True},
            "c": {"type": "bool", "default": True},
            "d": {"type": "bool", "default": True, "automl_enabled": False},
        },
    }
    schema = read_schema(document)
    assert [leaf.search for leaf in schema.leaves.values()] == [True, True, False, False]
    assert [leaf.disabled for leaf in schema.leaves.values()] == [False, False, True, True]
    assert [name for name, _, text in schema.findings if "disagree" in text] == ["a", "b"]
    assert any("ghost" in finding for finding in texts(document))


def test_the_root_default_counts_where_the_leaf_has_none() -> None:
    schema = read_schema({"default": {"a": {"b": 3}}, "properties": {"a": {"properties": {"b": {"type": "int"}}}}})
    assert schema.leaves["a.b"].default == 3


def test_option_weights() -> None:
    node = {"type": "categorical", "enum": ["a", "b"], "default": "a"}
    assert leaf({**node, "option_weights": [0.1, 0.9]}).weights == (0.1, 0.9)
    assert leaf({**node, "option_weights": [1]}).weights is None
    assert leaf({**node, "option_weights": "heavy"}).weights is None


@pytest.mark.parametrize(
    ("node", "finding"),
    [
        ({"type": "int", "default": 0, "minimum": 1}, "the default 0 is outside its bounds (at least 1)"),
        ({"type": "categorical", "default": "x", "enum": ["a"]}, "is not among the choices"),
        ({"type": "int", "default": 1, "minimum": 3, "maximum": 2}, "its bounds leave nothing"),
        ({"type": "int", "default": 1, "depends_on": "a, b"}, "depends on `b`, and there is no such key"),
        ({"type": "int", "default": 1, "depends_on": "a"}, "by no stated rule; not enforced"),
        ({"type": "int", "default": 1, "minimum": 0, "automl_enabled": True}, "unbounded"),
        ({"type": "bool", "automl_enabled": True}, "has no default"),
    ],
)
def test_lint(node: dict[str, Any], finding: str) -> None:
    document = {"properties": {"a": {"type": "int", "default": 1}, "x": node}}
    assert any(each.startswith("x: ") and finding in each for each in texts(document)), texts(document)


@pytest.mark.parametrize("junk", [None, 3, "x", [], {}, {"properties": 3}, True])
def test_junk_never_raises(junk: Any) -> None:
    keys = ("default", "properties", "automl_default_parameters", "automl_disabled_parameters", "x_tao_schema")
    for key in keys:
        read_schema({key: junk})
    for key in ("type", "default", "minimum", "maximum", "enum", "math_cond", "depends_on", "anyOf", "option_weights",
                "popular", "pattern", "title", "properties", "automl_enabled", "const"):  # fmt: skip
        for kind in ("int", "float", "categorical", "collection"):
            read_schema({"properties": {"x": {"type": kind, "enum": ["a"], key: junk}}})


def test_a_schema_is_an_object() -> None:
    with pytest.raises(ValueError, match="a JSON object"):
        loads(json.dumps([1]))
