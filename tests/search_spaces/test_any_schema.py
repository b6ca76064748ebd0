"""Schemas of models that nothing here knows: hand-made oddities, shapes driven by hypothesis, and real ones.

TAO_SCHEMAS=FOLDER pytest tests/search_spaces/test_any_schema.py    tries every train.schema.json below the folder
"""

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import dotted, packaged
from schemas.dialect import loads, read_schema
from search_spaces.derive import TIERS, Choice, derive
from search_spaces.lint import lint
from search_spaces.lookup import look_up
from search_spaces.space import SearchSpace
from tests.schemas.strategies import any_documents, documents
from tests.search_spaces.raw_check import RawRules

FOLDER = os.environ.get("TAO_SCHEMAS")
REAL = sorted(Path(FOLDER).rglob("train.schema.json")) if FOLDER else []


def same(a: Any, b: Any) -> bool:
    """Equal but for the last bits of floats."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-300) if isinstance(a, float) else bool(a == b)


def placed(spec: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        spec = dotted.put(spec, name, value)
    return spec


def try_out(
    document: dict[str, Any],
    draws: int,
    seed: int = 0,
    choice: Choice | None = None,
    spec: dict[str, Any] | None = None,
    data: dict[str, float] | None = None,
) -> SearchSpace:
    """Derives a space, draws from it, and holds every draw against the raw JSON and against `encode`."""
    spec = spec or {}
    schema = read_schema(document)
    found = derive(schema, spec, None, choice, data)
    assert SearchSpace.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    rng = random.Random(seed)
    start = {parameter.name: parameter.default for parameter in found.parameters}
    rules, base = RawRules(document, spec), dotted.merge(schema.default, spec)
    for sample in [start, *(found.draw(rng) for _ in range(draws))]:
        values = found.resolve(sample)
        assert not rules.broken(values)
        drawn = placed(base, values)
        again = found.encode(drawn)
        if all(dotted.get(drawn, name) is not None for name in values):  # a key such as `cls[1]` has no place
            assert same(found.resolve(again), values), (found.resolve(again), values)
            direct = {name: value for name, value in sample.items() if name in values}
            assert {name: again[name] for name in direct} == direct
    return found


def accounted(document: dict[str, Any], found: SearchSpace) -> None:
    """Every key that the schema calls searchable is searched or has a reason."""
    searchable = {leaf.name for leaf in read_schema(document).leaves.values() if leaf.search}
    assert searchable <= set(found.targets) | {dropped.name for dropped in found.dropped}
    assert all(because for _, because in found.dropped)


ODDITIES = """{
 "automl_default_parameters": ["a.lr", "a.layers"],
 "required": ["quantize"],
 "properties": {
  "automl_disabled_parameters": ["a"],
  "a": {"type": "collection", "properties": {
   "lr": {"type": "float", "default": 2e-4, "minimum": 0, "maximum": Infinity, "math_cond": ">0.0",
          "automl_enabled": true},
   "layers": {"type": "int", "default": 6, "minimum": 1, "automl_enabled": true},
   "prob": {"type": "float", "default": 0.0, "minimum": 0.0, "maximum": 1.0, "automl_enabled": true},
   "nothing": {"type": "float", "default": 0, "minimum": 0, "maximum": Infinity, "automl_enabled": true},
   "width": {"type": "int", "default": 250, "minimum": 60, "maximum": 1024, "math_cond": "/ 8", "automl_enabled": true},
   "rank": {"type": "int", "default": 8, "minimum": 1, "maximum": 256, "math_cond": "^ 2", "automl_enabled": true},
   "fix": {"type": "int", "default": -1, "minimum": -3, "maximum": 5, "math_cond": "!= 0", "automl_enabled": true},
   "decay": {"type": "categorical", "enum": ["linear", "none"], "option_weights": [0.9, 0.1], "default": "linear",
             "automl_enabled": true},
   "size": {"type": "ordered_int", "enum": [32, 64, 128], "minimum": 64, "default": 64, "automl_enabled": true},
   "on": {"type": "bool", "default": true, "automl_enabled": true},
   "steps": {"type": "list_2", "default": [1, 2], "automl_enabled": true},
   "word": {"type": "string", "default": "x", "automl_enabled": true},
   "rate": {"anyOf": [{"type": "number"}, {"type": "array"}], "default": 1e-6, "minimum": [0.0, 0.0],
            "maximum": Infinity, "automl_enabled": true},
   "one": {"type": "int", "default": 6, "minimum": 6, "maximum": 6, "automl_enabled": true},
   "far": {"type": "int", "default": 18888, "minimum": 49152, "maximum": 65535, "automl_enabled": true},
   "fps": {"type": "integer", "minimum": 1, "maximum": 3, "automl_enabled": true},
   "unknown": {"type": "tensor", "default": 1, "automl_enabled": true},
   "momentum": {"type": "float", "default": 0.9, "minimum": 0.0, "maximum": 1.0, "automl_enabled": true},
   "ema_decay": {"type": "float", "default": 0.999, "minimum": 0.0, "maximum": 1.0, "automl_enabled": true},
   "num_workers": {"type": "int", "default": 8, "minimum": 1, "maximum": Infinity, "automl_enabled": true},
   "crop_max": {"type": "int", "default": 600, "minimum": 32, "maximum": 1333, "math_cond": "> depends_on",
                "depends_on": "a.crop_min", "automl_enabled": true},
   "crop_min": {"type": "int", "default": 384, "minimum": 32, "parent_param": "TRUE", "automl_enabled": true},
   "kernel": {"type": "int", "default": 3, "minimum": 1, "maximum": 99, "math_cond": "<depends_on",
              "depends_on": "a.crop_min, a.crop_max", "automl_enabled": true},
   "cls[1]": {"type": "float", "default": 1.0, "automl_enabled": true}
  }}
 }
}"""


def test_every_oddity() -> None:
    found = try_out(loads(ODDITIES), 1000)
    reasons = dict(found.dropped)
    assert set(reasons) == {"a.nothing", "a.steps", "a.word", "a.one", "a.unknown", "a.num_workers"}
    assert found["a.lr"].scale == found["a.rate"].scale == "log"
    assert (found["a.lr"].low, found["a.lr"].high) == (2e-5, 2e-3)
    assert (found["a.width"].low, found["a.width"].high, found["a.width"].step) == (128, 496, 8)
    assert found["a.rank/place"].high == 5
    assert found.rules[0].choices == (2, 4, 8, 16, 32, 64)
    assert (found["a.fix"].low, found["a.fix"].high) == (1, 5)
    assert found["a.decay"].weights == (0.9, 0.1)
    assert found["a.size"].choices == (64, 128)
    assert (found["a.momentum"].low, found["a.momentum"].high) == (0.8, 0.99)
    assert (found["a.fps"].low, found["a.fps"].high) == (1, 3)
    assert (found["a.far"].low, found["a.far"].high) == (49152, 65535)


def test_one_of_everything_by_the_rules_of_thumb() -> None:
    def one(kind: str, **node: Any) -> Any:
        document = {"properties": {node.pop("name", "x"): {"type": kind, "automl_enabled": True, **node}}}
        found = derive(document, {})
        return found.parameters[0] if found.parameters else found.dropped[0].because

    tenth = one("float", default=0.05, minimum=0.0)
    assert (tenth.low, tenth.high, tenth.scale) == (0.005, 0.5, "log")
    half = one("int", default=7)
    assert (half.low, half.high, half.scale) == (3, 14, "linear")
    probability = one("float", default=0.2, minimum=0.0, maximum=1.0)
    assert (probability.low, probability.high, probability.scale) == (0.0, 1.0, "linear")
    decay = one("float", name="weight_decay", default=0.05, minimum=0.0, maximum=1.0)
    assert (decay.low, decay.high, decay.scale) == (0.005, 0.5, "log")
    assert "give it a range" in one("float", default=0.0, minimum=0.0)
    assert "give it a range" in one("int")
    negative = one("float", default=0.0, minimum=-1.0, maximum=1.0)
    assert (negative.low, negative.high) == (-1.0, 1.0)


def test_effective_values_stand_in_for_parents_that_are_not_searched() -> None:
    document = {
        "properties": {
            "low": {"type": "int", "default": 100},
            "high": {"type": "int", "default": 60, "maximum": 1000, "math_cond": "> depends_on", "depends_on": "low",
                     "automl_enabled": True},
        }
    }  # fmt: skip
    assert derive(document, {})["high"].low == 101
    assert derive(document, {"low": 110})["high"].low == 111
    hopeless = derive(document, {"low": 500})
    assert [dropped.name for dropped in hopeless.dropped] == ["high"]
    assert "no room above low (500)" in hopeless.dropped[0].because


@settings(max_examples=100, deadline=None)
@given(documents(), st.sampled_from(TIERS), st.booleans(), st.integers(0, 2**32))
def test_any_shape(document: dict[str, Any], tier: str, everything: bool, seed: int) -> None:
    leaves = read_schema(document).leaves.values()
    wishes = tuple(f"+{leaf.name}" for leaf in leaves if not leaf.disabled) if everything else None
    accounted(document, try_out(document, 5, seed, Choice(tier=tier, params=wishes)))


@settings(max_examples=60, deadline=None)
@given(any_documents, st.sampled_from(TIERS))
def test_nonsense_is_never_an_exception(document: dict[str, Any], tier: str) -> None:
    schema = read_schema(document)
    found = derive(schema, {}, None, Choice(tier=tier))
    found.resolve(found.draw(random.Random(0)))
    assert set(lint(schema, found)) >= {finding for finding in schema.findings if finding.kind != "unenforced"}
    for name in schema.leaves:
        assert look_up(name, schema, found, {}).name == name


def maybe(**nodes: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these keys, flagged or not."""
    flags = {name: st.sampled_from([None, True, False]) for name in nodes}
    return st.fixed_dictionaries({}, optional=flags).map(
        lambda drawn: {
            name: nodes[name] if flag is None else {**nodes[name], "automl_enabled": flag}
            for name, flag in drawn.items()
        }
    )


