"""Hand-made schemas with one oddity each: those of published TAO schemas, and the words of plain draft 2020-12."""

import json
from typing import Any

import pytest

from schemas import validate
from schemas.dialect import Schema, loads, read_schema
from schemas.leaf import Bounds, Leaf


def read(node: Any, **root: Any) -> Schema:
    return read_schema({"properties": {"x": node}, **root})


def leaf(node: Any, **root: Any) -> Leaf:
    return read(node, **root).leaves["x"]


def kinds(schema: Schema, name: str = "x") -> list[str]:
    return [finding.kind for finding in schema.findings if finding.name == name]


def refused(schema: Schema, spec: dict[str, Any]) -> list[str]:
    return [problem.text for problem in validate.check(spec, {"train": schema})]


# ---- the file ----


def test_a_root_without_a_default_is_completed_from_the_leaves() -> None:
    group = {"properties": {"b": {"type": "int", "default": 3}, "c": {"type": "int"}}}
    assert read({**group}).default == {"x": {"b": 3}}
    half = read(group, default={"x": {"c": 7}})
    assert half.default == {"x": {"c": 7, "b": 3}}
    assert half.leaves["x.c"].default == 7


@pytest.mark.parametrize("default", [None, 3, "x", []])
def test_a_default_that_is_no_group(default: Any) -> None:
    schema = read({"type": "int", "default": 1}, default=default)
    assert schema.default == {"x": 1}
    assert (default is not None) == ("default" in [finding.name for finding in schema.findings])


def test_a_default_with_keys_of_its_own() -> None:
    group = {"properties": {"b": {"type": "int", "default": 3}}}
    schema = read(group, default={"x": {"b": 3, "old": {"c": 1}}, "more": [1]})
    assert [(finding.name, finding.kind) for finding in schema.findings] == [
        ("x.old", "contradiction"), ("more", "contradiction")
    ]  # fmt: skip
    assert refused(schema, {"x": {"b": 4, "old": {"c": 2}}, "more": None}) == []
    assert len(refused(schema, {"x": {"new": 1}})) == 1


@pytest.mark.parametrize("properties", [None, [], 3, {}, "x"])
def test_a_schema_without_keys(properties: Any) -> None:
    schema = read_schema({"type": "object", "properties": properties})
    assert not schema.leaves
    assert schema.findings[0].kind == "unreadable"
    assert refused(schema, {"a": 1}) == []  # nothing is known, so nothing is wrong


def test_required_names_that_do_not_exist() -> None:
    schema = read({"properties": {"a": {"type": "int"}}, "required": ["a", "b"]}, required=["x", "quantize"])
    assert {(finding.name, finding.kind) for finding in schema.findings} == {
        ("quantize", "contradiction"), ("x.b", "contradiction")
    }  # fmt: skip
    assert refused(schema, {}) == []


def test_flags_as_text_and_lists_that_are_none() -> None:
    schema = read({"type": "bool", "automl_enabled": "TRUE", "default": True}, automl_default_parameters=["x"])
    assert schema.leaves["x"].search
    assert kinds(schema) == []
    odd = read({"type": "bool", "default": True}, automl_default_parameters="x", automl_disabled_parameters=[3, "x"])
    assert not odd.leaves["x"].search
    assert odd.leaves["x"].disabled
    assert kinds(odd, "automl_default_parameters") == ["unreadable"]


def test_a_name_in_the_list_that_is_a_group() -> None:
    schema = read({"properties": {"a": {"type": "int", "default": 1}}}, automl_default_parameters=["x", "x.a"])
    assert schema.leaves["x.a"].search
    assert kinds(schema) == ["contradiction"]


@pytest.mark.parametrize("key", ["a.b", ""])
def test_keys_that_have_no_dotted_name(key: str) -> None:
    schema = read_schema({"properties": {key: {"type": "int"}, "good": {"type": "int"}}})
    assert list(schema.leaves) == ["good"]
    assert schema.findings[0].kind == "unreadable"


