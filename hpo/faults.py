"""The named ways a sweep refuses to begin or ends early. A user's mistake is a ValueError; what a run meets is not."""


class RunError(ValueError):
    """A run folder is missing, incomplete, in use, or not a sweep's."""


class ShadowedPackageError(ValueError):
    """One of our packages would be imported from a file that is not ours."""


class SweepStoppedError(RuntimeError):
    """The first trials failed with one cause; the message is the diagnosis."""
