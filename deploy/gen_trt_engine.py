"""The `gen_trt_engine` action: a graph of the precision asked for, then its engine. Knows what a user may ask for; how
it is done, `deploy.precision` and `deploy.engine` know."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy import gate, sidecar, timing, trt
from deploy.calibration import from_folders
from deploy.engine import EngineReport, build_engine, check_onnx, check_options, options
from deploy.precision import lower
from deploy.spec import GenTrtEngineSpec, TensorRTSpec
from model.spec import ENGINES
from model.status import StatusLog


def gen_trt_engine_action(spec: GenTrtEngineSpec, given: Mapping[str, Any], out: Path | None = None) -> EngineReport:
    """The `gen_trt_engine` action. `given`: the user's nested spec; `out`: gets status.json."""
    status = StatusLog(out or Path(), enabled=out is not None)
    with status.action("gen_trt_engine"):
        onnx, engine = _named_files(spec)
        check_options(spec.tensorrt)
        if spec.timing_cache:
            timing.check(Path(spec.timing_cache))
        trt.load()
        wanted = spec.tensorrt
        typed = lowered_onnx(onnx, engine, wanted, lambda: check_onnx(onnx, batch_size=spec.batch_size, given=given))
        try:
            report = build_engine(
                typed,
                engine,
                **options(spec),
                precision=wanted.data_type,
                batch_size=spec.batch_size,
                given=given,
            )
        except BaseException:
            if typed != onnx:  # of use to nobody without its engine
                for file in (typed, sidecar.path_of(typed)):
                    file.unlink(missing_ok=True)
            raise
        print(*filter(None, (report.timings, report.line())), sep="\n")
    return report


def lowered_onnx(onnx: Path, engine: Path, wanted: TensorRTSpec, check: Callable[[], None]) -> Path:
    """The file to build from: `onnx`, or where it is in FP32 and less is wanted, one made from it beside the engine.
    check: raises for what no engine can be built from; called before a conversion."""
    described = sidecar.read_onnx(onnx)
    precision = wanted.data_type
    if precision == "FP32" or (described is not None and described.precision != "FP32"):
        if wanted.layers_precision:
            raise ValueError(
                "`gen_trt_engine.tensorrt.layers_precision` can only be honoured where an FP32 file is converted to "
                f"FP16 or INT8, but is {list(wanted.layers_precision)}; leave it empty."
            )
        return onnx
    if described is None:
        return onnx  # of unknown origin; the network that is parsed will say what it computes in
    asked = wanted.calibration
    if asked.cal_image_dir:
        images = from_folders(
            asked.cal_image_dir, batch_size=asked.cal_batch_size, batches=asked.cal_batches, described=described
        )
    elif precision == "INT8":
        raise ValueError(
            "`gen_trt_engine.tensorrt.calibration.cal_image_dir` must name folders of images to measure INT8 ranges "
            "on, but is unset; set it to a few hundred of what the detector will see."
        )
    else:
        images = gate.photographs(described)
    stem = engine.stem.removesuffix(f".{precision.lower()}")
    target = engine.with_name(f"{stem}.{precision.lower()}.onnx")
    if target == onnx:
        raise ValueError(
            f"`gen_trt_engine.trt_engine` must not be named so that its {precision} graph would replace "
            f"`gen_trt_engine.onnx_file` `{onnx}`, which is in FP32; name another engine."
        )
    check()
    made = lower(
        onnx,
        target,
        "FP16" if precision == "FP16" else "INT8",
        images=images,
        layers_precision=wanted.layers_precision,
        method=asked.method,
        cache=None if precision == "FP16" or asked.cal_cache_file is None else Path(asked.cal_cache_file),
    )
    print(
        f"{target}: {precision}, made of {onnx.name} with {images.count} images in {made.seconds:.1f} s; "
        f"{len(made.kept)} of {made.nodes} nodes are left in higher precision."
    )
    return target


def _named_files(spec: GenTrtEngineSpec) -> tuple[Path, Path]:
    """The ONNX file and the engine."""
    for name in ("onnx_file", "trt_engine"):
        if getattr(spec, name) is None:
            raise ValueError(f"`gen_trt_engine.{name}` must name a file, but is unset; set it.")
    onnx, engine = Path(str(spec.onnx_file)), Path(str(spec.trt_engine))
    if onnx.suffix != ".onnx":
        raise ValueError(
            f"`gen_trt_engine.onnx_file` must end in .onnx, but is `{onnx}`; export it with `ddetr export`."
        )
    if engine.suffix not in ENGINES:
        raise ValueError(f"`gen_trt_engine.trt_engine` must end in one of {', '.join(ENGINES)}, but is `{engine}`.")
    return onnx, engine
