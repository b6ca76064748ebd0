"""One process at a time in a folder. The kernel holds the lock and drops it when the process dies, however it dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo.errors import InUseError


@contextmanager
def exclusive(path: Path, *, wait_s: float = 0.0, holder: str = "another process") -> Iterator[None]:
    """Holds a lock on `path`. Raises InUseError when it is still held after `wait_s` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InUseError(f"{path.parent} is in use by {holder}; wait for it or stop it first.") from None
                time.sleep(0.1)
        yield
