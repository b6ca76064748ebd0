"""The named errors of searches and commands. A user's mistake is a ValueError and exits with 2."""


class PolicyError(ValueError):
    """A search is asked for and cannot run here."""


class RunError(ValueError):
    """A run folder is missing, incomplete, in use, or not a sweep's."""


class InUseError(RunError):
    """Another process holds the folder."""


class ShadowedPackageError(ValueError):
    """One of our packages would be imported from a file that is not ours."""


class SweepStoppedError(RuntimeError):
    """The first trials failed with one cause, or none completed; the message is the diagnosis."""


class DiskFullError(RuntimeError):
    """There is no room for checkpoints or the study; the sweep stopped, and goes on when there is."""


class UnfitWorkerError(RuntimeError):
    """A worker met trouble of its machine. It ends with it, so that no other trial gets a worker that may be broken."""


class ClusterError(ValueError):
    """A Ray cluster cannot be reached, or a node of it is not ready for trials."""
