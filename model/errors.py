"""The named errors of training and evaluation. A user's mistake is a ValueError; what a run meets is a RuntimeError.

Each carries its `kind`, the class that a command prints before it: who has to mend what.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

Kind = Literal["usage", "spec", "data", "run", "cluster", "tracking", "memory", "disk", "install", "internal"]
KINDS: Mapping[Kind, str] = {
    "usage": "the command line itself",
    "spec": "a spec file, an override or a flag says what cannot be",
    "data": "images or annotations contradict the spec or themselves",
    "run": "a run's folder or a checkpoint is not what the command needs, or a training came to nothing",
    "cluster": "Ray, a node of it, or its hardware",
    "tracking": "the MLflow store or server",
    "memory": "memory of a GPU or of the machine",
    "disk": "a file or a folder cannot be read or written, or the disk is full",
    "install": "a package is missing or hidden by another",
    "internal": "a fault of ours, to be reported with its traceback",
}


class SpecError(ValueError):
    """One or more keys of a spec are wrong. `problems` holds one paragraph for each; `of_data` are those of them that
    the dataset causes."""

    kind: ClassVar[Kind] = "spec"

    def __init__(self, problems: list[str], *, of_data: Collection[str] = ()) -> None:
        self.problems = problems
        self.of_data = frozenset(of_data)
        super().__init__("\n".join(problems))


class DataError(ValueError):
    """The dataset contradicts the spec or itself."""

    kind: ClassVar[Kind] = "data"


class Unreachable(DataError):  # noqa: N818
    """A server that holds data does not answer. It may do so later."""


class NoRoom(DataError):  # noqa: N818
    """The disk, or a limit that the user set, leaves too little room for data."""

    kind: ClassVar[Kind] = "disk"


class ExtraMissing(DataError):  # noqa: N818
    """A package that an address needs is not installed; the message says what to install."""

    kind: ClassVar[Kind] = "install"


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, or contradicts the spec."""

    kind: ClassVar[Kind] = "run"


class NonFiniteLoss(RuntimeError):  # noqa: N818 - named for what happened, as the reports print it
    """The loss became infinite or NaN; the message holds the loss terms and the image ids."""

    kind: ClassVar[Kind] = "run"


class OutOfMemory(RuntimeError):  # noqa: N818
    """The device's memory was exceeded and nothing smaller can be tried."""

    kind: ClassVar[Kind] = "memory"


class WorkerDied(RuntimeError):  # noqa: N818
    """A process of the training went away without a word; usually the system took it for its memory."""

    kind: ClassVar[Kind] = "memory"


class RankError(RuntimeError):
    """One of several processes of a training failed in a way that has no name of its own."""

    kind: ClassVar[Kind] = "internal"
