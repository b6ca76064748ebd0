from typing import Any

import pytest
from jsonschema import Draft202012Validator

from model.spec import ExperimentSpec
from schemas import dotted, packaged
from schemas.dialect import read_schema
from schemas.structure import structure
from schemas.validate import check, to_json_schema, validator

SCHEMAS = {action: packaged.schema(action) for action in packaged.manifest()["actions"]}


def problems(given: dict[str, Any]) -> list[str]:
    return [problem.text for problem in check(given, SCHEMAS)]


def nested(name: str, value: Any) -> dict[str, Any]:
    return dotted.put({}, name, value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("train.optim.lr", 1.0, "`train.optim.lr` must be above 0 and at most 0.01, but is 1.0."),
        ("train.optim.lr", 0, "`train.optim.lr` must be above 0 and at most 0.01, but is 0."),
        ("train.optim.lr", "fast", "`train.optim.lr` must be a number above 0 and at most 0.01, but is 'fast'."),
        ("train.num_epochs", 1.5, "`train.num_epochs` must be a whole number at least 1, but is 1.5."),
        ("train.num_epochs", True, "`train.num_epochs` must be a whole number at least 1, but is True."),
        ("dataset.pin_memory", 1, "`dataset.pin_memory` must be true or false, but is 1."),
        ("train.gpu_ids", 3, "`train.gpu_ids` must be a list, but is 3."),
        ("train.cudnn", 3, "`train.cudnn` must be a group of keys, but is 3."),
        ("train", 3, "`train` must be a group of keys, but is 3."),
        ("train.clip_grad_norm", -1.0, "`train.clip_grad_norm` must be a number above 0, or 0.0, but is -1.0."),
        ("export.input_channel", 2, "`export.input_channel` must be one of 1, 3, but is 2."),
        ("quantize.device", "tpu",
         "`quantize.device` must be text that fits ^(cuda|cpu|trt|cuda:[0-9]+)$, but is 'tpu'."),
        ("train.optim.optimizer", "adamw",
         "`train.optim.optimizer` must be one of AdamW, SGD, but is 'adamw'; did you mean `AdamW`?"),
        ("train.optim.lr_bckbone", 1, "unknown key `train.optim.lr_bckbone`; did you mean `train.optim.lr_backbone`?"),
        ("train.lr", 1, "unknown key `train.lr`; did you mean `train.optim.lr`?"),
        ("modle", {}, "unknown key `modle`; did you mean `model`?"),
    ],
)  # fmt: skip
def test_one_problem_one_sentence(name: str, value: Any, text: str) -> None:
    assert problems(nested(name, value)) == [text]


def test_a_dotted_key_in_a_file() -> None:
    (text,) = problems({"train.optim.lr": 1e-4})
    assert "groups in place of the dots" in text


def test_all_at_once_each_once() -> None:
    given = {
        "train": {"optim": {"lr": 5, "x1": 1, "y1": 2}, "num_epochs": 0, "precision": "fp64"},
        "export": {"input_channel": "two"},
        "extra": 1,
    }
    assert sorted(problem.name for problem in check(given, SCHEMAS)) == [
        "export.input_channel", "extra", "train.num_epochs", "train.optim.lr", "train.optim.x1", "train.optim.y1",
        "train.precision",
    ]  # fmt: skip


ACCEPTED = [
    ("train.optim.lr", "1e-3", 1e-3), ("train.num_epochs", "12", 12), ("train.num_epochs", 12.0, 12),
    ("dataset.pin_memory", "TRUE", True), ("dataset.pin_memory", "false", False), ("train.optim.lr", None, 2e-4),
    ("train.clip_grad_norm", 0, 0.0),
    ("train.pretrained_model_path", "", None), ("evaluate.checkpoint", "???", None), ("model_name", 7, "7"),
    ("dataset.augmentation.fixed_random_crop", None, None),
]  # fmt: skip
"""Name, value as written, value in the spec."""


@pytest.mark.parametrize(("name", "value", "means"), ACCEPTED)
def test_accepts_what_the_classes_accept(name: str, value: Any, means: Any) -> None:
    given = nested(name, value)
    assert problems(given) == []
    spec, found = structure(ExperimentSpec, given)
    assert found == []
    assert dotted.get(spec.to_dict(), name) == means


@pytest.mark.parametrize(
    ("name", "value"),
    [("train.optim.lr", "1e-1"), ("train.num_epochs", "1.5"), ("dataset.pin_memory", "yes"), ("train.gpu_ids", 1),
     ("model.backbone", ""), ("train.optim.optimizer", "Adam"), ("train.optim.lr", True), ("train.optim.lr", [1e-4]),
     ("results_dir", ["a"]), ("train.seed", -2), ("model.nope", 1)],
)  # fmt: skip
def test_refuses_what_the_classes_refuse(name: str, value: Any) -> None:
    assert len(problems(nested(name, value))) == 1
    assert len(structure(ExperimentSpec, nested(name, value))[1]) == 1


def test_sections_of_other_actions_have_their_own_schema() -> None:
    given = {"train": {"num_epochs": 3}, "gen_trt_engine": {"tensorrt": {"data_type": "FP8"}}, "evaluate": {"x": 1}}
    assert {problem.name for problem in check(given, SCHEMAS)} == {"gen_trt_engine.tensorrt.data_type", "evaluate.x"}
    alone = {"train": SCHEMAS["train"]}
    assert any("evaluate" in problem.text for problem in check({"evaluate": {}}, alone))


def test_translation_is_draft_2020_12() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(to_json_schema(schema))


def test_rules_of_foreign_schemas() -> None:
    schema = read_schema({
        "properties": {
            "width": {"type": "int", "default": 64, "math_cond": "/ 8", "minimum": 8, "maximum": 64},
            "shift": {"type": "int", "default": 1, "math_cond": "!= 0"},
            "any": {"anyOf": [{"type": "number"}, {"type": "array"}]},
        },
        "required": ["quantize"],
    })  # fmt: skip
    found = check({"width": 12, "shift": 0}, {"train": schema})
    assert [problem.text for problem in found] == [
        "`shift` must be not 0, but is 0.",
        "`width` must be at least 8 and at most 64 and a multiple of 8, but is 12.",
    ]
    assert check({"width": 16, "shift": 2}, {"train": schema}) == []


def test_the_translation_is_compiled_once_for_each_schema() -> None:
    again = read_schema(packaged.document("train"))
    assert validator(SCHEMAS["train"]) is validator(SCHEMAS["train"])
    assert validator(again) is not validator(SCHEMAS["train"])
