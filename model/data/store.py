"""Where derived files live and how one process makes them for all: cache root, file lock, digest of inputs, atomic
publication, and room: what was used longest ago goes first, what a process of this node uses never.

Knows nothing of images, archives or COCO.
"""

import fcntl
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from model.errors import DataError, NoRoom
from model.progress import progress

log = logging.getLogger(__name__)

MARKER = ".complete"
"""In a published folder. Holds its bytes on disk; was changed when the folder was last used; is locked by its users."""
SECTIONS = ("archives", "s3", "pixels")
"""Folders of the cache whose folders may be deleted: all that `publish` makes."""
LIMIT = "DDETR_CACHE_GB"

_used: dict[Path, IO[bytes]] = {}
"""The markers that this process holds until it ends."""


def cache_root() -> Path:
    """The folder for everything that can be made again: $DDETR_CACHE, else ~/.cache/ddetr-automl. Not created here."""
    return Path(os.environ.get("DDETR_CACHE") or Path.home() / ".cache" / "ddetr-automl").expanduser().absolute()


def setting(name: str, default: float) -> float:
    """The environment variable `name` as a number above 0."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise DataError(f"`{name}` must be a number above 0, but is {text!r}; correct it or unset it.")
    return value


def digest(files: Iterable[Path], salt: str = "") -> str:
    """A short name that changes with any file's path, size or modification time (nanoseconds), or with `salt`."""
    total = hashlib.sha256(salt.encode())
    for file in files:
        status = os.stat(file)
        total.update(f"\0{file}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:24]


def content_digest(file: Path) -> str:
    """A short name of what is in a file: read once, and again when its size or modification time has changed."""
    known = cache_root() / "digests" / digest([file])
    with suppress(FileNotFoundError):
        return known.read_text(encoding="ascii")
    total = hashlib.sha256()
    with file.open("rb") as content, progress(f"reading {file.name}", file.stat().st_size / 1e6, "MB") as counting:
        while part := content.read(1 << 20):
            total.update(part)
            counting.advance(len(part) / 1e6)
    found = total.hexdigest()[:24]
    write_whole(known, found)
    return found


def write_whole(path: Path, text: str) -> None:
    """Other processes see the file as it was, or with all of `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes of this node; the system drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(target: Path, make: Callable[[Path], None], *, resumed: bool = False) -> Path:
    """The folder `target`, made once: `make` fills a folder beside it, which is marked and renamed. It stays in place
    until this process ends.

    Whoever comes second waits and finds it done; a folder without its marker is what a crash left, and is made again.
    resumed: `make` goes on from what it left when it failed or was killed.
    """
    if _use(target):
        return target
    with file_lock(_lock_of(target)):
        if _use(target):
            return target
        shutil.rmtree(target, ignore_errors=True)
        unfinished = part_of(target)
        if not resumed:
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(exist_ok=True)
        try:
            make(unfinished)
            (unfinished / MARKER).write_text(str(_size(unfinished)), encoding="ascii")
            unfinished.rename(target)
        finally:
            if not resumed:
                shutil.rmtree(unfinished, ignore_errors=True)
        _use(target)
    return target


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """As the first half of `publish` with `resumed`: the folder beside `target`, that nobody else touches."""
    with file_lock(_lock_of(target)):
        part_of(target).mkdir(exist_ok=True)
        yield part_of(target)


def part_of(target: Path) -> Path:
    """Where `target` is made."""
    return target.with_name(f".{target.name}.part")


def _lock_of(entry: Path) -> Path:
    """Of whoever makes or deletes the entry, given as itself or as its unfinished form."""
    return entry.with_name(entry.name.removeprefix(".").removesuffix(".part") + ".lock")


def _use(target: Path) -> bool:
    """Whether `target` is complete; from now on nobody deletes it while this process lives."""
    try:
        marker = (target / MARKER).open("rb")
        fcntl.flock(marker, fcntl.LOCK_SH)
        current = os.fstat(marker.fileno()).st_ino == (target / MARKER).stat().st_ino
    except FileNotFoundError:  # not made, or deleted meanwhile
        return False
    if current:
        with suppress(OSError):  # a cache that somebody else filled need not be writable
            os.utime(target / MARKER)
        _used[target] = marker
    return current


class _Entry(NamedTuple):
    used: float
    """Time of the last use, seconds since 1970."""
    size: int
    path: Path


def make_room(needed: int) -> int:
    """Bytes that the cache has room for, on its disk and below $DDETR_CACHE_GB. As long as they are fewer than
    `needed`, what was used longest ago is deleted, unless a process of this node uses it."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    limit = setting(LIMIT, math.inf) * 1e9
    room = shutil.disk_usage(root).free
    if room >= needed and limit == math.inf:
        return room
    entries = sorted(entry for section in SECTIONS for entry in _entries(root / section))
    taken = sum(entry.size for entry in entries)
    for entry in entries:
        room = int(min(shutil.disk_usage(root).free, limit - taken))
        if room >= needed:
            break
        if _delete(entry.path):
            log.info("deleted %s from the cache (%d MB)", entry.path, entry.size >> 20)
            taken -= entry.size
    return int(min(shutil.disk_usage(root).free, limit - taken))


def require_room(needed: int, what: str) -> None:
    """Raises NoRoom where `what` (with its verb) takes more bytes than the cache has room for."""
    room = make_room(needed)
    if room >= needed:
        return
    root, free = cache_root(), shutil.disk_usage(cache_root()).free
    if free < needed:
        raise NoRoom(
            f"{what} {_shown(needed)} in the cache {root}, but its disk has {_shown(free)} free; free some, or set "
            "DDETR_CACHE to a folder of another disk."
        )
    raise NoRoom(
        f"{what} {_shown(needed)} in the cache {root}, but `{LIMIT}={os.environ[LIMIT]}` leaves {_shown(max(room, 0))} "
        f"beside what is in use; raise {LIMIT}."
    )


def _shown(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _entries(section: Path) -> Iterator[_Entry]:
    """Finished folders, and what a killed process left of others."""
    for path in section.iterdir() if section.is_dir() else ():
        if not path.is_dir():
            continue
        marker = path / MARKER
        with suppress(FileNotFoundError):
            if marker.exists():
                yield _Entry(marker.stat().st_mtime, int(marker.read_text(encoding="ascii")), path)
            else:
                yield _Entry(path.stat().st_mtime, _size(path), path)


def _delete(entry: Path) -> bool:
    """Whether it is gone: nobody makes it or uses it."""
    try:
        with _lock_of(entry).open("a") as making:
            fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError), (entry / MARKER).open("r+b") as marker:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (entry / MARKER).unlink()
            shutil.rmtree(entry)
    except OSError:  # in use, or somebody else's
        return False
    return True


def _size(folder: Path) -> int:
    """Bytes that it takes on disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total