def numeric(kind: str, default: Any, low: Any = None, high: Any = None, **more: Any) -> dict[str, Any]:
    bounds = {key: bound for key, bound in (("minimum", low), ("maximum", high)) if bound is not None}
    return {"type": kind, "default": default, **bounds, **more}


OPTIM = maybe(
    optimizer={"type": "categorical", "enum": ["AdamW", "SGD"], "default": "AdamW"},
    lr_scheduler={"type": "categorical", "enum": ["MultiStep", "StepLR", "cosine"], "default": "MultiStep"},
    lr=numeric("float", 2e-4, 0.0, math.inf, math_cond="> 0.0"),
    lr_backbone=numeric("float", 2e-5, 0.0, 1e-4, math_cond=">0.0"),
    lr_steps={"type": "list_2", "default": [4, 8]},
    lr_step_size=numeric("int", 4, 1, 10000, math_cond="> 0"),
    lr_decay=numeric("float", 0.1, 0.0, 1.0, math_cond="> 0.0"),
    momentum=numeric("float", 0.9, 0.0, 1.0),
    betas={"type": "list_2", "default": [0.9, 0.999], "minimum": [0.8, 0.9], "maximum": [0.95, math.inf]},
    warmup_epochs=numeric("int", 0, 0, math.inf, math_cond="/ 2", depends_on="train.num_epochs"),
    clip_grad_norm=numeric("float", 0.1, 0.0),
)
MODEL = maybe(
    num_queries=numeric("int", 300, 1, 900, parent_param="TRUE"),
    num_select=numeric("int", 300, 1, 1000, depends_on="model.num_queries"),
    hidden_dim=numeric("int", 250, 64, 1024, math_cond="/ 8"),
    rank=numeric("int", 8, 1, 256, math_cond="^ 2"),
    size={"type": "ordered_int", "enum": [32, 64, 128, 256], "default": 64},
    dropout=numeric("float", 0.1, 0.0, 1.0),
    dec_layers=numeric("int", 6, 1),
)
DATASET = maybe(
    batch_size=numeric("int", 4, 1, math.inf),
    workers=numeric("int", 8, 1),
    fixed_random_crop=numeric("int", None, 1),
    train_random_resize={"type": "list", "default": [400, 600]},
    train_random_crop_min=numeric("int", 384, 32),
    train_random_crop_max=numeric(
        "int", 600, 32, 1333, math_cond=">depends_on", depends_on="dataset.train_random_crop_min"
    ),
)
DATA = st.fixed_dictionaries({}, optional={
    "images": st.sampled_from([1, 3, 1000]), "most_objects": st.sampled_from([1, 400, 1000]),
    "shortest_side": st.sampled_from([20, 300]), "longest_side": st.sampled_from([300, 2000]),
    "most_per_forward": st.sampled_from([1, 2, 24]),
})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(OPTIM, MODEL, DATASET, st.sampled_from([1, 2, 4, 10, 80]), DATA, st.sampled_from(TIERS), st.booleans(),
       st.integers(0, 2**32))  # fmt: skip
