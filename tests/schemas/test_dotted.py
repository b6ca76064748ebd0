from hypothesis import given
from hypothesis import strategies as st

from schemas import dotted

NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))  # fmt: skip


def test_get_walks_groups_and_lists() -> None:
    nested = {"a": {"b": [{"c": 1}, 2]}}
    assert dotted.get(nested, "a.b.0.c") == dotted.get(nested, "a.b[0].c") == 1
    assert dotted.get(nested, "a.b.1") == 2
    assert dotted.get(nested, "a.b.2", "none") == "none"
    assert dotted.get(nested, "a.x.y") is None
    assert not dotted.has(nested, "a.b.0.d")


def test_put_copies_only_the_path_and_makes_groups() -> None:
    nested = {"a": {"b": 1}, "c": {"d": 2}}
    changed = dotted.put(nested, "a.e.f", 3)
    assert changed == {"a": {"b": 1, "e": {"f": 3}}, "c": {"d": 2}}
    assert nested == {"a": {"b": 1}, "c": {"d": 2}}
    assert changed["c"] is nested["c"]


def test_put_into_lists() -> None:
    assert dotted.put({"a": [1, 2]}, "a.1", 3) == {"a": [1, 3]}
    assert dotted.put({"a": [1, 2]}, "a.2", 3) == {"a": [1, 2, 3]}
    assert dotted.put({}, "sources[0].dir", "x") == {"sources": [{"dir": "x"}]}


def test_drop_keeps_the_places_of_a_list() -> None:
    assert dotted.drop({"a": [1, 2, 3]}, "a.1") == {"a": [1, None, 3]}
    assert dotted.drop({"a": {"b.c": 1, "d": 2}}, "a.b.c") == {"a": {"d": 2}}
    assert dotted.drop({"a": 1}, "x.y") == {"a": 1}


@given(TREES, st.lists(NAMES, min_size=1, max_size=3).map(".".join), st.integers())
def test_put_then_get_then_drop(tree: dict[str, object], name: str, value: int) -> None:
    changed = dotted.put(tree, name, value)
    assert dotted.get(changed, name) == value
    assert not dotted.has(dotted.drop(changed, name), name)


@given(TREES)
def test_leaves_rebuild_the_tree(tree: dict[str, object]) -> None:
    rebuilt: dict[str, object] = {}
    for name, value in dotted.leaves(tree):
        rebuilt = dotted.put(rebuilt, name, value)
    assert rebuilt == tree


def test_merge_goes_group_by_group() -> None:
    assert dotted.merge({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": 2}) == {
        "a": {"b": 1, "c": [3]},
        "d": 1,
        "e": 2,
    }