def test_a_key_that_stands_for_an_item_of_a_list() -> None:
    weights = {"type": "list", "default": [1.0, 10.0]}
    item = {"type": "float", "default": 10.0, "minimum": 1.0, "maximum": 100.0, "automl_enabled": True}
    document = {"default": {"w": [1.0, 10.0]}, "properties": {"w": weights, "w[1]": item, "v[0]": item}}
    schema = read_schema(document)
    assert schema.default == {"w": [1.0, 10.0]}
    assert refused(schema, {"w": [500.0, 50.0]}) == []
    assert refused(schema, {"w": [0.0, 500.0]}) == ["`w.1` must be at least 1 and at most 100, but is 500.0."]
    assert refused(schema, {"v": [50.0, 500.0]}) == []
    assert refused(schema, {"v": [0.0]}) == ["`v.0` must be at least 1 and at most 100, but is 0.0."]


# ---- bounds ----


@pytest.mark.parametrize(
    ("low", "high", "bounds", "found"),
    [
        ("-Infinity", "Infinity", (None, None), []),
        ("NaN", "3", (None, 3), ["unreadable"]),
        ("0", "-Infinity", (0, None), ["contradiction"]),
        ("Infinity", "3", (None, 3), ["contradiction"]),
        ('"0.5"', '"1e3"', (0.5, 1000), ["unreadable", "unreadable"]),
        ('"low"', "true", (None, None), ["unreadable", "unreadable"]),
        ("null", "{}", (None, None), ["unreadable"]),
        ("[]", "[5, 6]", (None, 5), []),
        ("1" + "0" * 400, "1" + "0" * 400, (None, None), ["contradiction"]),
    ],
)
def test_bounds_of_any_shape(low: str, high: str, bounds: tuple[Any, Any], found: list[str]) -> None:
    schema = read_schema(loads(f'{{"properties": {{"x": {{"type": "float", "minimum": {low}, "maximum": {high}}}}}}}'))
    assert (schema.leaves["x"].low, schema.leaves["x"].high) == bounds
    assert kinds(schema) == found


def test_a_list_of_bounds_holds_item_by_item() -> None:
    node = {"type": "list_2", "default": [0.9, 0.999], "minimum": [0.8, 0.9], "maximum": [0.95, 0.999]}
    schema = read(node)
    assert schema.leaves["x"].places == (Bounds(0.8, 0.95), Bounds(0.9, 0.999))
    assert refused(schema, {"x": [0.85, 0.95]}) == []
    assert refused(schema, {"x": [0.85, 0.5]}) == ["`x.1` must be at least 0.9 and at most 0.999, but is 0.5."]
    assert kinds(read({**node, "default": [0.9, 2.0]})) == ["default"]
    half = leaf({**node, "maximum": [0.95, float("inf")]})
    assert half.places[1] == Bounds(0.9, None)


