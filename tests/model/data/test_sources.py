import io
import multiprocessing
import tarfile
from pathlib import Path

import pytest

from model.data import sources
from model.data.sources import local
from model.errors import DataError


def member(name: str, content: bytes = b"pixels", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def test_folders_and_files_are_used_where_they_are(tmp_path: Path) -> None:
    assert local(tmp_path) == tmp_path
    (tmp_path / "a.json").touch()
    assert local(str(tmp_path / "a.json")) == tmp_path / "a.json"


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
def test_a_single_images_folder_is_the_result(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, member("./images/a.jpg"), member("./images/deep/b.jpg", b"other"))
    folder = local(archive)
    assert folder.name == "images"
    assert (folder / "a.jpg").read_bytes() == b"pixels"
    assert (folder / "deep" / "b.jpg").read_bytes() == b"other"
    assert local(archive) == folder


def test_other_layouts_keep_their_root(tmp_path: Path) -> None:
    folder = local(pack(tmp_path / "set.tar", member("images/a.jpg"), member("b.jpg")))
    assert (folder / "images" / "a.jpg").is_file()
    assert (folder / "b.jpg").is_file()


def test_a_changed_archive_is_extracted_again(tmp_path: Path) -> None:
    first = local(pack(tmp_path / "set.tar", member("a.jpg")))
    second = local(pack(tmp_path / "set.tar", member("a.jpg", b"x" * 20_000)))
    assert first != second
    assert (second / "a.jpg").stat().st_size == 20_000


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/passwd"),
        member("../outside"),
        member("images/../../outside"),
        member("images\\..\\outside"),
        member(".complete"),
        member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", b"", type=tarfile.LNKTYPE, linkname="a.jpg"),
        member("device", b"", type=tarfile.CHRTYPE),
        member("pipe", b"", type=tarfile.FIFOTYPE),
        member("a.jpg"),
    ],
    ids=lambda bad: bad[0].name,
)
def test_malicious_entries_are_refused(tmp_path: Path, cache: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    archive = pack(tmp_path / "set.tar.gz", member("a.jpg"), bad)
    with pytest.raises(DataError, match=r"set\.tar\.gz"):
        local(archive)
    assert not (tmp_path / "outside").exists()
    assert [entry.suffix for entry in (cache / "archives").iterdir()] == [".lock"]


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "set.tar.gz", *(member(str(number), bytes(1 << 20)) for number in range(4)))
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 20)
    with pytest.raises(DataError, match="100 times its own size"):
        local(archive)
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 30)
    monkeypatch.setattr(sources, "MAX_FILES", 3)
    with pytest.raises(DataError, match="over 3 entries"):
        local(archive)


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="s3:// is not supported yet"):
        local("s3://bucket/images.tar.gz")
    with pytest.raises(DataError, match=r"absent` does not exist; correct"):
        local(tmp_path / "absent")
    for name in ("broken.tar", "broken.tar.gz"):
        (tmp_path / name).write_bytes(b"this is no archive" * 100)
        with pytest.raises(DataError, match=f"{name}` is not a readable tar"):
            local(tmp_path / name)
    whole = pack(tmp_path / "cut.tar.gz", member("a", bytes(range(256)) * 400))
    whole.write_bytes(whole.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut.tar.gz` is not a readable tar"):
        local(whole)


def test_two_processes_extract_once(tmp_path: Path, cache: Path) -> None:
    archive = pack(tmp_path / "set.tar", *(member(f"images/{number}.jpg") for number in range(300)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_extract, [archive, archive], chunksize=1)
    # The same inode: the second did not replace what the first made.
    assert first == second
    assert len(list((cache / "archives").iterdir())) == 2  # the folder and its lock


def _extract(archive: Path) -> tuple[Path, int]:
    folder = local(archive)
    return folder, (folder / "0.jpg").stat().st_ino
