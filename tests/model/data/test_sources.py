"""What a spec names, as a path of this machine."""

from pathlib import Path

import pytest

from model.data.sources import local, sizes
from model.errors import DataError


def test_folders_and_files_are_used_where_they_are(tmp_path: Path) -> None:
    assert local(tmp_path) == tmp_path
    (tmp_path / "a.json").touch()
    assert local(str(tmp_path / "a.json")) == tmp_path / "a.json"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent` does not exist; correct"):
        local(tmp_path / "absent")


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"12")
    (tmp_path / "b.tar").write_bytes(b"1")
    assert sizes(str(tmp_path)) == [("b.tar", 1), ("deep/a", 2)]
    assert sizes(str(tmp_path / "b.tar")) == [("archive", 1)]
