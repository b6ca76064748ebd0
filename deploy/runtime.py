"""Runs an exported graph: an ONNX file in ONNX Runtime, an engine in the TensorRT that built it. Knows tensors and
their shapes; knows nothing of files of images, of classes or of metrics."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import Tensor

from deploy import sidecar, trt
from deploy.plugin import runnable
from deploy.rounding import on_cpu
from deploy.tensors import session_options
from model.batch import ImageBatch, normalise
from model.errors import Kind
from model.evaluate import Detector, original_sizes
from model.network.detr import Prediction
from model.network.postprocess import Detections, top_k
from model.spec import ENGINES, ExperimentSpec

INPUT = "inputs"
OUTPUTS = ("pred_logits", "pred_boxes")
SELECTED = ("scores", "labels", "boxes")
"""Of a graph that does the post-processing itself."""

Outputs = Mapping[str, Tensor]
"""Name of an output to its tensor (B, ...)."""

_UNREADABLE = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)


class NoGpuError(RuntimeError):
    """An engine is to be run, and PyTorch has no GPU here to run it on."""

    kind: ClassVar[Kind] = "run"


class EngineError(RuntimeError):
    """TensorRT cannot load or run an engine; the message holds what it said."""

    kind: ClassVar[Kind] = "run"


class GraphPredictor:
    """A detector in one file. Of any number of images: what is more than the graph takes at once is split, what is less
    is filled up and cut off again."""

    size: tuple[int, int]
    """Height and width of the input, pixels."""
    batch_range: tuple[int, int | None]
    """The fewest and the most images at once; None: any number."""
    dtype: torch.dtype
    """Of the input: float32 takes normalised pixels, uint8 takes them as they are."""
    outputs: tuple[str, ...]
    runner: str
    """Library and version."""
    device: torch.device
    threads: int = 0
    """Of one operator on a CPU; 0: the library's own choice."""

    def run(self, pixels: Tensor) -> Outputs:
        """pixels (B, 3, H, W): RGB of `size` and `dtype`. Returns the outputs on the device of `pixels`."""
        if tuple(pixels.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"this graph takes images of 3 x {self.size[0]} x {self.size[1]} (height x width), but got "
                f"{' x '.join(map(str, pixels.shape[1:]))}; set evaluate.input_height and evaluate.input_width to it."
            )
        assert pixels.dtype == self.dtype
        low, high = self.batch_range
        step = high or len(pixels)
        parts = [self._filled(pixels[start : start + step], low) for start in range(0, len(pixels), step)]
        return {name: torch.cat([part[name] for part in parts]).to(pixels.device) for name in self.outputs}

    def __call__(self, pixels: Tensor, mask: Tensor | None = None) -> Prediction:
        """As PyTorch's network is called, for graphs that give logits and boxes. `mask` is passed over: a graph of
        fixed size sees images without padding."""
        assert self.outputs == OUTPUTS
        found = self.run(pixels.detach().to(self.dtype))
        return Prediction(*(found[name] for name in OUTPUTS))

    def _filled(self, pixels: Tensor, low: int) -> Outputs:
        count = len(pixels)
        if count < low:
            pixels = torch.cat((pixels, pixels.new_zeros(low - count, *pixels.shape[1:])))
        return {name: value[:count] for name, value in self._run(pixels).items()}

    def _run(self, pixels: Tensor) -> Outputs:
        """All outputs, of as many images as the graph takes."""
        raise NotImplementedError


