"""The named errors of searches and commands. A user's mistake is a ValueError and exits with 2."""

from hpo.faults import RunError, ShadowedPackageError, SweepStoppedError

__all__ = ["PolicyError", "RunError", "ShadowedPackageError", "SweepStoppedError"]


class PolicyError(ValueError):
    """A search is asked for and cannot run here."""
