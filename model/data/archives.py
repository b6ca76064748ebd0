"""Takes archives apart: tar, tar.gz and zip. Knows no images, and of where an archive came from only its name.

Archives come from strangers: only plain files and folders are taken out, only to where they belong, and no more than
the archive's size makes plausible.
"""

import errno
import gzip
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, Protocol

from model.data.store import MARKER, require_room, setting
from model.errors import DataError
from model.progress import track

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
DEFAULTS = {"DDETR_ARCHIVE_FILES": 5_000_000, "DDETR_ARCHIVE_RATIO": 100, "DDETR_ARCHIVE_GB": 2_000}
"""Environment variables, and what holds without them: entries at most; bytes that one archived byte may become, where
photographs hardly shrink at all; bytes in all."""
FREE_BYTES = 256 << 20
"""The ratio is not asked of archives that stay below this size."""
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError, OverflowError,
    struct.error, RuntimeError,
)  # fmt: skip
"""What the readers raise for bytes that are no archive of theirs; RuntimeError is zipfile's, for passwords and for
methods that it does not know."""
APPLE = "__MACOSX"
"""A folder beside the files in archives that macOS makes; it holds none of them."""


def is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def extract(archive: Path, folder: Path, name: str) -> None:
    """Everything in `archive` into `folder`. name: what the user calls it. Raises DataError for an archive that is
    broken, reaches out of its folder or grows beyond the limits; what was written until then is the caller's."""
    size = archive.stat().st_size
    limits = _Limits.of(size)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                _extract_zip(opened, folder, name, limits)
            return
        require_room(size, f"unpacking `{name}` takes at least")
        with _tar_bytes(archive) as content:
            _extract_tar(_Limited(content, limits, name), folder, name, limits)
    except BROKEN as error:
        raise DataError(
            f"`{name}` is not a readable {_kind(archive)} archive ({error}); copy or pack it again."
        ) from error


class _Limits(NamedTuple):
    files: float
    ratio: float
    ratio_bytes: float
    total_bytes: float

    @classmethod
    def of(cls, size: int) -> "_Limits":
        """For an archive of `size` bytes."""
        files, ratio, total = (setting(name, default) for name, default in DEFAULTS.items())
        return cls(files, ratio, max(FREE_BYTES, ratio * size), total * 1e9)

    def check(self, name: str, *, entries: int = 0, size: int = 0) -> None:
        """Raises DataError when so much is too much."""
        files, ratio, total = DEFAULTS
        for broken, rule, variable in (
            (entries > self.files, f"hold at most {self.files:.0f} entries, but holds more", files),
            (size > self.ratio_bytes, f"grow to {self.ratio:g} times its size at most, but grows further", ratio),
            (size > self.total_bytes, f"grow to {self.total_bytes / 1e9:g} GB at most, but grows further", total),
        ):
            if broken:
                raise DataError(
                    f"`{name}` must {rule} when it is unpacked; if it is meant to, raise {variable}, or unpack it "
                    "yourself and name the folder."
                )


def _kind(archive: Path) -> str:
    return "zip" if archive.name.lower().endswith(".zip") else "tar"


def _tar_bytes(archive: Path) -> BinaryIO | gzip.GzipFile:
    if archive.name.lower().endswith(".tar"):
        return archive.open("rb")
    return gzip.open(archive, "rb")


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Limited:
    """A decompressed stream that ends in DataError once it gave more than the limits allow."""

    def __init__(self, stream: Readable, limits: _Limits, name: str) -> None:
        self._stream, self._limits, self._name, self._given = stream, limits, name, 0
        self.end = b""
        """The last block given."""

    def read(self, size: int = -1) -> bytes:
        left = int(min(self._limits.ratio_bytes, self._limits.total_bytes)) - self._given
        data = self._stream.read(min(size, left + 1) if size >= 0 else left + 1)
        self._given += len(data)
        self._limits.check(self._name, size=self._given)
        self.end = data[-tarfile.BLOCKSIZE :] or self.end
        return data


def _extract_tar(content: _Limited, folder: Path, name: str, limits: _Limits) -> None:
    with tarfile.open(fileobj=content, mode="r|") as tar:  # type: ignore[call-overload]
        for count, member in enumerate(track(tar, f"unpacking {PurePosixPath(name).name}", unit="files"), start=1):
            limits.check(name, entries=count)
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise _no_plain_file(name, member.name)
            target = _target(folder, member.name, name)
            _write(target, None if member.isdir() else partial(tar.extractfile, member), member.name, name)
    # tarfile takes an archive that was cut between two files for a whole one.
    if any(content.end):
        raise tarfile.ReadError("its end is missing")


def _extract_zip(archive: zipfile.ZipFile, folder: Path, name: str, limits: _Limits) -> None:
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    limits.check(name, entries=len(members), size=size)
    require_room(size, f"unpacking `{name}` takes")
    for member in track(members, f"unpacking {PurePosixPath(name).name}", len(members), "files"):
        if member.filename.startswith(f"{APPLE}/"):
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_plain_file(name, member.filename)
        target = _target(folder, member.filename, name)
        _write(target, None if member.is_dir() else partial(archive.open, member), member.filename, name)


def _no_plain_file(name: str, entry: str) -> DataError:
    return DataError(
        f"`{name}` may hold plain files and folders only, but `{entry}` is neither; pack it again without."
    )


def _target(folder: Path, entry: str, name: str) -> Path:
    if not is_inside(entry):
        raise DataError(f"`{name}` has an entry that leaves its folder: `{entry}`; pack it again.")
    return folder / entry


def is_inside(entry: str) -> bool:
    """Whether a relative name stays in its folder, and is none of ours."""
    path = PurePosixPath(entry)
    return not (path.is_absolute() or ".." in path.parts or "\\" in entry or "\0" in entry or path.name == MARKER)


def _write(target: Path, opened: Callable[[], IO[bytes] | None] | None, entry: str, name: str) -> None:
    """A folder for None, else a new file with what is `opened`."""
    try:
        if opened is None:
            target.mkdir(parents=True, exist_ok=True)
            return
        if os.path.lexists(target):
            raise DataError(f"`{name}` holds `{entry}` twice; pack it again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        content = opened()
        assert content is not None
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL):
            raise
        raise DataError(
            f"`{name}` has an entry that cannot be a file here: `{entry[:200]}` ({error.strerror}); pack it again."
        ) from error
