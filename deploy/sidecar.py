"""The JSON beside an ONNX file or an engine: what the file cannot say of itself. Knows no network and no TensorRT.

`model.onnx` has `model.onnx.json`, `model.engine` has `model.engine.json`. Each carries the hash of its file, so that a
pair which does not belong together is found, and both files appear under their names only when complete.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, sha256
from model.spec import ExperimentSpec

FORMAT_VERSION = 1

RESIZE = "bilinear, averaging when it shrinks, to exactly width x height; the aspect ratio is not kept"


@dataclass(frozen=True, kw_only=True)
class OnnxSidecar:
    """Everything that running the graph on an image file needs."""

    format_version: int
    onnx_sha256: str
    checkpoint: str
    """File name of the checkpoint that the graph was traced from."""
    checkpoint_sha256: str
    num_classes: int
    classes: Mapping[str, str]
    """Category id, which is the class index, to name."""
    input: Mapping[str, Any]
    """name; layout NCHW; dtype; colour order; batch (-1: any), height and width in pixels; `resize`, how an image gets
    this size; mean and std of RGB in 0..1."""
    outputs: Mapping[str, str]
    """Name to meaning."""
    model: Mapping[str, Any]
    """The `model` section of the checkpoint's spec; `num_select` says how many query-class pairs to keep."""
    opset: int
    attention: str
    """Name of the sampling form in the graph (model.network.attention.SAMPLERS)."""
    parity: Mapping[str, Any]
    """Largest absolute differences from PyTorch on the export's own comparison."""
    lineage: Mapping[str, Any]
    """Epoch and metrics of the checkpoint, and what the caller added (run, trial)."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.input["height"], self.input["width"]

    def as_checkpoint(self, onnx: Path) -> Checkpoint:
        """What the file says of itself in the form in which a checkpoint says it, without weights."""
        given = {
            "model": self.model,
            "dataset": {
                "num_classes": self.num_classes,
                "augmentation": {"input_mean": self.input["mean"], "input_std": self.input["std"]},
            },
        }
        return Checkpoint(
            path=onnx,
            sha256=self.onnx_sha256,
            spec=ExperimentSpec.from_dict(given),
            classes={int(key): name for key, name in self.classes.items()},
            num_classes=self.num_classes,
            epoch=self.lineage["epoch"],
            metrics=self.lineage["metrics"],
            state={},
        )


@dataclass(frozen=True, kw_only=True)
class EngineSidecar:
    """What an engine was built from, by what, for what, and what was checked."""

    format_version: int
    engine_sha256: str
    onnx: str
    """File name of the ONNX."""
    onnx_sha256: str
    library: str
    """`tensorrt` or `tensorrt_rtx`."""
    library_version: str
    precision: str
    tensor_types: tuple[str, ...]
    """Types of the tensors between the layers, read back from the network that was built."""
    tf32: bool
    shapes: Mapping[str, tuple[int, ...]]
    """min, opt and max shape (B, 3, H, W) of the input."""
    workspace_mb: int
    target: str
    """The GPU it was built on, or that there was none."""
    compared: str
    """Whether the engine's numbers were compared with PyTorch's, and if not, why."""
    model: Mapping[str, Any] | None
    """The ONNX sidecar, so that the engine needs no other file; None for an ONNX that came without one."""


def path_of(file: Path) -> Path:
    """Where the sidecar of `file` lies."""
    return file.with_name(f"{file.name}.json")


def write(sidecar: OnnxSidecar | EngineSidecar, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(sidecar), indent=2) + "\n", encoding="utf-8")


def read_onnx(onnx: Path) -> OnnxSidecar | None:
    """The sidecar of an ONNX file; None without one, ValueError when it is damaged or not of this file."""
    require_file(onnx, "an ONNX file")
    path = path_of(onnx)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format_version"]
        sidecar = OnnxSidecar(**found) if version == FORMAT_VERSION else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"`{path}` must be the complete description of an ONNX file, but is not ({error}); export again."
        ) from None
    if sidecar is None:
        raise ValueError(
            f"ONNX descriptions of format {FORMAT_VERSION} can be read, but `{path}` has {version}; "
            "export again with this version."
        )
    if sha256(onnx) != sidecar.onnx_sha256:
        raise ValueError(
            f"`{path}` must describe `{onnx.name}`, but was written for another file of that name "
            "(their sha256 differ); export again, or bring the right pair."
        )
    return sidecar


def require_onnx(onnx: Path) -> OnnxSidecar:
    """The sidecar, for actions that cannot do without classes and preprocessing."""
    found = read_onnx(onnx)
    if found is None:
        raise ValueError(
            f"`{onnx}` must come with `{path_of(onnx).name}`, which names its classes and preprocessing, "
            "but there is no such file; keep the two together, or export again."
        )
    return found


def require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValueError(f"{what} must exist, but there is no file `{path}`; check the path.")


@contextmanager
def in_place(*files: Path) -> Iterator[tuple[Path, ...]]:
    """Paths to write to, beside `files`. They get their names when the block ends, and vanish when it raises."""
    partials = tuple(file.with_name(f".{file.name}.partial") for file in files)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partials
        for partial, file in zip(partials, files, strict=True):
            os.replace(partial, file)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
