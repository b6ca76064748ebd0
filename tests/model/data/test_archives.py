"""Archives from strangers: the eight ways to do harm, in both forms where there are two, and what is to be raised for
those that are meant well."""

import gzip
import io
import multiprocessing
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from model.data import archives
from model.data.sources import local
from model.errors import DataError

Pack = Callable[[Path, Mapping[str, bytes]], Path]


def member(name: str, content: bytes = b"pixels", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.lower().endswith("gz") else "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: Mapping[str, bytes], *, mode: int = 0) -> Path:
    """mode: of the last file, as Unix has it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if name == list(files)[-1] else 0) << 16
            made.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """An archive of the form that its name says."""
    if path.name.lower().endswith(".zip"):
        return zipped(path, files)
    return tarred(path, *(member(name, content) for name, content in files.items()))


def nothing_left(folder: Path, cache: Path) -> bool:
    return not [each for each in (cache / "archives").iterdir() if each.suffix != ".lock"] and not list(
        folder.rglob("outside*")
    )


FORMS = ["set.tar", "set.tar.gz", "set.tgz", "set.zip", "SET.TAR.GZ", "SET.ZIP"]


@pytest.mark.parametrize("name", FORMS[:4])
def test_a_single_images_folder_is_the_result(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, {"images/a.jpg": b"pixels", "images/deep/b.jpg": b"other"})
    folder = local(archive)
    assert folder.name == "images"
    assert (folder / "a.jpg").read_bytes() == b"pixels"
    assert (folder / "deep" / "b.jpg").read_bytes() == b"other"
    assert local(archive) == folder


@pytest.mark.parametrize("name", FORMS)
def test_other_layouts_keep_their_root(tmp_path: Path, name: str) -> None:
    folder = local(pack(tmp_path / name, {"./images/a.jpg": b"", "b.jpg": b""}))
    assert (folder / "images" / "a.jpg").is_file()
    assert (folder / "b.jpg").is_file()


def test_what_macos_adds_is_passed_over(tmp_path: Path) -> None:
    folder = local(zipped(tmp_path / "set.zip", {"images/a.jpg": b"x", "__MACOSX/images/._a.jpg": b"y"}))
    assert folder.name == "images"


def test_content_is_the_key(tmp_path: Path) -> None:
    first = local(pack(tmp_path / "set.tar", {"a.jpg": b"one"}))
    (tmp_path / "copy").mkdir()
    assert local((tmp_path / "set.tar").rename(tmp_path / "copy" / "other.tar")) == first
    second = local(pack(tmp_path / "set.tar", {"a.jpg": b"two"}))
    assert second != first
    assert (second / "a.jpg").read_bytes() == b"two"


LEAVES, NO_FILE = "has an entry that leaves its folder", "may hold plain files and folders only"
HARM: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "traversal": (lambda d: tarred(d / "set.tar", member("a/../../outside")), "set.tar", LEAVES),
    "traversal up": (lambda d: tarred(d / "set.tar.gz", member("../outside")), "set.tar.gz", LEAVES),
    "traversal zip": (lambda d: zipped(d / "set.zip", {"a.jpg": b"", "../outside": b"x"}), "set.zip", LEAVES),
    "traversal windows": (lambda d: zipped(d / "set.zip", {"a\\..\\outside": b"x"}), "set.zip", LEAVES),
    "absolute": (lambda d: tarred(d / "set.tar", member(f"{d}/outside")), "set.tar", LEAVES),
    "absolute zip": (lambda d: zipped(d / "set.zip", {f"{d}/outside": b"x"}), "set.zip", LEAVES),
    "marker": (lambda d: tarred(d / "set.tar", member(".complete")), "set.tar", LEAVES),
    "symlink": (
        lambda d: tarred(
            d / "set.tar", member("link", b"", type=tarfile.SYMTYPE, linkname=str(d)), member("link/outside")
        ),
        "set.tar", NO_FILE,
    ),
    "symlink zip": (lambda d: zipped(d / "set.zip", {"link": b"/etc"}, mode=stat.S_IFLNK | 0o777), "set.zip", NO_FILE),
    "hard link": (
        lambda d: tarred(d / "set.tar", member("link", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
        "set.tar", NO_FILE,
    ),
    "device": (lambda d: tarred(d / "set.tar", member("null", b"", type=tarfile.CHRTYPE)), "set.tar", NO_FILE),
    "device zip": (lambda d: zipped(d / "set.zip", {"null": b""}, mode=stat.S_IFCHR | 0o666), "set.zip", NO_FILE),
    "pipe": (lambda d: tarred(d / "set.tar", member("pipe", b"", type=tarfile.FIFOTYPE)), "set.tar", NO_FILE),
    "twice": (lambda d: tarred(d / "set.tar", member("a"), member("a")), "set.tar", "holds `a` twice"),
    "file and folder": (lambda d: tarred(d / "set.tar", member("a"), member("a/b")), "set.tar", "cannot be a file"),
    "long name": (lambda d: zipped(d / "set.zip", {"x" * 300: b""}), "set.zip", "cannot be a file"),
    "truncated": (lambda d: cut(tarred(d / "set.tar", member("a", bytes(3000)))), "set.tar", "is not a readable tar"),
    "truncated gz": (lambda d: cut(tarred(d / "set.tar.gz", member("a"))), "set.tar.gz", "is not a readable tar"),
    "truncated zip": (lambda d: cut(zipped(d / "set.zip", {"a": b"x"})), "set.zip", "is not a readable zip"),
    "truncated between files": (
        lambda d: cut(tarred(d / "set.tar", member("a", b"x" * 512), member("b")), 1024), "set.tar", "end is missing",
    ),
    "no archive": (lambda d: write(d / "set.tar.gz", b"no archive" * 100), "set.tar.gz", "is not a readable tar"),
    "password": (lambda d: encrypted(zipped(d / "set.zip", {"a": b"x"})), "set.zip", "is not a readable zip"),
}  # fmt: skip


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path, size: int | None = None) -> Path:
    content = path.read_bytes()
    return write(path, content[: size or len(content) * 2 // 3 if path.suffix != ".tar" else size or 2000])


def encrypted(path: Path) -> Path:
    """Flagged so in both its headers."""
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return write(path, bytes(content))


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_refused_and_leaves_nothing_behind(tmp_path: Path, cache: Path, harm: str) -> None:
    make, name, expected = HARM[harm]
    folder = tmp_path / "data"
    folder.mkdir()
    archive = make(folder)
    with pytest.raises(DataError, match=expected) as caught:
        local(archive)
    assert f"`{folder / name}`" in str(caught.value)
    assert nothing_left(tmp_path, cache)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip"])
def test_bombs_and_what_to_raise(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    archive = pack(tmp_path / name, {str(number): bytes(1 << 20) for number in range(4)})
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"must grow to 100 times its size at most.* raise DDETR_ARCHIVE_RATIO"):
        local(archive)
    monkeypatch.setenv("DDETR_ARCHIVE_RATIO", "10000")
    monkeypatch.setenv("DDETR_ARCHIVE_GB", "0.001")
    with pytest.raises(DataError, match=r"must grow to 0\.001 GB at most.* raise DDETR_ARCHIVE_GB"):
        local(archive)
    monkeypatch.setenv("DDETR_ARCHIVE_GB", "1")
    monkeypatch.setenv("DDETR_ARCHIVE_FILES", "3")
    with pytest.raises(DataError, match=r"must hold at most 3 entries.* raise DDETR_ARCHIVE_FILES"):
        local(archive)
    assert nothing_left(tmp_path, cache)
    monkeypatch.setenv("DDETR_ARCHIVE_FILES", "many")
    with pytest.raises(DataError, match="`DDETR_ARCHIVE_FILES` must be a number above 0, but is 'many'"):
        local(archive)
    monkeypatch.setenv("DDETR_ARCHIVE_FILES", "4")
    assert len([*local(archive).glob("[0-9]")]) == 4


def test_a_bomb_in_a_header(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extended header is read whole into memory before any file is seen."""
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(16 << 20)))
    with pytest.raises(DataError, match="raise DDETR_ARCHIVE_RATIO"):
        local(tmp_path / "set.tar.gz")
    assert nothing_left(tmp_path, cache)


