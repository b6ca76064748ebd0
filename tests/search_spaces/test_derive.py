"""The space of Deformable DETR: what is searched, what is not, and that no draw breaks a rule."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.spec import ExperimentSpec
from schemas import dotted, packaged, yamlio
from search_spaces import overlays
from search_spaces.derive import TIERS, Choice, derive
from search_spaces.space import Parameter, SearchSpace

SIXTEEN = packaged.document("train")["automl_default_parameters"]
TEMPLATE = yamlio.loads(packaged.template("train")).data
FLIPS: dict[str, list[Any]] = {
    "train.optim.optimizer": ["AdamW", "SGD"],
    "train.optim.lr_scheduler": ["MultiStep", "StepLR"],
    "dataset.augmentation.fixed_random_crop": [None, 640],
    "train.pretrained_model_path": [None, "/a.pth"],
    "model.pretrained_backbone_path": [None, "/b.pth"],
    "train.resume_training_checkpoint_path": [None, "/c.pth"],
    "model.train_backbone": [True, False],
    "train.clip_grad_norm": [0.1, 0.0],
    "train.num_epochs": [2, 4, 10, 50],
    "train.optim.lr_steps": [[40], [5], []],
    "dataset.num_classes": [3, 91],
    "model.num_queries": [300, 100],
    "train.optim.lr": [2e-4, 1e-3, 1e-2],
}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal but for the last bits of floats."""
    close = [math.isclose(a[key], b[key], rel_tol=1e-9) if isinstance(a[key], float) else a[key] == b[key] for key in b]
    return a.keys() == b.keys() and all(close)


def space(choice: Choice | None = None, **values: Any) -> SearchSpace:
    """Of the packaged template with some values changed (`__` for a dot)."""
    spec = TEMPLATE
    for name, value in values.items():
        spec = dotted.put(spec, name.replace("__", "."), value)
    return derive(packaged.schema("train"), spec, overlays.overlay("deformable_detr"), choice)


def reasons(found: SearchSpace) -> dict[str, str]:
    return {dropped.name: dropped.because for dropped in found.dropped}


def names(found: SearchSpace) -> set[str]:
    return {parameter.name for parameter in found.parameters}


def ends(parameter: Parameter) -> tuple[Any, Any]:
    return parameter.low, parameter.high


def test_the_narrow_space_of_the_template() -> None:
    found = space()
    assert names(found) == {
        "train.optim.lr", "train.optim.lr_backbone/lr", "train.optim.weight_decay", "model.dropout_ratio", "lr_drop",
        "dataset.augmentation.horizontal_flip_prob",
    }  # fmt: skip
    assert 5 <= len(found.parameters) <= 7


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("weights", [None, "/a.pth"])
def test_each_of_the_sixteen_is_searched_or_left_out_with_a_reason(tier: str, weights: str | None) -> None:
    found = space(Choice(tier=tier), train__pretrained_model_path=weights)
    why = reasons(found)
    for name in SIXTEEN:
        assert (name in found.targets) or why.get(name), name
        assert name == "model.num_select" or (name in found.targets) != (name in why), name
    assert all(why.values())


def test_tiers_hold_one_another() -> None:
    narrow, medium, wide = (names(space(Choice(tier=tier))) for tier in TIERS)
    assert narrow < medium < wide


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ({}, 1e-4, 5e-3),
        ({"model__pretrained_backbone_path": "/b.pth"}, 2e-5, 2e-3),
        ({"train__pretrained_model_path": "/a.pth"}, 2e-5, 2e-3),
        # The user's own rate is the middle, with or without weights, inside the schema's 0.01.
        ({"train__optim__lr": 1e-4}, 1e-5, 1e-3),
        ({"train__optim__lr": 5e-3}, 5e-4, 1e-2),
    ],
)
def test_range_of_the_learning_rate(values: dict[str, Any], low: float, high: float) -> None:
    rate = space(**values)["train.optim.lr"]
    assert (rate.scale, rate.low, rate.high) == ("log", pytest.approx(low), pytest.approx(high))