def test_exclusive_bounds_as_numbers_and_as_flags_of_draft_4() -> None:
    assert leaf({"type": "number", "exclusiveMinimum": 0}).interval == Bounds(0, None, True)
    assert leaf({"type": "number", "minimum": 0, "exclusiveMinimum": True}).interval == Bounds(0, None, True)
    assert leaf({"type": "number", "maximum": 1, "exclusiveMaximum": False}).interval == Bounds(None, 1)
    both = leaf({"type": "number", "minimum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 3, "maximum": 3})
    assert both.interval == Bounds(1, 3, False, True)


@pytest.mark.parametrize(
    ("node", "nothing"),
    [
        ({"type": "int", "minimum": 3, "maximum": 2}, True),
        ({"type": "int", "minimum": 3, "maximum": 3, "math_cond": "> 3"}, True),
        ({"type": "int", "minimum": 0.2, "maximum": 0.8}, True),
        ({"type": "int", "minimum": 0, "maximum": 1, "math_cond": "> 0 < 1"}, True),
        ({"type": "ordered_int", "enum": [1, 2], "minimum": 5}, True),
        ({"type": "int", "minimum": 6, "maximum": 6}, False),
        ({"type": "float", "minimum": 0.2, "maximum": 0.8}, False),
    ],
)
def test_bounds_that_leave_nothing(node: dict[str, Any], nothing: bool) -> None:
    assert ("contradiction" in kinds(read(node))) == nothing


# ---- types, choices, defaults ----


def test_choices_that_are_not_of_the_type() -> None:
    words = read({"type": "int", "enum": ["a", "b"], "default": "a"})
    assert (words.leaves["x"].kind, words.leaves["x"].choices) == ("categorical", ("a", "b"))
    assert kinds(words) == ["contradiction"]
    mixed = read({"type": "int", "enum": [1, "a", 2, None, float("nan")], "default": 1})
    assert mixed.leaves["x"].choices == (1, 2)
    assert leaf({"type": "bool", "enum": ["true", "False"]}).choices == (True, False)
    assert leaf({"type": "categorical", "enum": [1, "a", True, 1.0]}).choices == (1, "a", True)
    assert kinds(read({"type": "categorical", "enum": "abc"})) == ["unreadable"]
    for kind in ("categorical", "ordered", "strange"):
        endless = read({"type": kind, "enum": ["a", float("inf"), 10**400]})
        assert endless.leaves["x"].choices == ("a",)
        assert "unreadable" in kinds(endless)
    nothing = read({"type": "int", "enum": [None, float("inf")]})
    assert nothing.leaves["x"].choices is None
    assert refused(nothing, {"x": 3}) == []


def test_choices_with_line_breaks() -> None:
    schema = read({"type": "categorical", "enum": ["\nKL", "\nCE(cross entropy)"], "default": "KL"})
    assert schema.leaves["x"].choices == ("KL", "CE(cross entropy)")
    assert kinds(schema) == ["unreadable"]


def test_choices_of_the_items_of_a_list() -> None:
    schema = read({"type": "subset_list", "enum": ["q", "k", "v"], "default": ["q"]})
    assert refused(schema, {"x": ["k", "v"]}) == []
    assert refused(schema, {"x": ["k", "w"]}) == ["`x.1` must be one of q, k, v, but is 'w'."]
    several = leaf({"type": "categorical", "enum": ["console", "file"], "default": ["console", "file"]})
    assert several.kind == "list"
    whole = read({"type": "array", "enum": [[1, 2], [3]], "default": [3]})
    assert refused(whole, {"x": [1, 2]}) == []
    assert len(refused(whole, {"x": [1]})) == 1


def test_weights_follow_their_choices() -> None:
    found = leaf({"type": "int", "enum": [1, "odd", 1, 2], "option_weights": [0.2, 0.5, 0.1, 0.3]})
    assert (found.choices, found.weights) == ((1, 2), (0.2, 0.3))


@pytest.mark.parametrize("default", ["a", True, [1], {"a": 1}, 1.5, float("nan"), 10**400])
def test_a_default_of_another_type(default: Any) -> None:
    schema = read({"type": "int", "default": default, "minimum": 0})
    assert kinds(schema) == ["default"]
    assert refused(schema, {"x": default if default == default else None}) == []


def test_a_default_that_its_own_schema_forbids_is_no_problem_of_a_spec() -> None:
    schema = read({"type": "int", "default": 18888, "minimum": 49152, "maximum": 65535})
    assert kinds(schema) == ["default"]
    assert refused(schema, {"x": 18888}) == []
    assert refused(schema, {"x": 18889}) == ["`x` must be at least 49152 and at most 65535, but is 18889."]


def test_values_with_a_meaning_of_their_own() -> None:
    schema = read({"type": "float", "default": 0.1, "math_cond": "> 0.0", "x_also": [0]})
    assert refused(schema, {"x": 0.0}) == []
    assert refused(schema, {"x": -1.0}) == ["`x` must be a number above 0, or 0, but is -1.0."]


# ---- dependences ----


def test_depends_on_with_commas_lists_and_siblings() -> None:
    width = {"type": "int", "default": 4}
    members = {"w": width, "h": width, "a": {"type": "int", "depends_on": "g.w , g.h", "math_cond": "<depends_on"},
               "b": {"type": "int", "depends_on": ["w", "g.h"], "math_cond": ">= depends_on"}}  # fmt: skip
    schema = read_schema({"properties": {"g": {"properties": members}}})
    assert schema.leaves["g.a"].depends_on == ("g.w", "g.h")
    assert schema.leaves["g.b"].depends_on == ("g.w", "g.h")
    assert schema.findings == ()
    assert kinds(read({"type": "int", "depends_on": 3})) == ["unreadable"]
    assert kinds(read({"type": "int", "math_cond": "> depends_on"})) == ["contradiction"]


def test_circles_of_dependences() -> None:
    def on(parent: str) -> dict[str, Any]:
        return {"type": "int", "default": 1, "depends_on": parent, "math_cond": "> depends_on"}

    schema = read_schema({"properties": {"a": on("b"), "b": on("c"), "c": on("a"), "d": on("a"), "e": on("e")}})
    assert [finding.name for finding in schema.findings if "depends on itself" in finding.text] == ["a", "b", "c", "e"]


def test_one_meaning_or_none_of_a_multiple() -> None:
    assert leaf({"type": "int", "math_cond": "/ 8", "multipleOf": 12}).multiple == 24
    for node in ({"type": "int", "math_cond": "/ 2", "depends_on": "y"}, {"type": "float", "multipleOf": 0.1},
                 {"type": "int", "math_cond": "/ 2.5"}, {"type": "int", "math_cond": "^ 1"}):  # fmt: skip
        schema = read_schema({"properties": {"x": node, "y": {"type": "int"}}})
        assert schema.leaves["x"].multiple is None
        assert kinds(schema) == ["unenforced"]
    powers = read({"type": "int", "math_cond": "^ 2", "default": 8, "maximum": 64})
    assert refused(powers, {"x": 16}) == []
    assert refused(powers, {"x": 12}) == ["`x` must be at most 64 and a power of 2, but is 12."]
    assert len(refused(powers, {"x": 1})) == 1


# ---- plain draft 2020-12 ----

PLAIN = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/plain.json",
    "title": "Settings",
    "$ref": "#/$defs/Settings",
    "$defs": {
        "Settings": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "optimizer": {"$ref": "#/$defs/Optimizer", "default": {"name": "adam", "rate": 0.001}},
                "scheduler": {"anyOf": [{"$ref": "#/$defs/Cosine"}, {"$ref": "#/$defs/Step"}, {"type": "null"}]},
                "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                "device": {"oneOf": [{"const": "cpu"}, {"const": "cuda"}, {"type": "integer", "minimum": 0}]},
                "width": {"type": "integer", "multipleOf": 8, "minimum": 8, "maximum": 512, "default": 64},
                "betas": {"type": "array", "items": {"type": "number", "exclusiveMaximum": 1}, "minItems": 2,
                          "maxItems": 2, "default": [0.9, 0.999]},
                "tags": {"type": "array", "items": {"type": "string", "minLength": 1}, "uniqueItems": True},
                "extra": {"type": "object", "additionalProperties": {"type": "number"}},
                "mode": {"enum": ["fast", "slow", None], "default": "fast"},
                "ratio": {"allOf": [{"$ref": "plain.json#/nowhere"}, {"$ref": "#ratio"}, {"maximum": 0.9}]},
                "level": {"type": "integer", "not": {"const": 0}, "default": 1},
            },
            "required": ["optimizer"],
        },
        "Optimizer": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": ["adam", "sgd"]},
                "rate": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.01},
            },
            "additionalProperties": {"type": "number"},
            "if": {"properties": {"name": {"const": "sgd"}}},
        },
        "Cosine": {"type": "object", "properties": {"kind": {"const": "cosine"}, "floor": {"type": "number"}}},
        "Step": {"type": "object", "properties": {"kind": {"const": "step"}, "every": {"type": "integer"}}},
        "Ratio": {"$anchor": "ratio", "type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
    },
}  # fmt: skip


