"""ONNX -> TensorRT engine and its sidecar. Knows the builder's options; knows no checkpoint and no data set.

An engine's precision is that of its graph. Nothing is written unless the whole build succeeds.
"""

import dataclasses
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploy import gate, network, sidecar, timing, trt
from deploy.runtime import EngineError, EnginePredictor, gpu
from deploy.spec import PRECISIONS, GenTrtEngineSpec, TensorRTSpec
from model.checkpoint import sha256
from model.progress import progress
from model.whole import in_place


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    onnx: Path
    """What it was built from."""
    engine: Path
    sidecar: Path
    library: str
    version: str
    precision: str
    contents: network.Contents
    """Of the network that was built, as the library has it."""
    bytes: int
    seconds: float
    """Of parsing and building."""
    compared: str
    """Whether the engine's detections were compared with its ONNX file's, and if not, why."""
    timings: str | None
    """What became of the timing cache; None without one."""
    runs_here: bool
    """Whether this machine can load the engine."""

    def line(self) -> str:
        layers = self.contents.layers
        held = {
            "FP32": "",
            "FP16": f" ({layers['half']} layers compute in it)",
            "INT8": f" ({layers['quantize']} Q and {layers['dequantize']} DQ nodes, "
            f"{self.contents.tensors.get('INT8', 0)} INT8 tensors)",
        }[self.precision]
        return (
            f"{self.engine}: {self.precision}{held}, {self.bytes / 1e6:.1f} MB, {self.library} {self.version}, built "
            f"in {self.seconds:.1f} s; {self.compared}."
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
    timing_cache: Path | None = None,
    gpu_id: int = 0,
    verbose: bool = False,
    given: Mapping[str, Any] | None = None,
    reference: Path | None = None,
) -> EngineReport:
    """Builds for batches of `min_batch` to `max_batch`, tuned for `opt_batch`; a graph of fixed batch keeps its own,
    which `batch_size` must name, or be -1. `workspace_mb` is the builder's scratch memory, as given, in MB of 2^20
    bytes. precision: what the graph must compute in. gpu_id: builds there, where there is a GPU. given: the user's
    nested spec, which the graph must not contradict. reference: the ONNX file that says what is to be detected, where a
    GPU can run the engine; `onnx` itself when None. An existing engine is replaced.
    """
    _check_build(precision, min_batch, opt_batch, max_batch)
    described = sidecar.read_onnx(onnx)
    library = trt.load()
    device = gpu(gpu_id, "to build") if torch.cuda.is_available() else None
    log = trt.message_log(library.api, verbose=verbose)
    start = time.perf_counter()
    with nullcontext() if device is None else torch.cuda.device(device):
        builder = _builder(library, log)
        net = network.create(library.api, builder)
        parser = network.parse(library.api, net, log, onnx)
        network.check_described(net, described, given or {}, onnx)
        shapes = network.shapes(net, (min_batch, opt_batch, max_batch), batch_size, onnx)
        contents = network.contents(net)
        network.check_precision(contents, precision, onnx)
        config = _config(library.api, builder, net.get_input(0).name, shapes, workspace_mb, details=device is not None)
        timings = None if timing_cache is None else timing.attach(config, library, log, timing_cache)
        plan = _build(library, builder, net, config, log, onnx, workspace_mb)
        if timings is not None and timings.write and timing_cache is not None:
            timing.keep(config, library, timing_cache)
    del parser
    seconds = time.perf_counter() - start
    with in_place(engine, sidecar.path_of(engine)) as (partial, described_by):
        partial.write_bytes(plan)
        content = sidecar.EngineSidecar(
            format_version=sidecar.FORMAT_VERSION,
            engine_sha256=sha256(partial),
            onnx=onnx.name,
            onnx_sha256=sha256(onnx),
            library=library.name,
            library_version=library.version,
            precision=contents.precision,
            tensors=contents.tensors,
            layers=contents.layers,
            inspected=None,
            tf32=False,
            shapes=dict(zip(("min", "opt", "max"), shapes, strict=True)),
            workspace_mb=workspace_mb,
            target=_target(library, device),
            compared="",
            model=None if described is None else dataclasses.asdict(described),
        )
        content, runs_here = _tried(plan, content, library, device, reference or onnx)
        sidecar.write(content, described_by)
    return EngineReport(
        onnx=onnx,
        engine=engine,
        sidecar=sidecar.path_of(engine),
        library=library.name,
        version=library.version,
        precision=content.precision,
        contents=contents,
        bytes=engine.stat().st_size,
        seconds=seconds,
        compared=content.compared,
        timings=None if timings is None else timings.said,
        runs_here=runs_here,
    )


