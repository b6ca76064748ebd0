"""Schemas of models that nothing here knows: hand-made oddities, and shapes driven by hypothesis."""

import json
import math
import operator
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import dotted
from schemas.dialect import Schema, loads, read_schema
from search_spaces.derive import TIERS, Choice, derive
from search_spaces.space import SearchSpace

COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def check(schema: Schema, values: dict[str, Any]) -> None:
    """The bounds, enums and rules of a schema, written a second time and without a space."""
    for name, value in values.items():
        leaf = schema.leaves[name]
        if leaf.choices is not None:
            assert value in leaf.choices
            continue
        if leaf.kind == "bool":
            assert isinstance(value, bool)
            continue
        if leaf.kind == "int":
            assert isinstance(value, int)
        assert leaf.low is None or value > leaf.low or (value == leaf.low and not leaf.open_low)
        assert leaf.high is None or value < leaf.high or (value == leaf.high and not leaf.open_high)
    for leaf in schema.leaves.values():
        value = values.get(leaf.name, leaf.default)
        for op, rhs in leaf.rules:
            if op == "!=" and leaf.name in values:
                assert value != rhs
            if op == "/" and leaf.name in values and leaf.kind in ("int", "ordered") and not leaf.depends_on:
                assert value % rhs == 0
            if op == "^" and leaf.name in values and leaf.kind in ("int", "ordered"):
                assert value in [int(rhs) ** exponent for exponent in range(1, 64)]
            for parent in leaf.depends_on if rhs is None else ():
                other = values.get(parent, schema.leaves[parent].default)
                if {leaf.name, parent} & set(values) and not {None, math.inf} & {value, other}:
                    assert COMPARE[op](value, other), (leaf.name, value, op, parent, other)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal but for the last bits of floats."""
    close = [math.isclose(a[key], b[key], rel_tol=1e-9) if isinstance(a[key], float) else a[key] == b[key] for key in b]
    return a.keys() == b.keys() and all(close)


def try_out(document: dict[str, Any], draws: int, seed: int = 0, choice: Choice | None = None) -> SearchSpace:
    schema = read_schema(document)
    found = derive(document, {}, None, choice)
    assert SearchSpace.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    rng = random.Random(seed)
    for _ in range(draws):
        sample = found.draw(rng)
        values = found.resolve(sample)
        check(schema, values)
        spec: dict[str, Any] = {}
        for name, value in values.items():
            spec = dotted.put(spec, name, value)
        again = found.resolve(found.encode(dotted.merge(schema.default, spec)))
        assert same(again, values), (again, values)
    searchable = {leaf.name for leaf in schema.leaves.values() if leaf.search}
    assert searchable == set(found.targets) | {dropped.name for dropped in found.dropped}
    return found


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


NUMBERS = st.sampled_from([-5, -1, 0, 1, 2, 3, 8, 10, 100, 1000, 0.1, 0.5, 1e-4, float("inf"), None])
CONDITIONS = st.sampled_from([None, "> 0", ">= 0.0", "!=0", "/ 8", "^ 2", "> 0.0 <= 1.0", "<100", "nonsense"])
NODES = st.fixed_dictionaries(
    {"type": st.sampled_from(["int", "float", "number", "bool", "categorical", "ordered_int", "list_2", "string"]),
     "automl_enabled": st.sampled_from([True, True, False])},
    optional={"default": NUMBERS, "minimum": NUMBERS, "maximum": NUMBERS, "math_cond": CONDITIONS,
              "enum": st.sampled_from([[1, 2, 8, 64], ["a", "b"], [3]])},
)  # fmt: skip
NAMES = st.sampled_from(
    ["lr", "weight_decay", "momentum", "workers", "batch_size", "num_queries", "prob", "x", "y", "z"]
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    nodes = draw(st.dictionaries(NAMES, NODES, min_size=1, max_size=8))
    properties: dict[str, Any] = {}
    for name, node in nodes.items():
        node = {key: value for key, value in node.items() if value is not None}
        numeric = [f"g.{other}" for other in properties if properties[other]["type"] in ("int", "float", "number")]
        if numeric and node["type"] in ("int", "float", "number") and draw(st.booleans()):
            parents = draw(st.lists(st.sampled_from(numeric), min_size=1, max_size=2, unique=True))
            op = draw(st.sampled_from([">", ">=", "<", "<="]))
            node = {**node, "depends_on": ",".join(parents), "math_cond": f"{op} depends_on"}
        if node["type"] not in ("int", "number", "float", "ordered_int"):
            node.pop("math_cond", None)  # a rule about numbers says nothing of words and flags
        if (
            node["type"] in ("int", "number", "float", "ordered_int")
            and "enum" in node
            and isinstance(node["enum"][0], str)
        ):
            del node["enum"]
        properties[name] = node
    order = draw(st.permutations(list(properties)))
    return {"properties": {"g": {"type": "collection", "properties": {name: properties[name] for name in order}}}}


@settings(max_examples=150, deadline=None)
@given(documents(), st.sampled_from(TIERS), st.integers(0, 2**32))
def test_any_shape(document: dict[str, Any], tier: str, seed: int) -> None:
    try_out(document, 10, seed, Choice(tier=tier))


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
