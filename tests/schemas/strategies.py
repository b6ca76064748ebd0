"""Schemas that hypothesis writes: sound ones in the TAO dialect, plain draft 2020-12, and any JSON object at all.

    from tests.schemas.strategies import any_documents, documents, junk

`documents` are what a careful author could write and `junk` what nobody should; both have to be read without an
exception. Every value is plain JSON as Python reads it, NaN and the infinities among them.
"""

from typing import Any

from hypothesis import strategies as st

INF, NAN = float("inf"), float("nan")
Node = dict[str, Any]

INT_TYPES = ("int", "integer")
FLOAT_TYPES = ("float", "number")
WORD_TYPES = ("bool", "boolean", "string", "str", "categorical", "ordered", "ordered_int")
LIST_TYPES = ("list", "array", "list_2", "list_3", "list_1_backbone", "optional_list", "subset_list", "tuple")
GROUP_TYPES = ("collection", "object", "dict")
TYPES = (*INT_TYPES, *FLOAT_TYPES, *WORD_TYPES, *LIST_TYPES, *GROUP_TYPES)

NAMES = ("lr", "lr_backbone", "weight_decay", "momentum", "num_workers", "batch_size", "num_queries", "prob", "width",
         "gamma", "x", "y", "z", "cls[1]")  # fmt: skip
"""Last names, those that rules of thumb look at among them."""
NUMBERS = (-5, -1, 0, 1, 2, 3, 8, 10, 64, 100, 1000, -0.5, 0.0, 0.1, 0.5, 1.0, 1e-4, 2.5, 1e6)
CHOICES: tuple[list[Any], ...] = ([1, 2, 8, 64], ["a", "b"], ["\na", "b\n"], [3], [True, False], [0.1, 0.5])

spaces = st.sampled_from(["", " ", "  "])


@st.composite
def math_conds(draw: st.DrawFn, *, parent: bool = False) -> str:
    """Every form of `math_cond`, with any spacing. parent: one that compares with `depends_on`."""
    if parent:
        return f"{draw(spaces)}{draw(st.sampled_from(['>', '>=', '<', '<=']))}{draw(spaces)}depends_on{draw(spaces)}"
    terms = draw(
        st.one_of(
            st.tuples(st.sampled_from([">", ">=", "<", "<="]), st.sampled_from(["0", "0.0", "1", "100", "1e3", "-2"])),
            st.tuples(st.just("!="), st.sampled_from(["0", "1", "-1"])),
            st.tuples(st.just("/"), st.sampled_from(["2", "8", "8.0"])),
            st.tuples(st.just("^"), st.just("2")),
        ).map(lambda term: [term])
        | st.just([(">", "0.0"), ("<=", "1.0")])
        | st.just([(">=", "1"), ("!=", "5")])
        | st.just([("/", "4"), ("<", "500")])
    )
    return draw(spaces).join(f"{op}{draw(spaces)}{rhs}" for op, rhs in terms)


@st.composite
def numeric_leaves(draw: st.DrawFn) -> Node:
    """A number: bounds in order or absent, a default that may lie anywhere, any rule."""
    name = draw(st.sampled_from([*INT_TYPES, *FLOAT_TYPES]))
    node: Node = {"type": name}
    numbers = [
        int(n) if name in INT_TYPES and n == int(n) else n for n in NUMBERS if name in FLOAT_TYPES or n == int(n)
    ]
    low, high = sorted(draw(st.lists(st.sampled_from(numbers), min_size=2, max_size=2)))
    shape = draw(st.sampled_from(["both", "both", "infinite", "low", "high", "none", "lists"]))
    if shape in ("both", "infinite", "low", "lists"):
        node["minimum"] = [low, low] if shape == "lists" else low
    if shape in ("both", "high", "lists"):
        node["maximum"] = [high, INF] if shape == "lists" else high
    if shape == "infinite":
        node["maximum"] = INF
    if draw(st.booleans()):
        node["default"] = draw(st.sampled_from(numbers))
    if draw(st.booleans()):
        node["math_cond"] = draw(math_conds())
    return node


@st.composite
def word_leaves(draw: st.DrawFn) -> Node:
    """Flags, words, choices with and without weights."""
    name = draw(st.sampled_from(WORD_TYPES))
    node: Node = {"type": name}
    if name in ("categorical", "ordered", "ordered_int"):
        enum = draw(st.sampled_from(CHOICES[3:] if name == "ordered_int" else CHOICES))
        node["enum"] = enum
        node["default"] = draw(st.sampled_from(enum))
        if draw(st.booleans()):
            node["option_weights"] = [1.0 + place for place in range(len(enum))]
    elif name.startswith("bool"):
        node["default"] = draw(st.booleans())
    elif draw(st.booleans()):
        node["default"] = draw(st.sampled_from(["", "a", "???", None]))
    return node


@st.composite
def list_leaves(draw: st.DrawFn) -> Node:
    name = draw(st.sampled_from(LIST_TYPES))
    node: Node = {"type": name, "default": draw(st.sampled_from([[], [1], [0.9, 0.999], ["a"], None]))}
    if name == "list_2" and draw(st.booleans()):
        node |= {"minimum": [0.8, 0.9], "maximum": [0.95, INF]}
    if name == "subset_list":
        node["enum"] = ["a", "b", "c"]
    if name == "array":
        node |= draw(st.fixed_dictionaries({}, optional={
            "items": st.sampled_from([{"type": "integer", "minimum": 0}, {"type": "string"}, {}]),
            "minItems": st.integers(0, 2), "maxItems": st.integers(2, 4), "uniqueItems": st.booleans(),
        }))  # fmt: skip
    return node


