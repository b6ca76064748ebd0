"""Which errors are the machine's and not the configuration's. Knows errors only; each predicate looks at causes too."""

import errno
import re
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
PASSING = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
)  # fmt: skip
"""What a network file system, a full machine or a bad disk says, and may not say again."""


def is_disk_full(error: BaseException) -> bool:
    return any(
        (isinstance(each, OSError) and each.errno in FULL)
        or "database or disk is full" in str(each)
        or "No space left on device" in str(each)
        or type(each).__name__ == "NoRoom"
        for each in _chain(error)
    )


def is_infrastructure(error: BaseException) -> bool:
    """Whether the same training may well succeed when it is tried again, here or elsewhere."""
    for each in _chain(error):
        text = str(each)
        if isinstance(each, OSError) and each.errno in PASSING:
            return True
        if type(each).__name__ in ("WorkerDied", "Unreachable"):
            return True
        # The device itself; an assertion in a kernel is what the training asked of it.
        if isinstance(each, RuntimeError) and "CUDA error" in text and "device-side assert" not in text:
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def cause_of(reason: str | None) -> str:
    """A reason without its numbers and paths, so that equal causes compare equal."""
    return re.sub(r"\(traceback in .*?\)|\d+(\.\d+)?", "", first_line(reason or "")).strip()


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line for line in text.splitlines() if line.strip()), "")