def test_any_training(
    optim: dict[str, Any], model: dict[str, Any], dataset: dict[str, Any], epochs: int, data: dict[str, float],
    tier: str, everything: bool, seed: int,
) -> None:  # fmt: skip
    train = {"num_epochs": numeric("int", epochs, 1, automl_enabled=True)}
    train["optim"] = {"type": "collection", "properties": optim}
    document = {
        "properties": {
            "train": {"type": "collection", "properties": train},
            "model": {"type": "collection", "properties": model},
            "dataset": {"type": "collection", "properties": dataset},
        }
    }
    leaves = read_schema(document).leaves.values()
    wishes = tuple(f"+{leaf.name}" for leaf in leaves if not leaf.disabled) if everything else None
    found = try_out(document, 5, seed, Choice(tier=tier, params=wishes), data=data)
    accounted(document, found)
    values = found.resolve(found.draw(random.Random(seed)))
    run = values.get("train.num_epochs", epochs)
    for name in ("train.optim.lr_steps", "train.optim.lr_step_size"):
        steps = values.get(name, [])
        steps = steps if isinstance(steps, list) else [steps]
        assert steps == sorted(set(steps))
        assert all(1 <= step < max(run, 2) for step in steps)
    if "dataset.batch_size" in values:
        assert values["dataset.batch_size"] in (1, 2, 4, 8, 16)
        assert values["dataset.batch_size"] <= min(data.get("images", 99), data.get("most_per_forward", 99))
    if "model.num_queries" in values:
        assert values["model.num_queries"] >= data.get("most_objects", 1)
    if {"train.optim.lr", "train.optim.lr_backbone"} <= set(values):
        assert values["train.optim.lr_backbone"] <= values["train.optim.lr"] or "lr_backbone" in str(found.dropped)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="no folder of real schemas: set TAO_SCHEMAS")
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_real_schemas(path: Path, tier: str) -> None:
    document = loads(path.read_text(encoding="utf-8"))
    accounted(document, try_out(document, 10_000, choice=Choice(tier=tier)))


