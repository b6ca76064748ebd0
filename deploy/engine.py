"""ONNX -> TensorRT engine and its sidecar. Knows the builder's options; knows no checkpoint and runs no engine.

FP32 only in this version. Nothing is written unless the whole build succeeds.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy import sidecar, trt
from deploy.spec import GenTrtEngineSpec, TensorRTSpec
from model.checkpoint import sha256
from model.progress import progress

PRECISIONS = ("FP32",)
_WHOLE_TYPES = {"FLOAT", "INT32", "INT64", "BOOL"}
"""What an FP32 network may hold: full floats, and the integers of shapes and indices."""

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    engine: Path
    sidecar: Path
    library: str
    version: str
    precision: str
    bytes: int
    seconds: float
    """Of parsing and building."""
    compared: str
    """Whether the engine's numbers were compared with PyTorch's, and if not, why."""

    def line(self) -> str:
        return (
            f"{self.engine}: {self.precision}, {self.bytes / 1e6:.1f} MB, {self.library} {self.version}, built in "
            f"{self.seconds:.1f} s; {self.compared}."
        )


def build_engine(
    onnx: Path,
    engine: Path,
    *,
    min_batch: int = 1,
    opt_batch: int = 1,
    max_batch: int = 1,
    workspace_mb: int = 1024,
    precision: str = "FP32",
    batch_size: int = -1,
    verbose: bool = False,
) -> EngineReport:
    """Builds for batches of `min_batch` to `max_batch`, tuned for `opt_batch`; a graph of fixed batch keeps its own,
    which `batch_size` must name, or be -1. `workspace_mb` is the builder's scratch memory, as given, in MB of 2^20
    bytes. An existing engine is replaced.
    """
    _check_build(precision, min_batch, opt_batch, max_batch)
    described = sidecar.read_onnx(onnx)
    library = trt.load()
    log = trt.message_log(library.api, verbose=verbose)
    start = time.perf_counter()
    builder = library.api.Builder(log)
    network = _parse(library.api, builder, log, onnx)
    shapes = _shapes(network, (min_batch, opt_batch, max_batch), batch_size, onnx)
    types = _tensor_types(network, precision, onnx)
    config = _config(library.api, builder, network.get_input(0).name, shapes, workspace_mb)
    with progress("building the engine") as counting:
        config.progress_monitor = monitor = trt.monitor(library.api, counting)
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ValueError(
            f"{library.name} {library.version} must be able to build `{onnx}`, but could not with "
            f"workspace_size={workspace_mb} MB: {_joined(log.errors)} Raise the workspace if it is named above."
        )
    seconds = time.perf_counter() - start
    compared = _compared(described)
    with sidecar.in_place(engine, sidecar.path_of(engine)) as (partial, described_by):
        partial.write_bytes(plan)
        content = sidecar.EngineSidecar(
            format_version=sidecar.FORMAT_VERSION,
            engine_sha256=sha256(partial),
            onnx=onnx.name,
            onnx_sha256=sha256(onnx),
            library=library.name,
            library_version=library.version,
            precision=precision,
            tensor_types=types,
            tf32=False,
            shapes=dict(zip(("min", "opt", "max"), shapes, strict=True)),
            workspace_mb=workspace_mb,
            target=torch.cuda.get_device_name() if torch.cuda.is_available() else "built ahead of time, without a GPU",
            compared=compared,
            model=None if described is None else dataclasses.asdict(described),
        )
        sidecar.write(content, described_by)
    return EngineReport(
        engine=engine,
        sidecar=sidecar.path_of(engine),
        library=library.name,
        version=library.version,
        precision=precision,
        bytes=engine.stat().st_size,
        seconds=seconds,
        compared=compared,
    )


def gen_trt_engine_action(spec: GenTrtEngineSpec) -> Path:
    """The `gen_trt_engine` action. Returns the engine's path."""
    for name in ("onnx_file", "trt_engine"):
        if getattr(spec, name) is None:
            raise ValueError(f"`gen_trt_engine.{name}` must name a file, but is unset; set it.")
    wanted = spec.tensorrt
    check_options(wanted)
    assert spec.onnx_file is not None
    assert spec.trt_engine is not None
    report = build_engine(
        Path(spec.onnx_file),
        Path(spec.trt_engine),
        min_batch=wanted.min_batch_size,
        opt_batch=wanted.opt_batch_size,
        max_batch=wanted.max_batch_size,
        workspace_mb=wanted.workspace_size,
        precision=wanted.data_type,
        batch_size=spec.batch_size,
        verbose=spec.verbose,
    )
    if spec.timing_cache is not None:
        print("gen_trt_engine.timing_cache is not used by this version: the build took its own timings.")
    print(report.line())
    return report.engine


