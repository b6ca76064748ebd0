"""SIGTERM and Ctrl-C during a training: stop at once, as one named exception. Knows nothing of what is stopped.

Checkpoints appear whole or not at all, so stopping anywhere loses no more than what came after the last of them.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal ended the training."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Stop(BaseException):
    """Travels through Lightning, which would turn a KeyboardInterrupt into exit code 1 and deafen the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises Interrupted out of the block on either signal. Outside the main thread, where none arrives, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    try:
        yield
    except _Stop as stop:
        raise Interrupted(stop.number) from None
    except SystemError as error:
        # Where the signal comes in compiled code that does not look for exceptions, as Ray's, Python wraps it.
        if isinstance(error.__cause__, _Stop):
            raise Interrupted(error.__cause__.number) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that Python did not install


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM is what Ctrl-C is: a KeyboardInterrupt, here Interrupted. For work that nothing catches it in."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def listen() -> None:
    """Installs the handlers again, over Lightning's, which lets the running batch end and waits for other ranks."""
    if threading.current_thread() is not threading.main_thread():
        return
    main = os.getpid()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # A forked data worker inherits this handler, and knows what to do with a KeyboardInterrupt.
        raise _Stop(number) if os.getpid() == main else KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