def test_ratio_of_the_backbone() -> None:
    assert ends(space()["train.optim.lr_backbone/lr"]) == (0.1, 1.0)
    assert ends(space(model__pretrained_backbone_path="/b")["train.optim.lr_backbone/lr"]) == (0.02, 0.5)
    frozen = space(model__train_backbone=False)
    assert "train.optim.lr_backbone/lr" not in names(frozen)
    assert "model.train_backbone is False" in reasons(frozen)["train.optim.lr_backbone"]


def test_backbone_rate_stays_below_its_bound() -> None:
    found = space()
    sample = {**found.draw(random.Random(0)), "train.optim.lr": 5e-3, "train.optim.lr_backbone/lr": 1.0}
    assert found.resolve(sample)["train.optim.lr_backbone"] == 1e-3


def test_optimizer_brings_momentum() -> None:
    assert "train.optim.momentum" in names(space(train__optim__optimizer="SGD"))
    assert "optimizer is AdamW" in reasons(space())["train.optim.momentum"]


def test_scheduler_swaps_the_coordinate_of_the_drop() -> None:
    steps, every = space(), space(train__optim__lr_scheduler="StepLR")
    assert ("lr_drop" in names(steps), "train.optim.lr_step_size/num_epochs" in names(steps)) == (True, False)
    assert ("lr_drop" in names(every), "train.optim.lr_step_size/num_epochs" in names(every)) == (False, True)
    assert "MultiStep" in reasons(steps)["train.optim.lr_step_size"]
    assert "StepLR" in reasons(every)["lr_drop"]
    values = steps.resolve({**steps.draw(random.Random(0)), "lr_drop": 0.8})
    assert values["train.optim.lr_steps"] == [8]


def test_decay_is_live_only_where_a_drop_is_reached() -> None:
    medium = Choice(tier="medium")
    assert "train.optim.lr_decay" in names(space(medium))
    without = Choice(tier="medium", exclude=("lr_drop",))
    assert "no drop" in reasons(space(without))["train.optim.lr_decay"]
    assert "train.optim.lr_decay" in names(space(without, train__optim__lr_steps=[5]))
    short = space(medium, train__num_epochs=2)
    assert "lr_drop" not in names(short)
    assert "no drop of the learning rate falls within the 2 epochs" in reasons(short)["train.optim.lr_decay"]


def test_crops_go_with_large_scale_jitter_and_keep_their_order() -> None:
    medium = Choice(tier="medium")
    found = space(medium)
    crop = "dataset.augmentation.train_random_crop_"
    assert {f"{crop}min", f"{crop}max/left"} <= names(found)
    assert f"{crop}max" in found.targets
    jitter = space(medium, dataset__augmentation__fixed_random_crop=640)
    assert reasons(jitter)[f"{crop}min"] == reasons(jitter)[f"{crop}max"]
    assert "fixed_random_crop is 640" in reasons(jitter)[f"{crop}min"]
    # Also said in the narrow tier: that a key does nothing says more than that it belongs to a wider tier.
    assert "640" in reasons(space(dataset__augmentation__fixed_random_crop=640))[f"{crop}max"]


def test_one_crop_alone_stays_on_its_side_of_the_other() -> None:
    crop = "dataset.augmentation.train_random_crop_"
    only_min = space(Choice(params=("train_random_crop_min",), ranges={"train_random_crop_min": "100:900"}))
    assert ends(only_min[f"{crop}min"]) == (100, 599)
    only_max = space(Choice(params=("train_random_crop_max",), ranges={"train_random_crop_max": "100:900"}))
    assert ends(only_max[f"{crop}max"]) == (385, 900)


def test_a_loaded_model_fixes_its_shape() -> None:
    wide = Choice(tier="wide")
    shape = {"model.enc_layers", "model.dec_layers", "model.num_queries"}
    assert shape <= names(space(wide))
    loaded = space(wide, train__pretrained_model_path="/a.pth")
    assert not shape & names(loaded)
    assert {reasons(loaded)[name] for name in shape} == {"fixed by the checkpoint that training starts from"}


