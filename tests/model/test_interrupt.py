"""A signal ends a block as one exception, wherever it comes."""

import os
import signal

import pytest

from model.interrupt import Interrupted, interruptible


def test_signal_ends_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="SIGINT") as caught, interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


def compiled() -> None:
    """As code of Cython's passes a handler's exception on."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as stop:
        raise SystemError("CoreWorker.wait returned a result with an exception set") from stop


def test_signal_within_compiled_code_that_wraps_it() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        compiled()
    with pytest.raises(SystemError, match="of another kind"), interruptible():
        raise SystemError("of another kind")
