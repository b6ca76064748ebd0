"""What the names of keys tell of a model that nothing here knows, and what the data and the user add to a range."""

import random
import re
from typing import Any

import pytest
import yaml

from schemas.dialect import read_schema
from search_spaces import overlays
from search_spaces.constraints import keys
from search_spaces.derive import Choice, derive
from search_spaces.space import SearchSpace


def leaf(kind: str, default: Any, low: Any = None, high: Any = None, *, search: bool = True, **more: Any) -> Any:
    bounds = {key: bound for key, bound in (("minimum", low), ("maximum", high)) if bound is not None}
    return {"type": kind, "default": default, "automl_enabled": True, **bounds, **more} if search else {
        "type": kind, "default": default, **bounds, **more
    }  # fmt: skip


def words(default: Any, *choices: str, search: bool = False) -> Any:
    return leaf("categorical", default, enum=list(choices or [default]), search=search)


def space(
    members: dict[str, Any],
    choice: Choice | None = None,
    spec: dict[str, Any] | None = None,
    data: dict[str, float] | None = None,
    **more: Any,
) -> SearchSpace:
    """Of dotted names, groups made as needed."""
    root: dict[str, Any] = {"properties": {}, **more}
    for name, node in members.items():
        inside = root["properties"]
        *groups, last = name.split(".")
        for group in groups:
            inside = inside.setdefault(group, {"type": "collection", "properties": {}})["properties"]
        inside[last] = node
    return derive(root, spec or {}, None, choice, data)


def why(found: SearchSpace) -> dict[str, str]:
    return dict(found.dropped)


def names(found: SearchSpace) -> set[str]:
    return {parameter.name for parameter in found.parameters}


MOMENTUM = leaf("float", 0.9, 0.0, 1.0)
RATE = leaf("float", 1e-4, 0.0)
WIDE = Choice(tier="wide")
MEDIUM = Choice(tier="medium")


@pytest.mark.parametrize(
    ("key", "node", "live"),
    [
        ("train.optim.optimizer", words("AdamW", "AdamW", "SGD"), False),
        ("train.optim.optimizer", words("SGD", "AdamW", "SGD"), True),
        ("train.optim.optim", words("adamw", "adamw", "adam", "sgd"), False),
        ("train.optim.optim", words("sgd", "adamw", "adam", "sgd"), True),
        ("train.optim.type", words("AdamW"), False),
        ("train.optim.name", words("adadelta", "adadelta", "adam"), False),
        ("train.optimizer", words("adam_onecycle"), False),
        ("train.optim.optimizer", leaf("string", "RMSprop", search=False), True),
        ("train.optim.optimizer", leaf("string", "Muon", search=False), True),
        # Neither is of an optimizer: nothing is known.
        ("train.optim.type", words("tiny"), True),
        ("model.name", words("Adam"), True),
        # Searched: known only where all choices agree.
        ("train.optim.optimizer", words("AdamW", "AdamW", "SGD", search=True), True),
        ("train.optim.optimizer", words("AdamW", "AdamW", "Adam", search=True), False),
    ],
)
def test_momentum_goes_with_the_optimizer(key: str, node: Any, live: bool) -> None:
    found = space({"train.optim.momentum": MOMENTUM, key: node})
    assert ("train.optim.momentum" in names(found)) == live
    if not live:
        assert why(found)["train.optim.momentum"].startswith(f"inert: {key} is ")


@pytest.mark.parametrize(
    ("scheduler", "epochs", "steps", "live"),
    [
        ("MultiStep", 10, [8], {"lr_steps/1", "lr_decay"}),
        ("MultiStepLR", 10, [40], {"lr_steps/1", "lr_decay"}),
        ("MultiStep", 3, [40], {"lr_steps/1", "lr_decay"}),
        ("MultiStep", 1, [1], set()),
        ("StepLR", 10, [8], {"lr_step_size/num_epochs", "lr_decay"}),
        ("StepLR", 3, [8], set()),
        ("cosine", 10, [8], set()),
        ("AutoReduce", 10, [8], {"lr_decay"}),
    ],
)
def test_schedules(scheduler: str, epochs: int, steps: list[int], live: set[str]) -> None:
    found = space(
        {
            "train.num_epochs": leaf("int", epochs, 1, search=False),
            "train.optim.lr_scheduler": words(scheduler),
            "train.optim.lr_decay": leaf("float", 0.1, 0.0, 1.0),
            "train.optim.lr_steps": leaf("list_2", steps),
            "train.optim.lr_step_size": leaf("int", 40, 1, 10000),
        },
        MEDIUM,
    )
    assert {name.removeprefix("train.optim.") for name in names(found)} == live


