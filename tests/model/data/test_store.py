from pathlib import Path

import pytest

from model.data.store import MARKER, cache_root, digest, publish


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