def test_plain_leaves() -> None:
    schema = read_schema(json.loads(json.dumps(PLAIN)))
    assert schema.groups == {"optimizer", "scheduler"}
    assert schema.open_groups == {"optimizer"}
    assert {name: each.kind for name, each in schema.leaves.items()} == {
        "optimizer.name": "string", "optimizer.rate": "float", "scheduler.kind": "categorical",
        "scheduler.floor": "float", "scheduler.every": "int", "seed": "int", "device": "categorical", "width": "int",
        "betas": "list", "tags": "list", "extra": "collection", "mode": "categorical", "ratio": "float", "level": "int",
    }  # fmt: skip
    assert schema.leaves["scheduler.kind"].choices == ("cosine", "step")
    assert schema.leaves["mode"].choices == ("fast", "slow")
    assert schema.leaves["ratio"].interval == Bounds(0, 0.9)
    assert schema.leaves["ratio"].default == 0.5
    assert schema.leaves["width"].multiple == 8
    assert schema.leaves["level"].excluded == (0.0,)
    assert {(finding.name, finding.kind) for finding in schema.findings} == {
        ("optimizer", "unenforced"), ("ratio", "unreadable")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"optimizer": {"name": "lion", "rate": 0.0, "anything": 3}}, ["optimizer.name", "optimizer.rate"]),
        ({"scheduler": {"kind": "step", "every": 1.5}}, ["scheduler.every"]),
        ({"scheduler": None, "seed": None, "device": "cuda", "extra": {"a": "b"}}, []),
        ({"device": -1}, ["device"]),
        ({"device": 1, "tags": ["a", "a"]}, ["tags"]),
        ({"tags": ["a", ""]}, ["tags.1"]),
        ({"betas": [0.9]}, ["betas"]),
        ({"betas": [0.9, 1.0]}, ["betas.1"]),
        ({"tags": "a"}, ["tags"]),
        ({"width": 20, "level": 0, "ratio": 0.95}, ["level", "ratio", "width"]),
        ({"depth": 1}, ["depth"]),
    ],
)
def test_plain_validation(spec: dict[str, Any], named: list[str]) -> None:
    schema = read_schema(PLAIN)
    assert [problem.name for problem in validate.check(spec, {"train": schema})] == named


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ({"$ref": "#/properties/x"}, "unreadable"),
        ({"$ref": "#"}, "unreadable"),
        ({"$ref": 3}, "unreadable"),
        ({"$ref": "https://example.org/other.json"}, "unreadable"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "contradiction"),
        ({"allOf": [{"enum": [1]}, {"enum": [2]}]}, "contradiction"),
        ({"anyOf": {}}, "unreadable"),
        ({"type": "string", "pattern": "("}, "unreadable"),
        ({"type": "integer", "multipleOf": 0}, "unreadable"),
        ({"type": "integer", "not": {"type": "string"}}, "unenforced"),
        ({"type": "int", "properties": [1]}, "unreadable"),
    ],
)
def test_words_that_cannot_be_followed(node: dict[str, Any], kind: str) -> None:
    assert kind in [finding.kind for finding in read(node).findings]


