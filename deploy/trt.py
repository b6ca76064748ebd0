"""The only door to TensorRT: finds `tensorrt` or `tensorrt_rtx`, says how to get one, gathers what it logs.

Their Python interfaces have the same shape, from version 10 to 11, so the rest of `deploy` takes either through
`Library.api`. What only one of them has is asked for by its name here, never by a version.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from model.errors import Kind
from model.progress import Progress

NAMES = ("tensorrt", "tensorrt_rtx")
"""In order of preference. TensorRT-RTX builds without a GPU, for GeForce and RTX GPUs only."""
EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
AHEAD_OF_TIME = ("tensorrt_rtx",)
"""Libraries that build without a GPU, and make kernels when an engine is loaded. Their builder takes no timings, and
has a timing cache in name only."""
PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}


class TensorRTMissing(ImportError):  # noqa: N818 - named for what happened
    """Neither TensorRT can be imported; the message says what to install."""


class EngineVersionError(ValueError):
    """An engine was built by another TensorRT than the one installed; engines do not move between versions."""

    kind: ClassVar[Kind] = "install"


class Library(NamedTuple):
    name: str
    version: str
    api: Any
    """The module."""


def load() -> Library:
    """The first of NAMES that can be imported."""
    reasons = []
    for name in NAMES:
        found = _imported(name)
        if isinstance(found, Library):
            return found
        reasons.append(found)
    raise TensorRTMissing(
        "an engine needs TensorRT, and none can be imported: pip install 'ddetr-automl[trt-rtx]' (GeForce and RTX "
        "GPUs; builds without a GPU) or pip install 'ddetr-automl[trt]' (data-centre GPUs). Tried: "
        + "; ".join(reasons)
        + "."
    )


def load_as_built(engine: Path, name: str, version: str) -> Library:
    """The library that built `engine`. EngineVersionError where another version of it is installed."""
    if name not in NAMES:  # the sidecar is a file like any other, and an import runs code
        raise ValueError(f"an engine must be of {' or '.join(NAMES)}, but `{engine}` says `{name}`; build it again.")
    found = _imported(name)
    if not isinstance(found, Library):
        raise TensorRTMissing(
            f"`{engine}` was built by {name} {version}, which cannot be imported ({found}): pip install "
            f"'ddetr-automl[{EXTRAS[name]}]', or build the engine again with what is installed."
        )
    if found.version != version:
        raise EngineVersionError(
            f"an engine must be run by the version that built it, but `{engine}` was built by {name} {version} and "
            f"{found.version} is installed; build it again with `ddetr gen_trt_engine`, or pip install "
            f"{PACKAGES[name]}=={version}."
        )
    return found


def _imported(name: str) -> Library | str:
    """The library, or why it cannot be imported."""
    try:
        api = import_module(name)
    except (ImportError, OSError) as error:  # OSError: the bindings are there and their shared libraries are not
        return f"{name}: {error}"
    return Library(name, str(api.__version__), api)


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


def joined(messages: Sequence[str]) -> str:
    """What a library said, as sentences."""
    return " ".join(f"{' '.join(message.split()).rstrip('.')}." for message in messages[:10]) or "It gave no reason."


def load_plugins(api: Any, log: Any) -> None:
    """Makes the library's own plugins known to its parser and its runtime, where it has any."""
    if hasattr(api, "init_libnvinfer_plugins"):
        api.init_libnvinfer_plugins(log, "")


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


_TORCH = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8, "UINT8": torch.uint8,
    "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


def torch_type(data_type: Any) -> torch.dtype:
    """PyTorch's name of a type of the library."""
    return _TORCH[data_type.name]


_WORDS = {"fp32": "FLOAT", "float": "FLOAT", "fp16": "HALF", "half": "HALF"}
"""How inspectors write types that have another name elsewhere."""
_TYPE = re.compile(r"\b(fp32|float|fp16|half|bf16|fp8|u?int8|int32|int64|bool)\b", re.IGNORECASE)


def layer_types(api: Any, engine: Any) -> dict[str, int]:
    """Type to the number of layers of a finished engine that give it, by the library's own inspector. Empty where the
    engine was built without such details."""
    return types_in(engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON))


def types_in(information: str) -> dict[str, int]:
    """The same of an inspector's JSON: layers are objects with `Outputs`, whose type stands in `Format/Datatype`
    (version 10) or `Datatype` (11); without details they are bare names."""
    found: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", ()):
        outputs = layer.get("Outputs", ()) if isinstance(layer, dict) else ()
        words = {
            word.lower()
            for output in outputs
            for key, value in output.items()
            if "datatype" in key.lower()
            for word in _TYPE.findall(str(value))
        }
        found.update({_WORDS.get(word, word.upper()) for word in words})
    return dict(sorted(found.items()))
