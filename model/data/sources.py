"""Where data lies: turns what a spec names (folder, JSON, tar archive) into a local path. Knows no COCO and no images.

Archives come from strangers: only plain files and folders are taken out, only to where they belong, and no more than
the archive's size makes plausible.
"""

import glob
import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from model.data.store import MARKER, cache_root, digest, publish
from model.errors import DataError
from model.progress import track

ARCHIVES = (".tar.gz", ".tgz", ".tar")

MAX_FILES = 5_000_000
MAX_RATIO = 100
"""Bytes that one archived byte may become; photographs hardly shrink at all."""
FREE_BYTES = 256 << 20
"""The ratio is not asked of archives that stay below this size."""


def local(path: str | Path, cache: Path | None = None) -> Path:
    """The local path of a source: a folder or a file as it is, an archive as the folder it was extracted to, once.

    When everything in the archive lies in one folder `images`, the result is that folder. `cache` None: cache_root().
    """
    if str(path).startswith("s3://"):
        raise ValueError(f"`{path}`: s3:// is not supported yet; copy the data to a local folder and name that.")
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise DataError(f"`{found}` does not exist; correct the path of this data source.")
    if found.is_dir() or not found.name.endswith(ARCHIVES):
        return found
    target = (cache or cache_root()) / "archives" / digest([found])
    extracted = publish(target, lambda folder: _extract(found, folder))
    entries = [entry for entry in extracted.iterdir() if entry.name != MARKER]
    return entries[0] if [entry.name for entry in entries] == ["images"] and entries[0].is_dir() else extracted


def annotation_files(path: str) -> list[Path]:
    """The annotation files that `json_file` names: the file itself; or of a folder or a pattern such as `shards/*` or
    `shards/*.json` every .json file there, by name."""
    if path.startswith("s3://"):
        return [local(path)]
    named = Path(path).expanduser().absolute()
    if named.is_dir():
        named = named / "*"
    if named.is_file() or not glob.has_magic(str(named)):
        return [local(named)]
    found = sorted(each for each in map(Path, glob.glob(str(named))) if each.suffix == ".json" and each.is_file())
    if not found:
        raise DataError(f"`{path}` must match annotation files, but no .json file does; correct `json_file`.")
    return found


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Limited:
    """A decompressed stream that ends in DataError once it gave more than `limit` bytes."""

    def __init__(self, stream: Readable, limit: int, archive: Path) -> None:
        self._stream, self._limit, self._archive, self._given = stream, limit, archive, 0

    def read(self, size: int = -1) -> bytes:
        left = self._limit - self._given
        data = self._stream.read(min(size, left + 1) if size >= 0 else left + 1)
        self._given += len(data)
        if self._given > self._limit:
            raise DataError(
                f"`{self._archive}` holds over {self._limit} bytes, more than {MAX_RATIO} times its own size; "
                "extract it yourself and name the folder if it is meant to."
            )
        return data


def _extract(archive: Path, folder: Path) -> None:
    limit = max(FREE_BYTES, MAX_RATIO * archive.stat().st_size)
    opener = open if archive.name.endswith(".tar") else gzip.open
    try:
        with (
            opener(archive, "rb") as opened,
            tarfile.open(fileobj=_Limited(opened, limit, archive), mode="r|") as tar,  # type: ignore[call-overload]
        ):
            for count, member in enumerate(track(tar, f"unpacking {archive.name}", unit="files"), start=1):
                if count > MAX_FILES:
                    raise DataError(f"`{archive}` holds over {MAX_FILES} entries; extract it yourself.")
                _extract_member(tar, member, archive, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"`{archive}` is not a readable tar archive ({error}); copy or pack it again.") from error


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or name.name == MARKER:
        raise DataError(f"`{archive}` has an entry that leaves its folder: `{member.name}`; pack it again.")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise DataError(f"`{archive}` may hold plain files and folders only, but `{member.name}` is neither.")
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    if target.exists():
        raise DataError(f"`{archive}` holds `{member.name}` twice; pack it again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    with target.open("xb") as file:
        shutil.copyfileobj(content, file)
