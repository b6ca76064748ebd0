"""Files are there whole or not at all."""

from pathlib import Path

import pytest

from model.whole import in_place, write_text


def test_names_come_when_all_is_written(tmp_path: Path) -> None:
    one, other = tmp_path / "new" / "a.txt", tmp_path / "b.txt"
    write_text("before", other)
    with in_place(one, other) as (first, second):
        first.write_text("a")
        second.write_text("after")
        assert not one.exists()
        assert other.read_text() == "before"
    assert (one.read_text(), other.read_text()) == ("a", "after")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "b.txt", "new"]


def test_what_breaks_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text("before", file)

    def broken() -> None:
        with in_place(file, tmp_path / "b.txt") as (partial, _):
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "before"
