"""How far a long piece of work is, told to whoever asked to hear it. Knows no screen; silent until `heard_by`.

    for batch in track(batches, "evaluating", total=150, unit="images", size=len): ...

A listener belongs to the thread and the process that installed it: data workers, ranks and trials stay silent.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")

EVERY_S = 0.5
"""A listener is told no more often."""


class Work(NamedTuple):
    """A piece of work as far as it is."""

    what: str
    """In a word or two: "evaluating", "training"."""
    unit: str
    """What is counted, in the plural; empty: nothing that a person would count."""
    total: float | None
    """None where nobody knows."""
    done: float = 0.0
    note: str = ""


class Listener(Protocol):
    def begun(self, work: Work) -> None: ...

    def moved(self, work: Work) -> None: ...

    def over(self, work: Work) -> None:
        """Also after an error."""


_listener: ContextVar[tuple[int, Listener] | None] = ContextVar("progress", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within, `listener` hears of all work of this thread in this process."""
    token = _listener.set((os.getpid(), listener))
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """Counts one piece of work. Made by `progress`."""

    def __init__(self, work: Work, listener: Listener | None) -> None:
        self.work = work
        self._listener = listener
        self._told = time.monotonic()
        self._done = work.done

    def advance(self, count: float = 1, note: str | None = None) -> None:
        if self._listener is None:
            return
        self._done += count
        now = time.monotonic()
        if note is None and now - self._told < EVERY_S:
            return
        self._told = now
        self._tell(self.work.note if note is None else note)

    def reach(self, done: float, note: str | None = None) -> None:
        """As `advance`, by what is done altogether."""
        self.advance(done - self._done, note)

    def _tell(self, note: str) -> None:
        assert self._listener is not None
        self.work = self.work._replace(done=self._done, note=note)
        self._listener.moved(self.work)

    def close(self) -> None:
        if self._listener is not None:
            self._tell(self.work.note)
            self._listener.over(self.work)
            self._listener = None


def start(what: str, total: float | None = None, unit: str = "", done: float = 0.0) -> Progress:
    """To be closed by the caller; `progress` does so itself."""
    found = _listener.get()
    listener = found[1] if found is not None and found[0] == os.getpid() else None
    work = Work(what, unit, total, done)
    if listener is not None:
        listener.begun(work)
    return Progress(work, listener)


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
    """Work that its block counts with `advance`."""
    counting = start(what, total, unit)
    try:
        yield counting
    finally:
        counting.close()


def track(
    items: Iterable[T], what: str, total: float | None = None, unit: str = "", size: Callable[[T], int] | None = None
) -> Iterator[T]:
    """The items, each counted when the next one is asked for: as one, or as `size` says."""
    with progress(what, total, unit) as counting:
        for item in items:
            yield item
            counting.advance(1 if size is None else size(item))
