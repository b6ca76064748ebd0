"""Where data lies: turns what a spec names (folder, file, archive, address in S3) into a local path. Knows no COCO and
no images.

What has to be downloaded or unpacked is so once on each node, whichever process comes first, and kept by its content.
"""

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from model.data import remote
from model.data.archives import extract, is_archive
from model.data.remote import Found
from model.data.s3_client import SCHEME
from model.data.store import MARKER, cache_root, content_digest, making, publish
from model.errors import DataError

T = TypeVar("T")

TRIES = 3
"""Times that what changes while it is downloaded is begun anew."""


def is_remote(path: str) -> bool:
    return path.startswith(SCHEME)


def local(path: str | Path) -> Path:
    """The local path of a source: a folder or a file as it is, an archive as the folder it was extracted to, an address
    in S3 (of an object, or of a folder of them) as what was downloaded from it.

    When everything in an archive lies in one folder `images`, the result is that folder.
    """
    if is_remote(str(path)):
        return _steady(str(path), lambda again: _staged(_without_archives(remote.find(str(path), again=again))))
    if "://" in str(path):
        raise DataError(f"`{path}` must be a local path or begin with {SCHEME}; copy the data to one of them.")
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise DataError(f"`{found}` does not exist; correct the path of this data source.")
    if found.is_dir() or not is_archive(found.name):
        return found
    return _unpacked(content_digest(found), lambda folder: extract(found, folder, str(found)))


def annotation_files(path: str) -> list[Path]:
    """The annotation files that `json_file` names: the file itself; or of a folder or a pattern such as `shards/*` or
    `shards/*.json` every .json file there, by name. The same for an address in S3."""
    if is_remote(path):
        return _steady(path, lambda again: _remote_files(path, again))
    named = Path(path).expanduser().absolute()
    if named.is_dir():
        named = named / "*"
    if named.is_file() or not glob.has_magic(str(named)):
        return [local(path)]
    found = sorted(each for each in map(Path, glob.glob(str(named))) if each.suffix == ".json" and each.is_file())
    if not found:
        raise _no_shards(path)
    return found


def called(file: Path) -> str:
    """What the user knows a file as that was found here: by its address where it was downloaded."""
    root = cache_root() / "s3"
    return SCHEME + "/".join(file.relative_to(root).parts[1:]) if root in file.parents else str(file)


def sizes(path: str) -> list[tuple[str, int]]:
    """Name and bytes of every file below a folder, sorted; of an archive or a file only its own, under the name
    `archive`, for its list is as long to read as all of it. Downloads nothing."""
    if is_remote(path):
        found = remote.find(path)
        return [("archive" if found.single else one.name, one.size) for one in found.objects]
    place = Path(path).expanduser()
    if not place.is_dir():
        return [("archive", place.stat().st_size)]
    files = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    return sorted((file.relative_to(place).as_posix(), file.stat().st_size) for file in files)


def _steady(uri: str, use: Callable[[bool], T]) -> T:
    """What `use` makes of what is found at `uri`, which it is to ask for again once that has changed meanwhile."""
    for number in range(TRIES):
        try:
            return use(number > 0)
        except remote.Changed:
            continue
    raise DataError(f"`{uri}` must stay as it is while it is downloaded, but changes again and again; try later.")


def _remote_files(path: str, again: bool) -> list[Path]:
    found = remote.find(path, again=again)
    if found.single:
        return [_staged(found)]
    if not glob.has_magic(path):  # a folder
        found = remote.find(f"{path.rstrip('/')}/*", again=again)
    shards = found.only(lambda name: name.endswith(".json"))
    if not shards.objects:
        raise _no_shards(path)
    folder = _staged(shards)
    return [folder / one.name for one in shards.objects]


def _no_shards(path: str) -> DataError:
    return DataError(f"`{path}` must match annotation files, but no .json file does; correct `json_file`.")


def _without_archives(found: Found) -> Found:
    """A folder without the archives beside what is wanted of it, whose bytes would be for nothing."""
    if found.single:
        return found
    plain = found.only(lambda name: not is_archive(name))
    if not plain.objects:
        first = f"{SCHEME}{found.bucket}/{found.key(found.objects[0])}"
        raise DataError(f"`{found.uri}` must hold files, but holds archives only; name one of them: {first}")
    return plain


def _staged(found: Found) -> Path:
    """What was found, on this node."""
    if found.single and is_archive(found.root):
        return _unpacked(found.digest, lambda folder: _fetch_and_extract(found, folder))
    target = cache_root() / "s3" / found.digest
    return publish(target, lambda folder: remote.fetch(found, folder), resumed=True) / found.path


def _unpacked(name: str, make: Callable[[Path], None]) -> Path:
    extracted = publish(cache_root() / "archives" / name, make)
    entries = [entry for entry in extracted.iterdir() if entry.name != MARKER]
    return entries[0] if [entry.name for entry in entries] == ["images"] and entries[0].is_dir() else extracted


def _fetch_and_extract(found: Found, folder: Path) -> None:
    """The archive itself is not kept, unless its download was broken off."""
    with making(cache_root() / "s3" / found.digest) as part:
        # Images in an archive are about as large as it is.
        remote.fetch(found, part, beside=found.objects[0].size)
        try:
            extract(part / found.path, folder, found.uri)
        finally:
            shutil.rmtree(part)