def test_decay_follows_the_milestones_that_are_not_searched() -> None:
    members = {
        "train.num_epochs": leaf("int", 10, 1, search=False),
        "train.optim.lr_scheduler": words("MultiStep"),
        "train.optim.gamma": leaf("float", 0.1, 0.0, 1.0),
        "train.optim.milestones": leaf("list", [88, 96], search=False),
    }
    assert "88, 96" in why(space(members, MEDIUM))["train.optim.gamma"]
    reached = {"train": {"optim": {"milestones": [6]}}}
    assert names(space(members, MEDIUM, reached)) == {"train.optim.gamma"}


def test_backbone_rate_is_a_ratio_where_there_is_a_rate() -> None:
    found = space({"train.optim.lr": RATE, "train.optim.lr_backbone": leaf("float", 1e-5, 0.0, 1e-4)})
    assert names(found) == {"train.optim.lr", "train.optim.lr_backbone/lr"}
    sample = {"train.optim.lr": 1e-3, "train.optim.lr_backbone/lr": 0.05}
    assert found.resolve(sample)["train.optim.lr_backbone"] == pytest.approx(5e-5)
    assert found.resolve({**sample, "train.optim.lr_backbone/lr": 1.0})["train.optim.lr_backbone"] == 1e-4
    alone = space({"train.optim.lr_backbone": leaf("float", 1e-5, 0.0)})["train.optim.lr_backbone"]
    assert (alone.scale, alone.low, alone.high) == ("log", 1e-6, 1e-4)
    frozen = {
        "train.optim.lr": RATE,
        "train.optim.lr_backbone": RATE,
        "model.train_backbone": leaf("bool", False, search=False),
    }
    assert "model.train_backbone is false" in why(space(frozen))["train.optim.lr_backbone"]


def test_what_a_switch_turns_off() -> None:
    members = {
        "dataset.augmentation.color.enable": leaf("bool", False, search=False),
        "dataset.augmentation.color.hue": leaf("float", 0.2, 0.0, 0.5),
        "train.enable_ema": leaf("bool", False, search=False),
        "train.ema.decay": leaf("float", 0.999, 0.0, 1.0),
        # Not beside it, so it says nothing of the optimizer.
        "wandb.enable": leaf("bool", False, search=False),
        "train.optim.lr": RATE,
    }
    found = space(members, MEDIUM)
    assert names(found) == {"train.optim.lr"}
    assert why(found)["dataset.augmentation.color.hue"] == "inert: dataset.augmentation.color.enable is false"
    assert why(found)["train.ema.decay"] == "inert: train.enable_ema is false"
    on = space(
        members, MEDIUM, {"dataset": {"augmentation": {"color": {"enable": True}}}, "train": {"enable_ema": True}}
    )
    assert names(on) == {"train.optim.lr", "train.ema.decay", "dataset.augmentation.color.hue"}


def test_other_actions_and_other_data_are_dead() -> None:
    numeric = leaf("float", 0.5, 0.0, 1.0)
    dead = [
        "evaluate.threshold", "export.x", "inference.x", "quantize.x", "gen_trt_engine.x", "distill.teacher.x",
        "dataset.infer_dataset.augmentation.prob", "dataset.test_dataset.prob", "dataset.val.prob",
        "dataset.validation.prob",
    ]  # fmt: skip
    found = space({**dict.fromkeys(dead, numeric), "model.val": numeric, "dataset.train.prob": numeric}, WIDE)
    assert names(found) == {"model.val", "dataset.train.prob"}
    assert set(why(found)) == set(dead)
    assert all(reason.startswith("dead: ") for reason in why(found).values())
    # In the schema of that action itself its section is alive.
    own = space({"evaluate.threshold": numeric, "export.x": numeric}, WIDE, x_tao_schema={"action": "evaluate"})
    assert names(own) == {"evaluate.threshold"}


@pytest.mark.parametrize(
    ("data", "values"),
    [
        ({}, [2, 4, 8]),
        ({"images": 5}, [2, 4]),
        ({"most_per_forward": 24}, [1, 2, 4, 8, 16]),
        ({"most_per_forward": 24, "images": 10}, [1, 2, 4, 8]),
    ],
)
def test_batch_sizes_are_powers_of_two_that_fit(data: dict[str, float], values: list[int]) -> None:
    found = space({"dataset.batch_size": leaf("int", 4, 1)}, WIDE, data=data)
    drawn = {found.resolve(found.draw(random.Random(seed)))["dataset.batch_size"] for seed in range(100)}
    assert sorted(drawn) == values
    if data:
        assert "data: " in found.parameters[0].origin


