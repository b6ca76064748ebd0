"""The JSON beside an ONNX file or an engine: what the file cannot say of itself. Knows no network and no TensorRT.

`model.onnx` has `model.onnx.json`, `model.engine` has `model.engine.json`. Each carries the hash of its file, so that a
pair which does not belong together is found, and both files appear under their names only when complete.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jsonschema import Draft202012Validator, ValidationError

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
    """name; layout NCHW; dtype, float32 or uint8; colour order; batch (-1: any), height and width in pixels; `resize`,
    how an image gets this size; `values`, how pixels become input; mean and std of RGB in 0..1, which a graph of uint8
    applies itself."""
    outputs: Mapping[str, str]
    """Name to meaning: logits and boxes, or the detections that the graph selects."""
    thresholds: Mapping[str, Any]
    """num_select, how many pairs of query and class are kept; confidence, the least score of what inference shows."""
    model: Mapping[str, Any]
    """The `model` section of the checkpoint's spec; `num_select` says how many query-class pairs to keep."""
    opset: int
    attention: str
    """Name of the sampling form in the graph (model.network.attention.SAMPLERS)."""
    parity: Mapping[str, Any]
    """Largest absolute differences from PyTorch on the export's own comparison."""
    lineage: Mapping[str, Any]
    """Epoch and metrics of the checkpoint, and what the caller added (run, trial)."""
    precision: str = "FP32"
    """FP32; FP16 or INT8 for a file that `deploy.precision` made from an FP32 one."""
    lowered: Mapping[str, Any] | None = None
    """Of such a file: the hash of the one it was made from, which nodes are not of its precision and why, counts read
    back from the graph, calibration, and how far its outputs moved. None in FP32."""

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
    """What the network computes in, read back from the network that was built."""
    tensors: Mapping[str, int]
    """Type to the number of tensors between the layers, read back likewise: FLOAT, HALF, INT8, INT32, INT64, BOOL."""
    layers: Mapping[str, int]
    """Layers that quantise, that dequantise, and that compute in HALF, read back likewise."""
    inspected: Mapping[str, int] | None
    """Type to the number of layers of the finished engine that give it, by TensorRT's inspector; None without a GPU to
    load the engine on."""
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.shapes["max"][2], self.shapes["max"][3]

    @property
    def batch_range(self) -> tuple[int, int]:
        """The fewest and the most images at once."""
        return self.shapes["min"][0], self.shapes["max"][0]


def path_of(file: Path) -> Path:
    """Where the sidecar of `file` lies."""
    return file.with_name(f"{file.name}.json")


def write(sidecar: OnnxSidecar | EngineSidecar, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(sidecar), indent=2) + "\n", encoding="utf-8")


def read_onnx(onnx: Path) -> OnnxSidecar | None:
    """The sidecar of an ONNX file; None without one, ValueError when it is damaged or not of this file."""
    require_file(onnx, "an ONNX file")
    return _read(OnnxSidecar, onnx, "an ONNX file", "export again") if path_of(onnx).is_file() else None


def require_onnx(onnx: Path) -> OnnxSidecar:
    """The sidecar, for actions that cannot do without classes and preprocessing."""
    found = read_onnx(onnx)
    if found is None:
        raise ValueError(
            f"`{onnx}` must come with `{path_of(onnx).name}`, which names its classes and preprocessing, "
            "but there is no such file; keep the two together, or export again."
        )
    return found


def require_engine(engine: Path) -> EngineSidecar:
    """The sidecar of an engine; ValueError without one, and when it is damaged or not of this file."""
    require_file(engine, "an engine")
    if not path_of(engine).is_file():
        raise ValueError(
            f"`{engine}` must come with `{path_of(engine).name}`, which names the TensorRT that built it, its batches "
            "and classes, but there is no such file; keep the two together, or build it with `ddetr gen_trt_engine`."
        )
    return _read(EngineSidecar, engine, "an engine", "build it again")