def test_joined_nodes_are_as_strict_as_the_strictest() -> None:
    parts = [{"minimum": 0, "exclusiveMaximum": 9, "enum": [1, 2, 5]}, {"minimum": 2, "exclusiveMaximum": 5},
             {"enum": [5, 2, 8], "type": "integer"}]  # fmt: skip
    found = leaf({"type": "number", "allOf": parts, "default": 2})
    assert (found.kind, found.choices, found.interval) == ("int", (2, 5), Bounds(2, 5, False, True))
    members = [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"type": "number"}, "b": {"const": 1}}}]
    schema = read({"allOf": members})
    assert (schema.leaves["x.a"].low, schema.leaves["x.b"].choices) == (1, (1,))


def test_one_text_for_a_list_of_texts_only() -> None:
    assert refused(read({"type": "list", "default": []}), {"x": "a"}) == []
    assert len(refused(read({"type": "list", "default": [1, 2]}), {"x": "a"})) == 1
    assert len(refused(read({"type": "array", "default": []}), {"x": "a"})) == 1


def test_a_value_that_may_be_a_number_or_a_list() -> None:
    rate = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}], "default": 1e-6,
            "minimum": 0.0, "maximum": float("inf")}  # fmt: skip
    schema = read(rate)
    assert (schema.leaves["x"].kind, len(schema.leaves["x"].alternatives)) == ("float", 2)
    assert refused(schema, {"x": [1e-6, 1e-5]}) == []
    assert refused(schema, {"x": "fast"}) == [
        "`x` must be a number at least 0 or a list of items each a number, but is 'fast'."
    ]
    words = {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["eva"]}], "enum": ["true", "false", "eva"]}
    assert kinds(read({**words, "default": True})) == []