def test_a_batch_that_cannot_be_chosen_says_why() -> None:
    found = space({"dataset.batch_size": leaf("int", 16, 1)}, WIDE, data={"images": 4})
    assert why(found)["dataset.batch_size"].startswith("out of reach of the data: data: images is 4")


def test_queries_hold_the_objects_of_any_image() -> None:
    members = {"model.num_queries": leaf("int", 300, 1, 900)}
    assert [space(members, WIDE).parameters[0].low, space(members, WIDE).parameters[0].high] == [150, 600]
    crowded = space(members, WIDE, data={"most_objects": 400}).parameters[0]
    assert (crowded.low, crowded.high) == (400, 600)
    assert crowded.origin == "low: data: most_objects is 400; high: overlay: 0.5 to 2 times 300"
    fuller = space(members, WIDE, data={"most_objects": 800}).parameters[0]
    assert (fuller.low, fuller.high) == (800, 900)
    assert fuller.origin == "low: data: most_objects is 800; high: schema"
    over = space(members, WIDE, data={"most_objects": 2000})
    assert "most_objects is 2000" in why(over)["model.num_queries"]
    # What the user writes stands above the data.
    mine = space(members, Choice(ranges={"num_queries": "100:200"}), data={"most_objects": 150}).parameters[0]
    assert (mine.low, mine.high, mine.origin) == (100, 200, "user")


def test_crops_reach_no_further_than_the_images() -> None:
    members = {
        "dataset.augmentation.train_random_resize": leaf("list", [400, 600], search=False),
        "dataset.augmentation.train_random_crop_max": leaf("int", 600, 32, 1333),
        "dataset.augmentation.fixed_random_crop": leaf("int", None, 1, search=False),
    }
    crop = "dataset.augmentation.train_random_crop_max"
    assert space(members, MEDIUM)[crop].high == 1200
    near = space(members, MEDIUM, data={"longest_side": 640, "shortest_side": 480})[crop]
    assert near.high == 800
    assert "longest_side is 640" in near.origin
    assert near.origin.startswith("low: overlay")
    small = {"dataset": {"augmentation": {"train_random_resize": [96]}}}
    far = space(members, MEDIUM, small, {"longest_side": 96, "shortest_side": 96})
    assert why(far)[crop].startswith("out of reach of the data")
    fixed = {"dataset": {"augmentation": {"fixed_random_crop": 640}}}
    assert "fixed_random_crop is 640" in why(space(members, MEDIUM, fixed))[crop]


def test_lists_become_a_box() -> None:
    members = {
        "train.num_epochs": leaf("int", 80, 1, search=False),
        "train.decay_step_list": leaf("list", [35, 45]),
        "train.betas": leaf("list_2", [0.9, 0.999], [0.85, 0.9], [0.95, float("inf")]),
    }
    found = space(members, MEDIUM)
    assert names(found) == {"train.decay_step_list/1", "train.decay_step_list/2", "train.betas/1", "train.betas/2"}
    assert (found["train.betas/1"].low, found["train.betas/1"].high) == (0.85, 0.95)
    assert found["train.betas/1"].origin == "low: schema; high: overlay"
    stands = {parameter.name: parameter.default for parameter in found.parameters}
    assert found.resolve(stands) == {"train.decay_step_list": [35, 45], "train.betas": [0.9, 0.999]}
    for seed in range(200):
        first, second = found.resolve(found.draw(random.Random(seed)))["train.decay_step_list"]
        assert 24 <= first < second <= 76
    assert (
        "no room for 2 different values"
        in why(space(members, spec={"train": {"num_epochs": 2}}))["train.decay_step_list"]
    )
    mine = space(members, Choice(ranges={"decay_step_list": "10:12"}))
    drawn = {tuple(mine.resolve(mine.draw(random.Random(seed)))["train.decay_step_list"]) for seed in range(100)}
    assert drawn == {(10, 11), (10, 12), (11, 12)}


def test_a_share_of_another_value() -> None:
    members = {
        "train.epoch": leaf("int", 10, 1, 20),
        "train.warmup_epochs": leaf("int", 0, 0, float("inf"), math_cond="/ 2", depends_on="train.epoch"),
    }
    fixed = space(members)["train.warmup_epochs"]
    assert (fixed.low, fixed.high) == (0, 5)
    both = space(members, WIDE)
    assert {"train.epoch", "train.warmup_epochs/left"} == names(both)
    for seed in range(100):
        values = both.resolve(both.draw(random.Random(seed)))
        assert 0 <= values["train.warmup_epochs"] <= values["train.epoch"] / 2