class OnnxPredictor(GraphPredictor):
    """A detector in ONNX Runtime: on the GPU where ONNX Runtime has one, else on the CPU.

    threads: of one operator; None leaves the choice to ONNX Runtime. exact: what the file says is computed, also where
    a CPU has no such numbers; else what ONNX Runtime makes of it by itself, which is faster.
    """

    def __init__(self, onnx: Path, *, threads: int | None = None, exact: bool = True) -> None:
        sidecar.require_file(onnx, "an ONNX file")
        options = session_options() if exact else ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in ort.get_available_providers()]
        try:
            source = _source(onnx, rounding=exact and len(providers) == 1)
            self._session = ort.InferenceSession(source, options, providers=providers)
        except _UNREADABLE as error:
            raise ValueError(
                f"an ONNX file must be complete and of standard operators, but ONNX Runtime cannot read `{onnx}` "
                f"({' '.join(str(error).split())[:300]}); export it again."
            ) from None
        inputs = {each.name: each.shape for each in self._session.get_inputs()}
        shape = inputs.get(INPUT, [])
        outputs = {each.name for each in self._session.get_outputs()}
        self.outputs = _known_outputs(outputs)
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not self.outputs:
            _no_detector(onnx, [f"{name} {shape}" for name, shape in inputs.items()] + sorted(outputs))
        batch, _, height, width = shape
        if not isinstance(height, int) or not isinstance(width, int):
            raise ValueError(f"height and width of `{onnx}` must be fixed, but are {height} and {width}; export again.")
        self.size = (height, width)
        self.batch_range = (batch, batch) if isinstance(batch, int) else (1, None)
        self.dtype = torch.uint8 if self._session.get_inputs()[0].type == "tensor(uint8)" else torch.float32
        self.runner, self.threads = f"ONNX Runtime {ort.__version__}", threads or 0
        self.device = torch.device("cpu" if len(providers) == 1 else "cuda")

    def _run(self, pixels: Tensor) -> Outputs:
        values = self._session.run(self.outputs, {INPUT: pixels.cpu().numpy()})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(self.outputs, values, strict=True)}


def _source(onnx: Path, *, rounding: bool) -> str | bytes:
    """What ONNX Runtime is given for the file at `onnx`: its path, or a graph in its place that it can run."""
    content = onnx.read_bytes()
    return runnable(content) or (on_cpu(content) if rounding else None) or str(onnx)


class EnginePredictor(GraphPredictor):
    """A detector in TensorRT. plan: the engine itself, which `name` is called in messages; `described`, its sidecar.

    device: a GPU. Raises EngineError where the engine cannot be loaded there.
    """

    def __init__(
        self, plan: bytes, described: sidecar.EngineSidecar, library: trt.Library, device: torch.device, name: str
    ) -> None:
        self._api, self.device = library.api, device
        self.runner = f"{library.name} {library.version}"
        self._log = trt.message_log(library.api)
        with _on(device):
            trt.load_plugins(library.api, self._log)
            self._runtime = library.api.Runtime(self._log)  # which must live as long as its engine
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{library.name} {library.version} must be able to load `{name}`, but cannot on {gpu_name(device)}: "
                f"{trt.joined(self._log.errors)} It was built for: {described.target}; build it again with "
                "`ddetr gen_trt_engine` on this machine."
            )
        self._stream = _stream(device)
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self.outputs = _known_outputs(set(names))
        if INPUT not in names or not self.outputs:
            _no_detector(name, names)
        self._types = {name: trt.torch_type(self._engine.get_tensor_dtype(name)) for name in names}
        self.dtype = self._types[INPUT]
        self.size, self.batch_range = described.size, described.batch_range

    @classmethod
    def open(cls, engine: Path, *, gpu_id: int = 0) -> "EnginePredictor":
        """The engine in a file. What its sidecar contradicts is refused first, then a machine without a GPU."""
        described = sidecar.require_engine(engine)
        library = trt.load_as_built(engine, described.library, described.library_version)
        device = gpu(gpu_id, f"to run `{engine}`")
        return cls(engine.read_bytes(), described, library, device, str(engine))

    def layers(self) -> dict[str, int]:
        """Type to the number of layers that give it, by the library's own inspector of the finished engine. Empty where
        the engine was built without those details."""
        return trt.layer_types(self._api, self._engine)

    def _run(self, pixels: Tensor) -> Outputs:
        with _on(self.device), _using(self._stream):
            given = pixels.to(self.device).contiguous()
            done = self._context.set_input_shape(INPUT, tuple(given.shape))
            found = {
                name: torch.empty(
                    tuple(self._context.get_tensor_shape(name)), dtype=self._types[name], device=self.device
                )
                for name in self.outputs
            }
            for name, value in {INPUT: given, **found}.items():
                done = done and self._context.set_tensor_address(name, value.data_ptr())
            done = done and self._context.execute_async_v3(0 if self._stream is None else self._stream.cuda_stream)
        if self._stream is not None:
            self._stream.synchronize()
        if not done:
            said = trt.joined(self._log.errors)
            raise EngineError(f"TensorRT must run a batch of {len(pixels)}, but did not: {said}")
        return found


