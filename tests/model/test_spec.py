"""Rules between the keys of a spec, and of the items of its lists: each says the rule, the value and the fix, and all
that are broken are told at once."""

from typing import Any

import pytest

from model.errors import SpecError
from model.spec import ExperimentSpec
from schemas import dotted

AUG = "dataset.augmentation."
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"model.num_select": 900, "model.num_queries": 100, "dataset.num_classes": 9}, "model.num_select"),
    ({"model.num_feature_levels": 3}, "model.return_interm_indices"),
    ({"model.return_interm_indices": [1, 2, 2, 4]}, "model.return_interm_indices"),
    ({"model.nheads": 7}, "model.hidden_dim"),
    ({"model.two_stage": True, "model.with_box_refine": False}, "model.two_stage"),
    ({"model.dilation": True, "model.backbone": "gc_vit_tiny"}, "model.dilation"),
    ({"model.loss_types": []}, "model.loss_types"),
    ({"train.num_epochs": 3, "train.validation_interval": 4}, "train.validation_interval"),
    ({"train.num_epochs": 3, "train.checkpoint_interval": 4}, "train.checkpoint_interval"),
    ({"train.optim.lr_steps": [3, 0]}, "train.optim.lr_steps"),
    ({AUG + "train_random_crop_min": 600}, AUG + "train_random_crop_max"),
    ({AUG + "scales": []}, AUG + "scales"),
    ({AUG + "train_random_resize": [400, 0]}, AUG + "train_random_resize"),
    ({AUG + "input_mean": [0.5]}, AUG + "input_mean"),
    ({AUG + "input_std": [0.2, 0.2, 0.0]}, AUG + "input_std"),
    ({"evaluate.input_width": 640}, "evaluate.input_height"),
    ({"inference.input_height": 640}, "inference.input_height"),
    ({"train.gpu_ids": [0, "b"]}, "train.gpu_ids[1]"),
]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in values.items():
        given = dotted.put(given, name, value)
    return given


@pytest.mark.parametrize(("values", "named"), BROKEN, ids=[named for _, named in BROKEN])
def test_every_rule_is_told_with_its_key(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError) as caught:
        ExperimentSpec.from_dict(nested(values))
    (problem,) = caught.value.problems
    assert problem.startswith(f"`{named}` ")


def test_all_at_once() -> None:
    independent = {name: value for values, _ in BROKEN[7:] for name, value in values.items()}
    with pytest.raises(SpecError) as caught:
        ExperimentSpec.from_dict(nested(independent))
    assert {problem.split("`")[1] for problem in caught.value.problems} == {named for _, named in BROKEN[7:]}


@pytest.mark.parametrize(
    "values",
    [
        {"model.num_select": 899, "model.num_queries": 100, "dataset.num_classes": 9},
        {AUG + "fixed_random_crop": 64, AUG + "train_random_crop_min": 700},
        {"train.optim.lr_steps": []},
        {"train.checkpoint_interval": 500, "train.checkpoint_interval_unit": "step"},
    ],
)
def test_what_no_rule_forbids(values: dict[str, Any]) -> None:
    assert ExperimentSpec.from_dict(nested(values)).problems() == []
