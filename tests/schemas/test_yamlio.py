from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas import yamlio
from schemas.yamlio import COMMAND_LINE, SpecFileError

SCALARS = [
    ("1e-4", 1e-4), ("2.0e-05", 2e-5), ("1E5", 1e5), ("-1e+3", -1e3), (".5", 0.5), ("-.5", -0.5), ("1.", 1.0),
    ("3", 3), ("-1", -1), ("1_000", 1000), ("0x1F", 31), (".inf", float("inf")),
    ("on", True), ("off", False), ("yes", True), ("TRUE", True), ("null", None), ("~", None), ("", None),
    ("1:30", "1:30"), ("1e-5:1e-3:log", "1e-5:1e-3:log"), ("2024-01-02", "2024-01-02"), ("e5", "e5"),
    ("1.2.3", "1.2.3"),
    ("'off'", "off"), ('"1e-4"', "1e-4"), ("???", "???"), ("s3://bucket/key", "s3://bucket/key"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_in_a_file_and_on_the_command_line(text: str, value: object) -> None:
    assert yamlio.loads(f"key: {text}").data == {"key": value}
    assert yamlio.parse_value(text) == value
    assert type(yamlio.parse_value(text)) is type(value)


def test_plain_yaml_reads_scientific_numbers_as_text() -> None:
    # The reason for a reader of our own; should this fail one day, the reader can go.
    assert yaml.safe_load("1e-4") == "1e-4"


def test_duplicate_keys_are_refused_with_both_lines() -> None:
    with pytest.raises(SpecFileError, match=r"spec\.yaml:4: the key `lr` is given twice .* line 2"):
        yamlio.loads("train:\n  lr: 1\n  epochs: 2\n  lr: 3\n", source="spec.yaml")


def test_merge_keys_may_be_overridden() -> None:
    assert yamlio.loads("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n").data["b"] == {"x": 3, "y": 2}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
"""Thirty short lines that stand for 9 ** 29 values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "spec:1: not readable as YAML"),
        ("a: 1\n b: 2", "spec:2: not readable"),
        ("- 1\n- 2", "a spec is a group of keys, but this file holds a list"),
        ("a: !!python/object/apply:os.system [ls]", "spec:1: not readable"),
        ("a: !!python/name:os.system", "spec:1: not readable"),
        (BOMB, "its aliases .* stand for 100000 values or more"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("[x, x]", "{x: 1}"), "its aliases .* stand for"),
        ("a: &a [*a]", "or for themselves"),
        ("? [1, 2]\n: 3", "not readable"),
    ],
)
def test_unreadable_files(text: str, message: str) -> None:
    with pytest.raises(SpecFileError, match=message):
        yamlio.loads(text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError, match="cannot be read: No such file"):
        yamlio.load(tmp_path / "none.yaml")


def test_an_empty_file_is_an_empty_spec() -> None:
    assert yamlio.loads("# nothing\n").data == {}


def test_origins_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  optim:\n    lr: 1e-4\nsources:\n  - dir: a\n  - dir: b\n")
    document = yamlio.load(path)
    assert document.origin("train.optim.lr") == "mine.yaml:3"
    assert document.origin("sources.1.dir") == "mine.yaml:6"
    assert document.origin("train.optim.unwritten") == "mine.yaml:2"
    assert document.origin("elsewhere") is None


def test_overrides() -> None:
    document = yamlio.loads("train:\n  optim: {lr: 1e-4, momentum: 0.9}\n  steps: [1, 2]\n")
    changed = yamlio.override(
        document,
        ["train.optim.lr=2e-4", "+train.new='1'", "++train.steps=[3, 4]", "train.steps.0=5", "train.none=null", "x.y=",
         "train.optim={momentum: 0.8}", "a=b #c", "t=%odd", "p=a: b"],
    )  # fmt: skip
    assert changed.data == {
        "train": {"optim": {"lr": 2e-4, "momentum": 0.8}, "steps": [5, 4], "new": "1", "none": None},
        "x": {"y": None},
        "a": "b #c",
        "t": "%odd",
        "p": {"a": "b"},
    }
    assert changed.origin("train.optim.lr") == COMMAND_LINE
    assert document.data["train"]["steps"] == [1, 2]


@pytest.mark.parametrize("text", ["train.lr", "=3", "a..b=1", ".a=1", "+=2"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(SpecFileError, match="an override has the form key=value"):
        yamlio.override(yamlio.loads(""), [text])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abe0123456789.-:_xon~#' ", max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("abon1.", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text("abc", min_size=1), JSON, max_size=4))
def test_dump_reads_back_the_same_here(data: dict[str, object]) -> None:
    assert yamlio.loads(yamlio.dump(data)).data == data


@given(st.dictionaries(st.text("abc", min_size=1), st.text("abe0123456789.-:_xon~ ", max_size=8), max_size=4))
def test_dumped_text_reads_back_the_same_in_plain_yaml(data: dict[str, object]) -> None:
    assert yaml.safe_load(yamlio.dump(data)) == data


def test_aliases_that_stand_for_little_are_read() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}\n"
    assert yamlio.loads(text).data == {"a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]}}
    assert yamlio.parse_value(f"{{{', '.join(BOMB.splitlines())}}}").startswith("{a0: &a0")


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
def test_what_is_nested_deeply_is_not_read_on(begin: str, end: str) -> None:
    """Long before Python's stack ends: the time of PyYAML grows with the square of the depth."""
    text = begin * 150 + "1" + end * 150
    with pytest.raises(SpecFileError, match="nested too deeply"):
        yamlio.loads(text)
    assert yamlio.parse_value(text) == text