def options(spec: GenTrtEngineSpec) -> dict[str, Any]:
    """What a spec asks of an engine of any precision, as build_engine takes it."""
    wanted = spec.tensorrt
    return {
        "min_batch": wanted.min_batch_size,
        "opt_batch": wanted.opt_batch_size,
        "max_batch": wanted.max_batch_size,
        "workspace_mb": wanted.workspace_size,
        "timing_cache": Path(spec.timing_cache) if spec.timing_cache else None,
        "gpu_id": spec.gpu_id,
        "verbose": spec.verbose,
    }


def check_onnx(onnx: Path, *, batch_size: int, given: Mapping[str, Any]) -> None:
    """Raises ValueError for what build_engine would refuse in `onnx`, before it is converted for minutes."""
    library = trt.load()
    log = trt.message_log(library.api)
    builder = _builder(library, log)
    net = network.create(library.api, builder)
    parser = network.parse(library.api, net, log, onnx)
    network.check_described(net, sidecar.read_onnx(onnx), given, onnx)
    network.shapes(net, (1, 1, 1), batch_size, onnx)
    del parser


def check_options(wanted: TensorRTSpec) -> None:
    """Raises ValueError for what no build can do, before there is anything to build from."""
    _check_build(wanted.data_type, wanted.min_batch_size, wanted.opt_batch_size, wanted.max_batch_size)


def _check_build(precision: str, low: int, usual: int, high: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"`gen_trt_engine.tensorrt.data_type` must be one of {', '.join(PRECISIONS)}, but is `{precision}`; set it "
            "to FP32."
        )
    if not 1 <= low <= usual <= high:
        raise ValueError(
            "`1 <= min_batch_size <= opt_batch_size <= max_batch_size` must hold in `gen_trt_engine.tensorrt`, but "
            f"they are {low}, {usual} and {high}; put them in order."
        )


def _builder(library: trt.Library, log: Any) -> Any:
    """A builder, with the library's plugins known to its parser."""
    trt.load_plugins(library.api, log)
    try:
        return library.api.Builder(log)
    except TypeError:  # what the bindings make of a builder that could not be had
        raise EngineError(
            f"{library.name} {library.version} must be able to build here, but cannot: {trt.joined(log.errors)} It "
            "needs a GPU and its driver; only tensorrt_rtx builds without one: pip install 'ddetr-automl[trt-rtx]'."
        ) from None


def _config(
    api: Any,
    builder: Any,
    name: str,
    shapes: tuple[network.Shape, network.Shape, network.Shape],
    workspace_mb: int,
    *,
    details: bool,
) -> Any:
    """details: keeps the types of all layers in the engine, for its inspector."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    config.clear_flag(api.BuilderFlag.TF32)  # on by default, and ten bits of mantissa are not FP32
    if details:
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return config


def _build(library: trt.Library, builder: Any, net: Any, config: Any, log: Any, onnx: Path, workspace_mb: int) -> bytes:
    with progress("building the engine") as counting:
        config.progress_monitor = monitor = trt.monitor(library.api, counting)
        plan = builder.build_serialized_network(net, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ValueError(
            f"{library.name} {library.version} must be able to build `{onnx}`, but could not with "
            f"workspace_size={workspace_mb} MB: {trt.joined(log.errors)} Raise the workspace if it is named above."
        )
    return bytes(plan)


def _target(library: trt.Library, device: torch.device | None) -> str:
    if device is not None:
        return str(torch.cuda.get_device_name(device))
    if library.name in trt.AHEAD_OF_TIME:
        return "built ahead of time, without a GPU"
    return "the GPU that it was built on, which PyTorch does not see"


def _tried(
    plan: bytes, content: sidecar.EngineSidecar, library: trt.Library, device: torch.device | None, reference: Path
) -> tuple[sidecar.EngineSidecar, bool]:
    """The sidecar with what running the engine showed, and whether it could be. Raises ParityError where it does not
    detect what `reference` does."""
    if device is None:
        return dataclasses.replace(content, compared=f"not compared: no GPU{_hazard(content)}"), False
    try:
        engine = EnginePredictor(plan, content, library, device, content.onnx)
    except EngineError as error:  # it may be meant for another GPU
        return dataclasses.replace(content, compared=f"not compared: {error}{_hazard(content)}"), False
    # Recorded and not judged: a fused layer tells the types at its ends alone. The network that was parsed decides.
    found = engine.layers() or None
    return dataclasses.replace(content, inspected=found, compared=_comparison(engine, content, reference)), True


def _comparison(engine: EnginePredictor, content: sidecar.EngineSidecar, reference: Path) -> str:
    if content.model is None:
        return "not compared: the ONNX file came without a description"
    return gate.compare(engine, reference, sidecar.OnnxSidecar(**content.model), content.precision)


def _hazard(content: sidecar.EngineSidecar) -> str:
    """NVIDIA/TensorRT issue 4813: silently wrong results, no version known to be free of it again."""
    if content.model is None or content.model["attention"] != "gridsample":
        return ""
    return "; some TensorRT versions compute GridSample attention wrongly, so check its detections before use"
