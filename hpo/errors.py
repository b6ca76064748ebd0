"""The named errors of searches and commands. A user's mistake is a ValueError and exits with 2."""


class PolicyError(ValueError):
    """A search is asked for and cannot run here."""


class RunError(ValueError):
    """A run folder is missing, incomplete, in use, or not a sweep's."""


class ShadowedPackageError(ValueError):
    """One of our packages would be imported from a file that is not ours."""


class SweepStoppedError(RuntimeError):
    """The first trials failed with one cause, or none completed; the message is the diagnosis."""
