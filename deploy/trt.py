"""The only door to TensorRT: finds `tensorrt` or `tensorrt_rtx`, says how to get one, gathers what it logs.

Their Python interfaces have the same shape, so the rest of `deploy` takes either through `Library.api`.
"""

from importlib import import_module
from typing import Any, NamedTuple

from model.progress import Progress

NAMES = ("tensorrt", "tensorrt_rtx")
"""In order of preference. TensorRT-RTX builds without a GPU, for GeForce and RTX GPUs only."""


class TensorRTMissing(ImportError):  # noqa: N818 - named for what happened
    """Neither TensorRT can be imported; the message says what to install."""


class Library(NamedTuple):
    name: str
    version: str
    api: Any
    """The module."""


def load() -> Library:
    """The first of NAMES that can be imported."""
    reasons = []
    for name in NAMES:
        try:
            api = import_module(name)
        except (ImportError, OSError) as error:  # OSError: the bindings are there and their shared libraries are not
            reasons.append(f"{name}: {error}")
            continue
        return Library(name, str(api.__version__), api)
    raise TensorRTMissing(
        "an engine needs TensorRT, and none can be imported: pip install 'ddetr-automl[trt-rtx]' (GeForce and RTX "
        "GPUs; builds without a GPU) or pip install 'ddetr-automl[trt]' (data-centre GPUs). Tried: "
        + "; ".join(reasons)
        + "."
    )


def message_log(api: Any, *, verbose: bool = False) -> Any:
    """A logger for the library that keeps errors and warnings in `.errors` and `.warnings`; `verbose` prints all."""

    class MessageLog(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= api.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif severity == api.ILogger.Severity.WARNING:
                self.warnings.append(message)
            if verbose:
                print(f"[{severity.name}] {message}")

    return MessageLog()


def monitor(api: Any, counting: Progress) -> Any:
    """Names the builder's phases to `counting`. An interrupt ends the build and is kept in `.interrupted`: no exception
    may pass through the library."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            try:
                counting.advance(0, name[:1].lower() + name[1:])
            except KeyboardInterrupt:
                self.interrupted = True

        def step_complete(self, name: str, step: int) -> bool:
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()