def test_num_select_follows_the_queries() -> None:
    found = space(Choice(params=("num_queries",)), dataset__num_classes=2, model__num_select=300)
    assert found.resolve({"model.num_queries": 150})["model.num_select"] == 299
    assert found.resolve({"model.num_queries": 600})["model.num_select"] == 300
    assert "model.num_select" not in space().targets


def test_workers_are_never_searched() -> None:
    for choice in (None, Choice(tier="wide"), Choice(params=("workers",))):
        assert "throughput" in reasons(space(choice))["dataset.workers"]


def test_choices_of_the_user() -> None:
    assert names(space(Choice(params=("lr", "train.optim.lr_backbone")))) == {
        "train.optim.lr", "train.optim.lr_backbone/lr",
    }  # fmt: skip
    assert names(space(Choice(params=("+lr_decay",)))) == names(space()) | {"train.optim.lr_decay"}
    assert reasons(space(Choice(params=("lr",))))["train.optim.weight_decay"] == "not among automl.params"
    without = space(Choice(exclude=("dropout_ratio",)))
    assert reasons(without)["model.dropout_ratio"] == "excluded by you"
    fixed = space(Choice(fix={"weight_decay": 1e-5}))
    assert reasons(fixed)["train.optim.weight_decay"] == "fixed to 1e-05 by you"
    # A fixed condition counts as if it stood in the spec.
    assert "train.optim.momentum" in names(space(Choice(fix={"train.optim.optimizer": "SGD"})))


def test_what_has_no_range_is_left_out_with_a_reason() -> None:
    assert reasons(space(Choice(params=("model_name",))))["model_name"] == "free text"


def test_ranges_of_the_user() -> None:
    rate = space(Choice(ranges={"lr": "1e-5:1e-3:log"}))["train.optim.lr"]
    assert (*ends(rate), rate.scale, rate.origin) == (1e-5, 1e-3, "log", "user")
    # A range of a spec key is meant as it stands, not as a ratio; a range of the coordinate is one.
    backbone = space(Choice(ranges={"lr_backbone": [1e-6, 1e-4, "log"]}))
    assert ends(backbone["train.optim.lr_backbone"]) == (1e-6, 1e-4)
    assert "train.optim.lr_backbone/lr" not in names(backbone)
    assert ends(space(Choice(ranges={"train.optim.lr_backbone/lr": "0.2:0.4"}))["train.optim.lr_backbone/lr"]) == (
        0.2,
        0.4,
    )
    # A range asks for its parameter, also for one that nobody flagged.
    assert "train.optim.lr_decay" in names(space(Choice(ranges={"lr_decay": "0.1:0.5"})))
    wide = space(Choice(ranges={"dim_feedforward": "512:2048"}))
    assert ends(wide["model.dim_feedforward"]) == (512, 2048)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(params=("lrr",)), "unknown parameter `lrr`; did you mean `lr`?"),
        (Choice(exclude=("batch",)), "unknown parameter `batch`"),
        (Choice(fix={"nothing": 1}), "unknown parameter `nothing`"),
        (Choice(params=("gpu_ids",)), "automl_disabled_parameters"),
        (Choice(ranges={"lr": "1e-5"}), "low:high or low:high:log"),
        (Choice(ranges={"lr": "1:2:cubic"}), "low:high or low:high:log"),
        (Choice(ranges={"lr": "2:1"}), "low below high"),
        (Choice(ranges={"lr": "0:1e-3:log"}), "low end above 0"),
        (Choice(ranges={"lr": "1e-5:1:log"}), "inside the schema's bounds.*above 0 and at most 0.01.*1e-05:1"),
        (Choice(tier="huge"), "must be one of narrow, medium, wide, but is 'huge'"),
    ],
)
def test_wrong_choices(choice: Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(choice)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FLIPS.items()}),
       st.sampled_from(TIERS), st.integers(0, 2**32))  # fmt: skip
