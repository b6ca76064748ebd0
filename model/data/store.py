"""Where derived files live and how one process makes them for all: cache root, file lock, digest of inputs, atomic
publication. Knows nothing of images, archives or COCO."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = ".complete"


def cache_root() -> Path:
    """The folder for everything that can be made again: $DDETR_CACHE, else ~/.cache/ddetr-automl. Not created here."""
    return Path(os.environ.get("DDETR_CACHE") or Path.home() / ".cache" / "ddetr-automl").expanduser().absolute()


def digest(files: Iterable[Path], salt: str = "") -> str:
    """A short name that changes with any file's path, size or modification time (nanoseconds), or with `salt`."""
    total = hashlib.sha256(salt.encode())
    for file in files:
        status = os.stat(file)
        total.update(f"\0{file}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return total.hexdigest()[:24]


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes of this node; the system drops it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder `target`, made once: `make` fills a temporary folder beside it, which is marked and renamed.

    Whoever comes second waits and finds it done; a folder without its marker is what a crash left, and is made again.
    """
    if (target / MARKER).is_file():
        return target
    with file_lock(target.with_name(target.name + ".lock")):
        if (target / MARKER).is_file():
            return target
        shutil.rmtree(target, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            make(unfinished)
            (unfinished / MARKER).touch()
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target
