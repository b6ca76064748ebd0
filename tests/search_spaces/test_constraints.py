from typing import Any

import pytest

from schemas.dialect import read_schema
from search_spaces.constraints import Relation, View, explain, holds, relations

SCHEMA = read_schema({
    "properties": {
        "optimizer": {"type": "string", "default": "AdamW"},
        "path": {"type": "string", "default": ""},
        "rate": {"type": "float", "default": 0.1},
        "steps": {"type": "list", "default": [40]},
        "epochs": {"type": "int", "default": 10},
    }
})  # fmt: skip


def view(**spec: Any) -> View:
    facts = {"sgd": {"equal": {"optimizer": "SGD"}}, "both": {"all": ["sgd", {"set": "path"}]}}
    return View(spec=spec, schema=SCHEMA, facts=facts, wanted={"epochs"}, searched={"drop"})


@pytest.mark.parametrize(
    ("condition", "spec", "truth"),
    [
        ({"equal": {"optimizer": "AdamW"}}, {}, True),
        ({"equal": {"optimizer": ["SGD", "AdamW"]}}, {}, True),
        ({"equal": {"optimizer": "AdamW"}}, {"optimizer": "SGD"}, False),
        ({"equal": {"epochs": 10}}, {}, None),
        ({"unset": "path"}, {}, True),
        ({"unset": "path"}, {"path": None}, True),
        ({"set": "path"}, {"path": "x"}, True),
        ({"default": "rate"}, {"rate": 0.1}, True),
        ({"default": "rate"}, {"rate": 0.2}, False),
        ({"default": "rate"}, {"rate": None}, True),
        ({"below": ["rate", 1]}, {}, True),
        ({"below": [1, "rate"]}, {}, False),
        ({"below": ["rate", "epochs"]}, {}, None),
        ({"any_below": ["steps", 40]}, {}, False),
        ({"any_below": ["steps", 40]}, {"steps": [50, 30]}, True),
        ({"searched": "drop"}, {}, True),
        ({"searched": "other"}, {}, False),
        ("sgd", {"optimizer": "SGD"}, True),
        ("both", {"optimizer": "SGD"}, False),
        ({"not": "sgd"}, {}, True),
        ({"not": {"equal": {"epochs": 10}}}, {}, None),
        ({"all": [{"equal": {"epochs": 1}}, {"unset": "path"}]}, {}, None),
        ({"all": [{"equal": {"epochs": 1}}, {"set": "path"}]}, {}, False),
        ({"any": [{"equal": {"epochs": 1}}, {"unset": "path"}]}, {}, True),
        ({"any": [{"equal": {"epochs": 1}}, {"set": "path"}]}, {}, None),
        ({"any": []}, {}, False),
    ],
)
def test_conditions(condition: Any, spec: dict[str, Any], truth: bool | None) -> None:
    assert holds(condition, view(**spec)) is truth


@pytest.mark.parametrize("condition", ["unknown", {"eval": "1"}, {}, {"set": "a", "unset": "b"}, 3])
def test_malformed_conditions(condition: Any) -> None:
    with pytest.raises(ValueError, match=r"condition|facts"):
        holds(condition, view())


def test_explain_fills_in_effective_values() -> None:
    assert explain("optimizer is {optimizer}, path {path}", view(optimizer="SGD")) == "optimizer is SGD, path None"


def test_relations_come_parents_first_and_without_circles() -> None:
    def leaf(cond: str | None = None, on: str | None = None) -> dict[str, Any]:
        node: dict[str, Any] = {"type": "int", "default": 1}
        return {**node, "math_cond": cond, "depends_on": on} if cond else node

    schema = read_schema({
        "properties": {
            "c": leaf("> depends_on", "b"), "b": leaf(">=depends_on", "a, ghost"), "a": leaf(),
            "x": leaf("< depends_on", "y"), "y": leaf("< depends_on", "x"), "self": leaf("> depends_on", "self"),
            "plain": leaf("> 0", "a"),
        }
    })  # fmt: skip
    found = relations(schema)
    assert found[:2] == [Relation("at_least", "b", ("a",)), Relation("above", "c", ("b",))]
    assert [edge.child for edge in found[2:]] in (["x"], ["y"])