def test_every_draw_is_a_valid_spec(values: dict[str, Any], tier: str, seed: int) -> None:
    base = TEMPLATE
    for name, value in {**values, "model.num_select": 100}.items():
        base = dotted.put(base, name, value)
    base = ExperimentSpec.from_dict(base).to_dict()
    found = derive(packaged.schema("train"), base, overlays.overlay("deformable_detr"), Choice(tier=tier))
    assert SearchSpace.from_dict(found.to_dict()) == found
    default = {parameter.name: parameter.default for parameter in found.parameters}
    assert default == found.encode(base)
    rng = random.Random(seed)
    for sample in [default, *(found.draw(rng) for _ in range(5))]:
        resolved = found.resolve(sample)
        spec = base
        for name, value in resolved.items():
            spec = dotted.put(spec, name, value)
        ExperimentSpec.from_dict(spec)
        again = found.resolve(found.encode(spec))
        assert same(again, resolved), (again, resolved)


def test_every_dimension_of_the_narrow_space_moves_something() -> None:
    found = space()
    middle = found.draw(random.Random(0))
    for parameter in found.parameters:
        low, high = ({**middle, parameter.name: end} for end in ends(parameter))
        assert found.resolve(low) != found.resolve(high), parameter.name


def test_resuming_keeps_the_optimizer_of_the_checkpoint() -> None:
    found = space(Choice(tier="medium"), train__resume_training_checkpoint_path="/c.pth")
    held = {"train.optim.lr", "train.optim.lr_backbone", "train.optim.weight_decay", "train.optim.lr_linear_proj_mult"}
    assert not held & set(found.targets)
    assert all("training resumes" in reasons(found)[name] for name in held)
    assert {"model.dropout_ratio", "lr_drop", "dataset.augmentation.horizontal_flip_prob"} <= names(found)


def test_a_drop_as_a_fraction_takes_the_place_of_milestones() -> None:
    found = space(Choice(tier="medium"), train__optim__lr_drop=0.8)
    assert {"train.optim.lr_drop", "train.optim.lr_decay"} <= names(found)
    assert "lr_drop" not in names(found)
    assert "train.optim.lr_drop is 0.8" in reasons(found)["lr_drop"]
    assert "train.optim.lr_drop is 0.8" in reasons(found)["train.optim.lr_step_size"]
    assert found["train.optim.lr_drop"].default == pytest.approx(0.8)


def test_the_backbone_is_searched_on_request_and_each_counts_once() -> None:
    wide = space(Choice(tier="wide"))
    assert "model.backbone" not in {*names(wide), *reasons(wide)}
    asked = Choice(params=("+backbone",))
    choices = space(asked)["model.backbone"].choices
    assert len(choices) == len({choice.replace("_", "") for choice in choices}) == 12
    assert "fixed by" in reasons(space(asked, train__pretrained_model_path="/a.pth"))["model.backbone"]
    assert "fixed by" in reasons(space(asked, model__pretrained_backbone_path="/b.pth"))["model.backbone"]


def test_the_data_bound_what_the_schema_cannot_know() -> None:
    facts = {"images": 50, "most_objects": 250, "shortest_side": 480, "longest_side": 640, "most_per_forward": 40}
    read, overlay = packaged.schema("train"), overlays.overlay("deformable_detr")
    found = derive(read, TEMPLATE, overlay, Choice(tier="wide"), facts)
    queries = found["model.num_queries"]
    assert ends(queries) == (250, 600)
    assert queries.origin.startswith("low: data: most_objects is 250; high: overlay")
    batches = {found.resolve(found.draw(random.Random(seed)))["dataset.batch_size"] for seed in range(100)}
    assert batches == {1, 2, 4, 8, 16, 32}
    crop = next(rule for rule in found.rules if rule.target == "dataset.augmentation.train_random_crop_max")
    assert crop.high == 800
    assert {name for name in names(found) if "/place" not in name} == {
        name for name in names(space(Choice(tier="wide"))) if "/place" not in name
    }