def test_two_processes_extract_once(tmp_path: Path, cache: Path) -> None:
    archive = pack(tmp_path / "set.tar", {f"images/{number}.jpg": b"" for number in range(300)})
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_extract, [archive, archive], chunksize=1)
    # The same inode: the second did not replace what the first made.
    assert first == second
    assert len(list((cache / "archives").iterdir())) == 2  # the folder and its lock


def _extract(archive: Path) -> tuple[Path, int]:
    folder = local(archive)
    return folder, (folder / "0.jpg").stat().st_ino


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.zip"])
def test_damage_has_a_name(tmp_path: Path, name: str) -> None:
    """Whichever bytes are others: the files, or a DataError; nothing beside the folder."""
    rng = random.Random(name)
    whole = pack(tmp_path / name, {"images/a.jpg": b"one", "b/c.jpg": bytes(700)}).read_bytes()
    refused = 0
    for number in range(80):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(min(len(whole), 2600))] = rng.randrange(256)
        folder = tmp_path / "out" / str(number)
        folder.mkdir(parents=True)
        try:
            archives.extract(write(tmp_path / name, bytes(damaged)), folder, name)
        except DataError:
            refused += 1
    assert 20 < refused <= 80
    assert {path.name for path in tmp_path.iterdir()} == {name, "out", "cache"}