@pytest.mark.skipif(not REAL, reason="no folder of real schemas: set TAO_SCHEMAS")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_everything_that_can_be_asked_for_in_real_schemas(path: Path) -> None:
    document = loads(path.read_text(encoding="utf-8"))
    leaves = read_schema(document).leaves.values()
    wishes = tuple(f"+{leaf.name}" for leaf in leaves if not leaf.disabled)
    accounted(document, try_out(document, 300, choice=Choice(tier="wide", params=wishes)))


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=3, max_size=3))
def test_circles_never_raise(parents: list[str]) -> None:
    node = {
        "type": "int",
        "default": 5,
        "minimum": 1,
        "maximum": 90,
        "automl_enabled": True,
        "math_cond": "> depends_on",
    }
    document = {"properties": {name: {**node, "depends_on": on} for name, on in zip("abc", parents, strict=True)}}
    found = derive(document, {})
    found.resolve(found.draw(random.Random(0)))


def test_a_default_that_no_float_holds() -> None:
    document = json.loads(json.dumps(packaged.document("train")))
    document["properties"]["train"]["properties"]["optim"]["properties"]["lr"]["default"] = 10**400
    schema = read_schema(document)
    space = derive(schema, {})
    assert lint(schema, space)
    assert all(each.default < math.inf for each in space.parameters if each.kind == "float")