def engine_model(engine: Path, described: EngineSidecar) -> OnnxSidecar:
    """What the engine's ONNX said of itself; ValueError where that came without a sidecar."""
    if described.model is None:
        raise ValueError(
            f"an engine must know its classes and preprocessing, but `{engine}` was built from `{described.onnx}`, "
            "which came without a description; export that with `ddetr export` and build again."
        )
    try:
        return _sound(OnnxSidecar, described.model)
    except (TypeError, ValidationError) as error:
        raise ValueError(
            f"`{path_of(engine)}` must hold the complete description of its ONNX file, but does not "
            f"({_where(error)}); build it again."
        ) from None


_Sidecar = TypeVar("_Sidecar", OnnxSidecar, EngineSidecar)

_COUNT = {"type": "integer", "minimum": 1, "maximum": 1 << 31}
_COLOUR = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
_SHAPE = {"type": "array", "items": _COUNT, "minItems": 4, "maxItems": 4}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_SOUND: Mapping[type, Mapping[str, Any]] = {
    OnnxSidecar: {
        "onnx_sha256": {"type": "string"},
        "num_classes": _COUNT,
        "classes": {**_TEXTS, "propertyNames": {"pattern": "^[0-9]{1,9}$"}},
        "input": {
            "required": ["dtype", "batch", "height", "width", "mean", "std"],
            "properties": {
                "dtype": {"enum": ["float32", "uint8"]},
                "batch": {"anyOf": [{"const": -1}, _COUNT]},
                "height": _COUNT,
                "width": _COUNT,
                "mean": _COLOUR,
                "std": _COLOUR,
            },
        },
        "outputs": _TEXTS,
        "thresholds": {"type": "object"},
        "model": {"type": "object"},
        "lineage": {"required": ["epoch", "metrics"], "properties": {"metrics": {"type": "object"}}},
        "precision": {"type": "string"},
        "lowered": {"type": ["object", "null"]},
    },
    EngineSidecar: {
        "engine_sha256": {"type": "string"},
        "library": {"type": "string"},
        "library_version": {"type": "string"},
        "precision": {"type": "string"},
        "shapes": {"required": ["min", "opt", "max"], "properties": dict.fromkeys(("min", "opt", "max"), _SHAPE)},
        "model": {"type": ["object", "null"]},
    },
}
"""What code here relies on, as JSON Schema; the rest is for people."""


def _sound(cls: type[_Sidecar], found: Any) -> _Sidecar:
    """Raises TypeError for keys too many or too few, ValidationError for values that no sidecar holds."""
    sidecar = cls(**found)
    known = _SOUND[cls]
    nested = {name: {"type": "object", **rule} if "properties" in rule else rule for name, rule in known.items()}
    Draft202012Validator({"properties": nested}).validate(found)
    return sidecar


def _where(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    return str(error)


def _read(cls: type[_Sidecar], file: Path, what: str, fix: str) -> _Sidecar:
    """The complete description of `file`, whose hash it must hold."""
    path = path_of(file)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format_version"]
        sidecar = _sound(cls, found) if version == FORMAT_VERSION else None
    except (ValueError, TypeError, KeyError, ValidationError, RecursionError) as error:
        raise ValueError(
            f"`{path}` must be the complete description of {what}, but is not ({_where(error)}); {fix}."
        ) from None
    if sidecar is None:
        raise ValueError(
            f"descriptions of format {FORMAT_VERSION} can be read, but `{path}` has {version}; {fix} with this version."
        )
    stated = sidecar.onnx_sha256 if isinstance(sidecar, OnnxSidecar) else sidecar.engine_sha256
    if sha256(file) != stated:
        raise ValueError(
            f"`{path}` must describe `{file.name}`, but was written for another file of that name "
            f"(their sha256 differ); {fix}, or bring the right pair."
        )
    return sidecar


def require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValueError(f"{what} must exist, but there is no file `{path}`; check the path.")
