"""The named errors of searches and commands, and the class of any error. A user's mistake is a ValueError, exit 2."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # a file of the user's may stand in for our model, which hpo.guard tells with an error of this module
    from model.errors import Kind


class PolicyError(ValueError):
    """A search is asked for and cannot run here."""

    kind: "ClassVar[Kind]" = "spec"


class RunError(ValueError):
    """A run folder is missing, incomplete, in use, or not a sweep's."""

    kind: "ClassVar[Kind]" = "run"


class InUseError(RunError):
    """Another process holds the folder."""


class SkillError(ValueError):
    """A folder or an interpreter that `ddetr skill` is given will not do."""

    kind: "ClassVar[Kind]" = "usage"


class ShadowedPackageError(ValueError):
    """One of our packages would be imported from a file that is not ours."""

    kind: "ClassVar[Kind]" = "install"


class SweepStoppedError(RuntimeError):
    """The first trials failed with one cause, or none completed; the message is the diagnosis."""

    kind: "ClassVar[Kind]" = "run"


class DiskFullError(RuntimeError):
    """There is no room for checkpoints or the study; the sweep stopped, and goes on when there is."""

    kind: "ClassVar[Kind]" = "disk"


class UnfitWorkerError(RuntimeError):
    """A worker met trouble of its machine. It ends with it, so that no other trial gets a worker that may be broken."""

    kind: "ClassVar[Kind]" = "cluster"


class ClusterError(ValueError):
    """A Ray cluster cannot be reached, or a node of it is not ready for trials."""

    kind: "ClassVar[Kind]" = "cluster"


class TrackingError(RuntimeError):
    """MLflow cannot be read, or does not know what is asked."""

    kind: "ClassVar[Kind]" = "tracking"


class ResultsDirError(ValueError):
    """The folder for results cannot be made or written."""

    kind: "ClassVar[Kind]" = "disk"


UNNAMED: "Mapping[type[BaseException], Kind]" = {
    MemoryError: "memory",
    ImportError: "install",
    ConnectionError: "cluster",
    OSError: "disk",
    ValueError: "spec",
}
"""Errors that carry no class of their own: of the first type that fits. Any other is internal."""


def kind_of(error: BaseException) -> "Kind":
    """The class of an error that a command has foreseen."""
    named: Kind | None = getattr(type(error), "kind", None)
    if named is not None:
        return named
    return next((kind for cls, kind in UNNAMED.items() if isinstance(error, cls)), "internal")