def test_num_select_follows_the_queries_of_any_model() -> None:
    members = {
        "model.num_queries": leaf("int", 300, 1),
        "model.num_select": leaf("int", 300, 1, 1000, depends_on="model.num_queries"),
    }
    assert why(space(members))["model.num_select"].startswith("derived: ")
    found = space(members, WIDE)
    assert found.resolve({"model.num_queries": 200}) == {"model.num_queries": 200, "model.num_select": 200}
    assert found.resolve({"model.num_queries": 500})["model.num_select"] == 300


def test_two_spellings_of_one_choice_count_once() -> None:
    node = words("gcvit_tiny", "gc_vit_tiny", "gcvit_tiny", "GC_ViT_base", "resnet_50", search=True)
    assert space({"model.backbone": node})["model.backbone"].choices == ("gcvit_tiny", "GC_ViT_base", "resnet_50")


def test_choices_of_several_types() -> None:
    node = {"anyOf": [{"type": "boolean"}, {"enum": ["a", "b"]}], "default": True, "automl_enabled": True}
    assert space({"model.start": node})["model.start"].choices == (False, True, "a", "b")


def test_ordered_numbers_keep_their_order() -> None:
    found = space(
        {"model.size": leaf("ordered_int", 64, enum=[128, 32, 64]), "model.channels": leaf("int", 3, enum=[1, 3])}
    )
    assert found["model.size/place"].default == 1
    assert [found.resolve({"model.size/place": at, "model.channels": 3})["model.size"] for at in range(3)] == [
        32,
        64,
        128,
    ]
    assert found["model.channels"].kind == "categorical"


def test_ranges_of_choices_and_powers_stay_on_their_grid() -> None:
    members = {
        "a.rank": leaf("int", 8, 1, 256, math_cond="^ 2"),
        "a.size": leaf("ordered_int", 64, enum=[32, 64, 128, 256]),
    }
    found = space(members, Choice(ranges={"rank": "3:40", "size": "60:300"}))
    assert [rule.choices for rule in found.rules] == [(4, 8, 16, 32), (64, 128, 256)]
    with pytest.raises(ValueError, match="a range needs a number"):
        space({"a.word": words("x", "x", "y")}, Choice(ranges={"word": "1:2"}))


def test_a_user_may_ask_for_what_nobody_flagged() -> None:
    members = {"train.optim.lr": leaf("float", 1e-4, search=False), "train.optim.name": words("adam", "adam", "sgd")}
    found = space(members, Choice(params=("lr", "name")))
    assert names(found) == {"train.optim.lr", "train.optim.name"}


def test_the_hint_names_a_key_by_its_shortest_unique_ending() -> None:
    members = {
        "a.color.enable": leaf("bool", True),
        "b.color.enable": leaf("bool", True),
        "c.flip.enable": leaf("bool", True),
    }
    found = space({f"dataset.augmentation.{name}": node for name, node in members.items()})
    reasons = why(found)
    assert "params=[+b.color.enable]" in reasons["dataset.augmentation.b.color.enable"]
    assert "params=[+flip.enable]" in reasons["dataset.augmentation.c.flip.enable"]


def test_overlays_are_as_strict_readers_see_them() -> None:
    """Numbers are numbers, and every relative is described."""
    for name in ("common", "deformable_detr"):
        told = overlays.overlay(name)
        assert told is not None
        assert yaml.safe_load(yaml.safe_dump(told)) == told
        entries = told["parameters"] if isinstance(told["parameters"], list) else told["parameters"].values()
        for entry in entries:
            for part in (entry, *entry.get("cases", ())):
                for word in ("range", "around"):
                    assert all(isinstance(edge, int | float) for edge in part.get(word, ()))
            assert {"never", "tier"} - set(entry) or "because" in entry
    known = set(overlays.common()["relatives"]) | {"self"}
    used = {word for text in _texts(overlays.common()) for word in re.findall(r"~(\w+)", text)}
    assert used <= known


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, each in value.items() for text in (str(key), *_texts(each))]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else keys(value)


def test_overlay_conditions_read_keys_that_exist() -> None:
    from schemas import packaged

    read = packaged.schema("train")
    told = overlays.overlay("deformable_detr")
    assert told is not None
    for entry in told["parameters"].values():
        assert not any("~" in text for text in _texts(entry))
    for name, entry in told["parameters"].items():
        assert entry.get("target", name) in read.leaves
    assert read_schema(packaged.document("train")).leaves.keys() == read.leaves.keys()
