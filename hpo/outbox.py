"""A queue on disk of what a server has not heard yet, in order. Knows neither the server nor what is said.

One line of JSON for each event, and a line `-` for each one heard from the front; empty when all is heard. A process
that dies leaves the rest to the next one. What is heard may be said again after a crash, so saying it twice must be
harmless.
"""

import fcntl
import json
import threading
from collections import deque
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

LIMIT = 20_000
"""Events kept at most: a bound on the file, far above what a sweep says in a day."""
_HEARD = "-"


class Outbox:
    """The queue in the file `path`. Safe to use from several threads of the one process that holds it.

    With a full disk, or a file that another process holds, the queue goes on in memory: all that is lost is what a
    crash would lose.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path, self._limit = path, limit
        self.dropped = 0
        """Events that came when the queue was full."""
        self._changed = threading.Condition()
        self._events: deque[dict[str, Any]] = deque()
        self._sealed = self._closed = False
        self._behind = False
        """Whether the file lacks something of the queue."""
        self._file = self._open()

    def _open(self) -> FileIO | None:
        file: FileIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(self.path, "a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            text = file.readall()
            self._events = _pending(text)
            if not self._events:
                file.truncate(0)
            elif not text.endswith(b"\n"):  # its writer died in this line, which must not swallow the next
                file.write(b"\n")
        except OSError:
            if file is not None:
                file.close()
            return None
        return file

    @property
    def held(self) -> bool:
        """Whether this process has the file."""
        return self._file is not None

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Mapping[str, Any]) -> None:
        """Adds an event of plain values at the end."""
        text = json.dumps(event)
        with self._changed:
            if len(self._events) >= self._limit:
                self.dropped += 1
                return
            self._events.append(json.loads(text))
            self._append(text)
            self._changed.notify()

    def first(self) -> dict[str, Any] | None:
        """The oldest event; it stays until `heard`. Waits for one; None when none will come, and after `close`, when
        the rest is another's to say."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._sealed)
            return self._events[0] if self._events and not self._closed else None

    def heard(self) -> None:
        """Takes the oldest event out."""
        with self._changed:
            self._events.popleft()
            if self._events:
                self._append(_HEARD)
            elif self._file is not None:
                self._file.truncate(0)
                self._behind = False

    def seal(self) -> None:
        """Says that no more events will come."""
        with self._changed:
            self._sealed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Lets go of the file; what is in it stays."""
        with self._changed:
            if self._file is not None:
                self._file.close()
            self._file, self._closed = None, True

    def _append(self, line: str) -> None:
        if self._file is None or self._behind:
            return
        data = line.encode() + b"\n"
        try:
            self._behind = self._file.write(data) != len(data)
        except OSError:  # a full disk; the file is made good when the queue is empty
            self._behind = True


def waiting(path: Path) -> int:
    """How many events of a queue nobody has heard, whoever holds it."""
    return len(_pending(path.read_bytes())) if path.is_file() else 0


def _pending(text: bytes) -> deque[dict[str, Any]]:
    events: deque[dict[str, Any]] = deque()
    for line in text.splitlines():
        if line == _HEARD.encode():
            if events:
                events.popleft()
            continue
        try:
            event = json.loads(line)
        except ValueError:  # its writer died in it
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
