"""What a lint says, and what is known of one key."""

from typing import Any

import pytest

from schemas import dotted, packaged, yamlio
from schemas.dialect import Schema, read_schema
from search_spaces import overlays
from search_spaces.derive import Choice, derive
from search_spaces.lint import lint
from search_spaces.lookup import Entry, look_up

TEMPLATE = yamlio.loads(packaged.template("train")).data


def leaf(kind: str, default: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, "default": default, "automl_enabled": True, **more}


def group(**members: Any) -> dict[str, Any]:
    return {"type": "collection", "properties": members}


def schema(**members: Any) -> Schema:
    return read_schema({"properties": members})


def kinds(found: Schema, choice: Choice | None = None, spec: dict[str, Any] | None = None) -> dict[str, set[str]]:
    space = derive(found, spec or {}, None, choice)
    said: dict[str, set[str]] = {}
    for finding in lint(found, space, spec):
        said.setdefault(finding.kind, set()).add(finding.name)
    return said


def test_each_kind_is_found() -> None:
    found = schema(
        evaluate=group(batch_size=leaf("int", 4, minimum=1, maximum=64)),
        dataset=group(
            workers=leaf("int", 8, minimum=1, maximum=64),
            test_dataset=group(prob=leaf("float", 0.5, minimum=0.0, maximum=1.0)),
            noise=leaf("float", 0.7, minimum=0.0, maximum=0.5),
            size=leaf("float", 1.0, minimum=2.0, maximum=1.0),
        ),
        train=group(
            optim=group(
                type=leaf("categorical", "AdamW", enum=["AdamW"]),
                momentum=leaf("float", 0.9, minimum=0.0, maximum=1.0),
                lr=leaf("float", 1e-4, minimum=0.0),
            )
        ),
    )
    said = kinds(found)
    assert said["dead"] == {"evaluate.batch_size", "dataset.test_dataset.prob", "train.optim.momentum"}
    assert said["throughput"] == {"dataset.workers"}
    assert said["default"] >= {"dataset.noise"}
    assert said["unbounded"] == {"train.optim.lr"}
    assert said["contradiction"] == {"dataset.size"}


def test_findings_of_one_kind_stand_together() -> None:
    space = derive(packaged.schema("train"), TEMPLATE, overlays.overlay("deformable_detr"))
    order = [finding.kind for finding in lint(packaged.schema("train"), space, TEMPLATE)]
    assert len(set(order)) == sum(a != b for a, b in zip(order, [*order[1:], None], strict=True))


def test_a_dependence_that_the_space_keeps_is_no_finding() -> None:
    found = schema(
        model=group(
            num_queries=leaf("int", 300, minimum=1),
            num_select=leaf("int", 300, minimum=1, depends_on="model.num_queries"),
        ),
        warmup=leaf("int", 0, minimum=0, math_cond="/ 2", depends_on="epoch"),
        other=leaf("int", 1, minimum=0, maximum=3, depends_on="epoch"),
        epoch=leaf("int", 10, minimum=1),
    )
    assert kinds(found)["unenforced"] == {"other"}


def test_a_schema_without_a_learning_knob_says_so_and_names_some() -> None:
    found = schema(
        dataset=group(train=group(batch_size=leaf("int", 4, minimum=1), workers=leaf("int", 4, minimum=1))),
        train=group(optim=group(lr={"type": "float", "default": 1e-4})),
    )
    space = derive(found, {})
    assert space.parameters == ()
    (empty,) = [finding for finding in lint(found, space) if finding.kind == "empty"]
    assert "of the 2 keys" in empty.text
    assert "train.optim.lr" in empty.text
    assert derive(found, {}, None, Choice(params=("train.optim.lr",)))["train.optim.lr"].scale == "log"


def test_a_value_that_no_draw_has_is_said() -> None:
    found = schema(train=group(optim=group(lr=leaf("float", 1e-4, minimum=0.0, maximum=1.0))))
    choice = Choice(ranges={"lr": "1e-6:1e-5:log"})
    assert kinds(found, choice)["default"] == {"train.optim.lr"}
    assert "default" not in kinds(found, choice, dotted.put({}, "train.optim.lr", 5e-6))


def look(name: str, choice: Choice | None = None, **values: Any) -> Entry:
    spec = TEMPLATE
    for key, value in values.items():
        spec = dotted.put(spec, key.replace("__", "."), value)
    read = packaged.schema("train")
    return look_up(name, read, derive(read, spec, overlays.overlay("deformable_detr"), choice), spec)


def test_a_searched_key() -> None:
    entry = look("lr", train__optim__lr=1e-3)
    assert (entry.name, entry.default, entry.value, entry.searched) == ("train.optim.lr", 2e-4, 1e-3, True)
    assert entry.bounds == "above 0 and at most 0.01"
    (parameter,) = entry.parameters
    assert (parameter.scale, parameter.low, parameter.high) == ("log", 1e-4, 1e-2)
    assert {"train.optim.lr_backbone"} <= set(entry.dependents)
    assert entry.rule == ""


def test_a_key_that_coordinates_set_is_found_by_either_name() -> None:
    for name in ("lr_backbone", "train.optim.lr_backbone/lr"):
        entry = look(name)
        assert entry.name == "train.optim.lr_backbone"
        assert [parameter.name for parameter in entry.parameters] == ["train.optim.lr_backbone/lr"]
        assert "times train.optim.lr" in entry.rule
        assert {"train.optim.lr", "model.train_backbone"} <= set(entry.depends_on)


def test_keys_that_are_not_searched_say_why() -> None:
    assert "optimizer is AdamW" in look("momentum").because
    assert "train.optim.momentum" in look("optimizer").dependents
    assert look("optimizer").because.endswith("ask for it with automl.params=[+optimizer]")
    assert "automl_disabled_parameters" in look("hidden_dim").because
    assert look("model_name").because == "the schema does not call it searchable"
    assert look("num_select").because.startswith("derived: ")
    assert not look("workers").searched


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown parameter `momentun`; did you mean `momentum`"):
        look("momentun")


@pytest.mark.parametrize("tier", ["narrow", "medium", "wide"])
def test_every_key_can_be_looked_up(tier: str) -> None:
    read = packaged.schema("train")
    space = derive(read, TEMPLATE, overlays.overlay("deformable_detr"), Choice(tier=tier))
    for name in read.leaves:
        entry = look_up(name, read, space, TEMPLATE)
        assert entry.because
        assert entry.searched == (name in space.targets and name != "model.num_select")