def open_graph(path: Path, *, gpu_id: int = 0, threads: int | None = None) -> GraphPredictor:
    """The predictor for a file, by its suffix. threads: of ONNX Runtime."""
    if path.suffix in ENGINES:
        return EnginePredictor.open(path, gpu_id=gpu_id)
    return OnnxPredictor(path, threads=threads)


def graph_detector(graph: GraphPredictor, spec: ExperimentSpec) -> Detector:
    """`graph` on batches of images that were resized to its size. `spec` tells mean, std and num_select."""

    def raw(batch: ImageBatch) -> Detections:
        found = graph.run(graph_input(graph, batch, spec))
        return top_k(Prediction(*(found[name] for name in OUTPUTS)), original_sizes(batch), spec.model.num_select)

    def selected(batch: ImageBatch) -> Detections:
        found = graph.run(graph_input(graph, batch, spec))
        scores, labels, boxes = (found[name] for name in SELECTED)
        height, width = graph.size
        scale = original_sizes(batch).flip(1).repeat(1, 2) / torch.tensor([width, height] * 2)  # x, y, x, y
        return Detections(scores, labels.long(), boxes.float() * scale[:, None])

    return selected if graph.outputs == SELECTED else raw


def graph_input(graph: GraphPredictor, batch: ImageBatch, spec: ExperimentSpec) -> Tensor:
    """The images of a batch as `graph` takes them."""
    if graph.dtype == torch.uint8:
        return batch.pixels
    sizes = spec.dataset.augmentation
    pixels, _ = normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std)
    return pixels.to(graph.dtype)


def gpu(gpu_id: int, purpose: str) -> torch.device:
    """The GPU of that number. NoGpuError where PyTorch has none."""
    if not torch.cuda.is_available():
        raise NoGpuError(
            f"a GPU is needed {purpose}, but PyTorch {torch.__version__} finds none here; run it on a machine with the "
            "GPU and a PyTorch for CUDA, or score the engine's ONNX file here, which needs neither."
        )
    if gpu_id >= torch.cuda.device_count():
        raise ValueError(
            f"`gpu_id` must name a GPU of this machine, but is {gpu_id} of {torch.cuda.device_count()}; set it to 0."
        )
    return torch.device("cuda", gpu_id)


def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> Any:
    """A stream of its own: on the default one TensorRT waits for the whole device."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _using(stream: Any) -> Any:
    if stream is None:
        return nullcontext()
    stream.wait_stream(torch.cuda.current_stream(stream.device))  # what made the pixels
    return torch.cuda.stream(stream)


def _known_outputs(found: set[str]) -> tuple[str, ...]:
    """The outputs of a detector, in their order; none where it is no detector."""
    return next((names for names in (OUTPUTS, SELECTED) if set(names) <= found), ())


def _no_detector(path: object, tensors: Sequence[str]) -> NoReturn:
    raise ValueError(
        f"a detector must have one input `{INPUT}` [B, 3, H, W] and outputs {', '.join(OUTPUTS)} or "
        f"{', '.join(SELECTED)}, but `{path}` has {', '.join(tensors)}; export it with `ddetr export`."
    )
