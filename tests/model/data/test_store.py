import math
import os
from pathlib import Path

import pytest

from model.data import store
from model.data.store import LIMIT, MARKER, cache_root, content_digest, digest, make_room, making, part_of, publish
from model.errors import DataError

MB = 1_000_000


def test_cache_root_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDETR_CACHE", "/somewhere")
    assert cache_root() == Path("/somewhere")
    monkeypatch.delenv("DDETR_CACHE")
    assert cache_root() == Path.home() / ".cache" / "ddetr-automl"


def test_digest_follows_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    before = digest([file])
    assert digest([file]) == before
    assert digest([file], "salt") != before
    file.write_text("other")
    assert digest([file]) != before


def test_a_crash_leaves_nothing_behind(tmp_path: Path) -> None:
    def crash(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        publish(tmp_path / "made", crash)
    assert {entry.name for entry in tmp_path.iterdir()} == {"made.lock"}


def test_an_unmarked_folder_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "stale").touch()
    made = publish(tmp_path / "made", lambda folder: (folder / "new").touch())
    assert {entry.name for entry in made.iterdir()} == {"new", MARKER}


def test_what_is_resumed_keeps_what_it_has(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        publish(tmp_path / "made", broken, resumed=True)
    made = publish(tmp_path / "made", lambda folder: (folder / "other").touch(), resumed=True)
    assert {entry.name for entry in made.iterdir()} == {"half", "other", MARKER}


def test_content_is_read_again_when_it_may_have_changed(tmp_path: Path, cache: Path) -> None:
    file, copy = tmp_path / "a", tmp_path / "b"
    file.write_text("one")
    copy.write_text("one")
    assert content_digest(file) == content_digest(copy)
    os.utime(file, (1, 1))
    file.write_text("two")
    assert content_digest(file) != content_digest(copy)


@pytest.fixture
def full(cache: Path) -> list[Path]:
    """Three folders of a megabyte, used in this order by a process that ended."""
    made = []
    for number, section in enumerate(("s3", "archives", "pixels")):
        (cache / section).mkdir(parents=True)
        folder = publish(cache / section / str(number), lambda folder: _fill(folder / "data"))
        os.utime(folder / MARKER, (number, number))
        made.append(folder)
    store._used.clear()
    return made


def _fill(file: Path) -> None:
    file.write_bytes(os.urandom(MB))


def there(folders: list[Path]) -> list[bool]:
    return [folder.exists() for folder in folders]


def test_what_was_used_longest_ago_makes_room(full: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_room(10 * MB) > 10 * MB
    assert there(full) == [True, True, True], "there is room"
    monkeypatch.setenv(LIMIT, "0.0035")
    publish(full[0], _fill)  # used again
    store._used.clear()
    assert make_room(MB // 2) >= MB // 2 - 100_000
    assert there(full) == [True, False, True]
    make_room(MB * 2)
    assert there(full) == [True, False, False]


def test_what_is_in_use_stays(full: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "0.0001")
    publish(full[0], _fill)
    with making(full[1].with_name("new")) as part:
        _fill(part / "data")
        assert make_room(MB) < 0
        assert there([*full, part]) == [True, False, False, True]
    make_room(MB)
    assert there([full[0], part_of(full[1].with_name("new"))]) == [True, False]


def test_a_short_disk_is_made_room_on(full: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Path) -> os.stat_result:
        left = sum(folder.exists() for folder in full)
        return type("Usage", (), {"free": (3 - left) * MB})()

    monkeypatch.setattr(store.shutil, "disk_usage", usage)
    assert make_room(2 * MB) == 2 * MB
    assert there(full) == [False, False, True]


def test_a_limit_is_a_number(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, str(-math.pi))
    with pytest.raises(DataError, match="`DDETR_CACHE_GB` must be a number above 0, but is '-3"):
        make_room(1)