def plain_leaves() -> st.SearchStrategy[Node]:
    """What only plain draft 2020-12 says."""
    return st.sampled_from([
        {"type": ["integer", "null"], "minimum": 1, "default": None},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.5},
        {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "default": 0.5},
        {"type": "integer", "multipleOf": 8, "minimum": 8, "maximum": 64, "default": 16},
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "array", "items": {"type": "number"}}], "default": 1e-6},
        {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 2, "maximum": 9}], "default": None},
        {"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}], "default": "auto"},
        {"allOf": [{"type": "number"}, {"minimum": 0.1}, {"maximum": 2, "minimum": 0}], "default": 1.0},
        {"const": 3}, {"enum": ["a", 1, None], "default": "a"}, {"$ref": "#/$defs/rate"}, {"$ref": "#/$defs/itself"},
        {"allOf": [{"$ref": "#/$defs/rate"}], "default": 0.25}, {"type": "object", "additionalProperties": True},
    ]).map(dict)  # fmt: skip


DEFS: Node = {
    "rate": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
    "itself": {"anyOf": [{"$ref": "#/$defs/itself"}, {"type": "integer"}]},
}

leaves = st.one_of(numeric_leaves(), numeric_leaves(), word_leaves(), list_leaves(), plain_leaves())


@st.composite
def documents(draw: st.DrawFn, *, plain: bool = True) -> Node:
    """A schema of one or two groups: flags in either place, dependences between numbers, and the generator's own list
    among the properties. plain: draft 2020-12 leaves among those of the dialect."""
    kinds = leaves if plain else st.one_of(numeric_leaves(), numeric_leaves(), word_leaves(), list_leaves())
    properties: Node = {}
    listed: list[str] = []
    for group in draw(st.sampled_from([["g"], ["g", "h"]])):
        members: Node = {}
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True)):
            node = dict(draw(kinds))
            flag = draw(st.sampled_from([True, True, False, None]))
            if flag is not None:
                node["automl_enabled"] = flag
            if flag is True or (flag is None and draw(st.booleans())):
                listed.append(f"{group}.{name}")
            numeric = [key for key, other in members.items() if other.get("type") in (*INT_TYPES, *FLOAT_TYPES)]
            if numeric and node.get("type") in (*INT_TYPES, *FLOAT_TYPES) and draw(st.booleans()):
                parents = draw(st.lists(st.sampled_from(numeric), min_size=1, max_size=2, unique=True))
                comma = draw(st.sampled_from([",", ", ", " ,"]))
                node["depends_on"] = comma.join(f"{group}.{parent}" for parent in parents)
                node["math_cond"] = draw(math_conds(parent=True))
            members[name] = node
        properties[group] = {"type": draw(st.sampled_from(GROUP_TYPES)), "properties": members}
    if draw(st.booleans()):
        properties["automl_disabled_parameters"] = ["g"]
    return {
        "type": "object", "automl_default_parameters": draw(st.permutations(listed)), "required": ["quantize"],
        "properties": properties, "$defs": DEFS,
    }  # fmt: skip


json_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**320), 10**320), st.sampled_from(NUMBERS),
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["", "???", "0.5", "inf", "a.b", "> 0", "\n"]),
    st.text(max_size=4),
)  # fmt: skip
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON value: numbers too large for a float, NaN and the infinities included."""

KEYS = (
    "type", "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const",
    "math_cond", "depends_on", "parent_param", "popular", "automl_enabled", "option_weights", "pattern", "properties",
    "additionalProperties", "required", "anyOf", "oneOf", "allOf", "$ref", "$defs", "not", "items", "prefixItems",
    "minItems", "maxItems", "minLength", "uniqueItems", "x_also", "title", "description",
)  # fmt: skip
"""Every key of a leaf that means something."""
ROOT_KEYS = ("automl_default_parameters", "automl_disabled_parameters", "x_tao_schema", "$schema", "$id", "$defs",
             "definitions", "default", "required", "allOf", "popular")  # fmt: skip

_refs = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/nowhere", "other.json#/x", "#a", ""])


def _nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = st.dictionaries(st.sampled_from(["a", "b", "a.b", "", "x[0]", *NAMES[:3]]), inner, max_size=3)
    return st.fixed_dictionaries({}, optional={
        "type": st.sampled_from([*TYPES, "tensor", "null", ["number", "null"]]), "properties": members,
        "anyOf": st.lists(inner, max_size=3), "allOf": st.lists(inner, max_size=2),
        "oneOf": st.lists(inner, max_size=2),
        "$ref": _refs, "$defs": members, "items": inner, "default": json_values, "math_cond": math_conds(),
        "minimum": json_values, "maximum": json_values, "automl_enabled": st.booleans(),
        "depends_on": st.sampled_from(["a", "b", "a, b", "a.b", ",", "g.nothing"]),
    })  # fmt: skip


odd_nodes = st.recursive(
    st.one_of(leaves, json_scalars, st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4)),
    _nodes,
    max_leaves=8,
)
"""A leaf or group of which any key may hold anything, or no object at all."""


@st.composite
def junk(draw: st.DrawFn) -> Node:
    """A JSON object with the keys of a schema and anything behind them."""
    names = st.one_of(st.sampled_from(["a", "b", "a.b", "", "x[0]", "automl_disabled_parameters"]), st.text(max_size=3))
    root: Node = draw(st.dictionaries(st.sampled_from([*ROOT_KEYS, *KEYS]), json_values, max_size=4))
    members = st.dictionaries(names, odd_nodes, max_size=4)
    if draw(st.integers(0, 9)):
        root["properties"] = draw(members)
    if draw(st.booleans()):
        root["$defs"] = draw(members)
    return root


any_documents = st.one_of(documents(), junk())
