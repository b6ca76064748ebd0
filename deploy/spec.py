"""The parts of a spec that only deployment reads: `export`, `gen_trt_engine`, `quantize`, `deploy`. Knows no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.fields import field

PRECISIONS = ("FP32", "FP16", "INT8")


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    results_dir: str | None = field(None, title="Results folder", doc="Where the export's logs go.")
    gpu_id: int = field(0, title="GPU", doc="The GPU that traces the network.")
    checkpoint: str | None = field(None, title="Checkpoint", doc="The .pth file to export.", mandatory=True)
    onnx_file: str | None = field(None, title="ONNX file", doc="The file to write.", mandatory=True)
    on_cpu: bool = field(False, title="Trace on the CPU", doc="Trace without a GPU.")
    input_channel: int = field(
        3, title="Input channels", doc="Colour channels of the input.", low=1, enum=(1, 3), kind="ordered_int"
    )
    input_width: int = field(
        640,
        title="Input width",
        doc="Width of the network's input, pixels.",
        low=32,
        note="TAO's template says 960, its documentation 640",
    )
    input_height: int = field(
        640,
        title="Input height",
        doc="Height of the network's input, pixels.",
        low=32,
        note="TAO's template says 544, its documentation 640",
    )
    opset_version: int = field(17, title="Opset", doc="ONNX operator set.", low=1)
    batch_size: int = field(-1, title="Batch size", doc="Fixed batch size of the graph; -1 leaves it dynamic.", low=-1)
    verbose: bool = field(False, title="Verbose", doc="Print the exporter's own messages.")
    format: str = field("onnx", title="Format", doc="File format.", enum=("onnx", "xdl"))
    serialize_nvdsinfer: bool = field(
        False, title="DeepStream files", doc="Also write labels.txt and the DeepStream configuration."
    )
    overwrite: bool = field(False, title="Overwrite", doc="Replace an existing ONNX file.", note="ours")
    attention: str = field(
        "auto",
        title="Attention form",
        doc="How the graph samples features; auto chooses by what the file is for.",
        enum=("auto", "gridsample", "gather", "plugin"),
        note="ours",
    )
    postprocess: bool = field(
        False,
        title="Post-processing",
        doc="Let the graph itself pick the best detections and give scores, labels and boxes in pixels.",
        note="ours",
    )
    input_dtype: str = field(
        "float32",
        title="Input type",
        doc="float32: normalised pixels; uint8: pixels as they are, normalised inside the graph.",
        enum=("float32", "uint8"),
        note="ours",
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    cal_image_dir: tuple[str, ...] = field(
        (), title="Calibration images", doc="Folders of images.", search=False, mandatory=True
    )
    cal_cache_file: str | None = field(
        None, title="Calibration cache", doc="File with measured ranges.", mandatory=True
    )
    cal_batch_size: int = field(
        1, title="Calibration batch size", doc="Images in one calibration batch.", low=1, popular=True
    )
    cal_batches: int = field(1, title="Calibration batches", doc="Batches to calibrate with.", low=1, popular=True)
    method: str = field(
        "minmax",
        title="Calibration method",
        doc="How the range of a tensor follows from its values.",
        enum=("minmax", "entropy", "percentile"),
        note="ours",
    )


@dataclass(frozen=True, kw_only=True)
class TensorRTSpec:
    data_type: str = field("FP32", title="Precision", doc="Precision of the engine.", enum=PRECISIONS)
    workspace_size: int = field(1024, title="Workspace", doc="Scratch memory of the builder, MB.", low=0)
    min_batch_size: int = field(1, title="Smallest batch", doc="Lower end of the batch profile.", low=1, popular=True)
    opt_batch_size: int = field(
        1, title="Usual batch", doc="Batch size that the engine is tuned for.", low=1, popular=True
    )
    max_batch_size: int = field(1, title="Largest batch", doc="Upper end of the batch profile.", low=1, popular=True)
    layers_precision: tuple[str, ...] = field(
        (), title="Layer precisions", doc="`layer:dtype` exceptions.", search=False
    )
    calibration: CalibrationSpec = field(
        CalibrationSpec,
        title="INT8 calibration",
        doc="Images that the INT8 ranges are measured on.",
        popular=("cal_batch_size", "cal_batches"),
    )


@dataclass(frozen=True, kw_only=True)
class GenTrtEngineSpec:
    results_dir: str | None = field(None, title="Results folder", doc="Where the build's logs go.")
    gpu_id: int = field(0, title="GPU", doc="The GPU that builds the engine.", low=0, popular=True)
    onnx_file: str | None = field(None, title="ONNX file", doc="The file to build from.", mandatory=True)
    trt_engine: str | None = field(None, title="Engine file", doc="The file to write.", mandatory=True)
    timing_cache: str | None = field(None, title="Timing cache", doc="Kernel timings kept between builds.")
    batch_size: int = field(
        -1, title="Batch size", doc="Batch size of a static ONNX; -1 for a dynamic one.", low=-1, popular=True
    )
    verbose: bool = field(False, title="Verbose", doc="Print the builder's own messages.")
    tensorrt: TensorRTSpec = field(
        TensorRTSpec,
        title="TensorRT",
        doc="Precision, memory and batch profile of the engine.",
        popular=("min_batch_size", "max_batch_size", "calibration", "opt_batch_size"),
    )


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    backend: str = field(
        "torchao", title="Backend", doc="Library that quantises.", enum=("modelopt.pytorch", "torchao", "modelopt.onnx")
    )
    mode: str = field("weight_only_ptq", title="Mode", doc="What is quantised.", enum=("static_ptq", "weight_only_ptq"))
    algorithm: str = field(
        "minmax",
        title="Algorithm",
        doc="How ranges are found.",
        enum=("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"),
    )
    layers: tuple[Any, ...] = field((), title="Layers", doc="Patterns of modules with their types.", search=False)
    skip_names: tuple[str, ...] = field((), title="Skipped", doc="Patterns of modules left alone.", search=False)
    model_path: str | None = field(None, title="Model", doc="The file to quantise.")
    results_dir: str | None = field(None, title="Results folder", doc="Where the quantised file goes.")
    backend_kwargs: Mapping[str, Any] = field(dict, title="Backend options", doc="Passed to the backend.", search=False)
    device: str = field(
        "cuda", title="Device", doc="Where to quantise.", extra={"pattern": "^(cuda|cpu|trt|cuda:[0-9]+)$"}
    )


@dataclass(frozen=True, kw_only=True)
class MaxDropSpec:
    """How much mAP50 each precision may lose against PyTorch on the same images."""

    fp32: float = field(0.001, title="FP32", doc="Largest loss of mAP50 in FP32.", low=0, high=1, note="ours")
    fp16: float = field(0.005, title="FP16", doc="Largest loss of mAP50 in FP16.", low=0, high=1, note="ours")
    int8: float = field(0.02, title="INT8", doc="Largest loss of mAP50 in INT8.", low=0, high=1, note="ours")

    def of(self, precision: str) -> float:
        return {"FP32": self.fp32, "FP16": self.fp16, "INT8": self.int8}[precision]


@dataclass(frozen=True, kw_only=True)
class DeploySpec:
    """What becomes of a finished run's winner."""

    precisions: tuple[str, ...] = field(
        (),
        title="Precisions",
        doc="Which of FP32, FP16 and INT8 are handed over; empty: FP32 and gen_trt_engine.tensorrt.data_type.",
        search=False,
        note="ours",
    )
    max_drop: MaxDropSpec = field(
        MaxDropSpec, title="Tolerance", doc="Loss of mAP50 that ends a handoff in an error.", note="ours"
    )
    calibration_images: int = field(
        64,
        title="Calibration images",
        doc="Training images to calibrate with, where no calibration data are named.",
        low=1,
        note="ours",
    )
    objective: str | None = field(
        None,
        title="Objective",
        doc="Set: every trade-off of the search is handed over and measured, and the winner is chosen among them: "
        "accuracy: the best deployed mAP50; latency: the fastest within accuracy_slack of the best.",
        enum=("accuracy", "latency"),
        note="ours",
    )
    max_latency_ms: float | None = field(
        None, title="Latency limit", doc="Slower members are not chosen, milliseconds at batch 1.", low=0, note="ours"
    )
    accuracy_slack: float = field(
        0.01, title="Accuracy slack", doc="mAP50 that objective=latency may give up.", low=0, high=1, note="ours"
    )

    def problems(self, name: str) -> list[str]:
        wrong = [each for each in self.precisions if each not in PRECISIONS]
        if not wrong and len(set(self.precisions)) == len(self.precisions):
            return []
        return [
            f"`{name}.precisions` must be different ones of {', '.join(PRECISIONS)}, but is {list(self.precisions)}; "
            "set it to [FP32, FP16]."
        ]