def check_options(wanted: TensorRTSpec) -> None:
    """Raises ValueError for what no build of this version can do, before there is anything to build from."""
    _check_build(wanted.data_type, wanted.min_batch_size, wanted.opt_batch_size, wanted.max_batch_size)
    if wanted.layers_precision:
        raise ValueError(
            f"`gen_trt_engine.tensorrt.layers_precision` cannot be honoured by this version, which builds FP32 only, "
            f"but is {list(wanted.layers_precision)}; leave it empty."
        )


def _check_build(precision: str, low: int, usual: int, high: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"`gen_trt_engine.tensorrt.data_type` must be one of {', '.join(PRECISIONS)} in this version, but is "
            f"`{precision}`; set it to FP32."
        )
    if not 1 <= low <= usual <= high:
        raise ValueError(
            "`1 <= min_batch_size <= opt_batch_size <= max_batch_size` must hold in `gen_trt_engine.tensorrt`, but "
            f"they are {low}, {usual} and {high}; put them in order."
        )


def _parse(api: Any, builder: Any, log: Any, onnx: Path) -> Any:
    """The network of `onnx`; every complaint of the parser in one ValueError."""
    # Types come from the graph. Newer versions know nothing else, and deprecate the flag that older ones need for it.
    typed = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = api.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(onnx))
    problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if not parsed or problems:
        raise ValueError(
            f"TensorRT must be able to parse the ONNX file, but `{onnx}` has {len(problems)} problems: "
            f"{_joined(problems)} Export it again."
        )
    # An empty or cut-off file can parse "well" into a network of nothing.
    if network.num_inputs != 1 or network.num_outputs == 0:
        raise ValueError(
            f"an ONNX detector must have one input and outputs, but `{onnx}` has {network.num_inputs} and "
            f"{network.num_outputs}; export it again."
        )
    return network


def _shapes(network: Any, batches: tuple[int, int, int], batch_size: int, onnx: Path) -> tuple[Shape, Shape, Shape]:
    """The input's min, opt and max shape."""
    shape = tuple(network.get_input(0).shape)
    if len(shape) != 4 or min(shape[1:]) < 1:
        raise ValueError(
            f"the input of an ONNX detector must be [B, 3, H, W] with only B open, but `{onnx}` has "
            f"{list(shape)} (-1: open); export it again."
        )
    fixed, channels, height, width = shape
    if batch_size != -1 and fixed != batch_size:
        raise ValueError(
            f"`gen_trt_engine.batch_size` must be the batch size of the ONNX file, or -1, but is {batch_size} and "
            f"`{onnx}` has {'an open one' if fixed == -1 else fixed}; change one of them."
        )
    low, usual, high = batches if fixed == -1 else (fixed,) * 3
    return (low, channels, height, width), (usual, channels, height, width), (high, channels, height, width)


def _tensor_types(network: Any, precision: str, onnx: Path) -> tuple[str, ...]:
    """The types of all tensors in the network, which must be those of `precision`."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = {layer.get_output(place).dtype.name for layer in layers for place in range(layer.num_outputs)}
    if not found <= _WHOLE_TYPES:
        raise ValueError(
            f"an {precision} engine must come from a graph of that precision, but `{onnx}` holds "
            f"{', '.join(sorted(found - _WHOLE_TYPES))}; export it in FP32."
        )
    return tuple(sorted(found))


def _config(api: Any, builder: Any, name: str, shapes: tuple[Shape, Shape, Shape], workspace_mb: int) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.clear_flag(api.BuilderFlag.TF32)  # on by default, and ten bits of mantissa are not FP32
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return config


def _compared(described: sidecar.OnnxSidecar | None) -> str:
    """This version runs no engines, so the truth is always that nothing was compared."""
    said = "not compared: " + ("this version does not run engines" if torch.cuda.is_available() else "no GPU")
    if described is not None and described.attention == "gridsample":
        # NVIDIA/TensorRT issue 4813: silently wrong results, no version known to be free of it again.
        said += "; some TensorRT versions compute GridSample attention wrongly, so check its detections before use"
    return said


def _joined(messages: list[str]) -> str:
    return " ".join(f"{message.strip().rstrip('.')}." for message in messages[:10]) or "it gave no reason."
