"""The named errors of training and evaluation. A user's mistake is a ValueError; what a run meets is a RuntimeError."""


class SpecError(ValueError):
    """One or more keys of a spec are wrong. `problems` holds one paragraph for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(ValueError):
    """The dataset contradicts the spec or itself."""


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, or contradicts the spec."""


class NonFiniteLoss(RuntimeError):  # noqa: N818 - named for what happened, as the reports print it
    """The loss became infinite or NaN; the message holds the loss terms and the image ids."""


class OutOfMemory(RuntimeError):  # noqa: N818
    """The device's memory was exceeded and nothing smaller can be tried."""


class WorkerDied(RuntimeError):  # noqa: N818
    """A process of the training went away without a word; usually the system took it for its memory."""


class RankError(RuntimeError):
    """One of several processes of a training failed in a way that has no name of its own."""
