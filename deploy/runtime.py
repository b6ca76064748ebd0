"""Runs an exported graph. Knows ONNX Runtime and the graph's shapes; knows nothing of images, classes or metrics.

An engine will run here too, behind the same call; this version builds engines and does not run them.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as state
from torch import Tensor

from deploy.sidecar import require_file
from model.network.detr import Prediction

INPUT = "inputs"
OUTPUTS = ("pred_logits", "pred_boxes")

_UNREADABLE = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)


class OnnxPredictor:
    """A detector in ONNX Runtime, called as PyTorch's is: on the GPU where ONNX Runtime has one, else on the CPU.

    threads: of one operator; None leaves the choice to ONNX Runtime.
    """

    def __init__(self, onnx: Path, *, threads: int | None = None) -> None:
        require_file(onnx, "an ONNX file")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in ort.get_available_providers()]
        try:
            self._session = ort.InferenceSession(str(onnx), options, providers=providers)
        except _UNREADABLE as error:
            raise ValueError(
                f"an ONNX file must be complete and of standard operators, but ONNX Runtime cannot read `{onnx}` "
                f"({' '.join(str(error).split())[:300]}); export it again."
            ) from None
        self.batch, self.size = self._shape(onnx)

    def _shape(self, onnx: Path) -> tuple[int | None, tuple[int, int]]:
        """Batch size (None: any) and height, width of the input."""
        inputs = {each.name: each.shape for each in self._session.get_inputs()}
        outputs = {each.name for each in self._session.get_outputs()}
        shape = inputs.get(INPUT, [])
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not set(OUTPUTS) <= outputs:
            raise ValueError(
                f"an ONNX detector must have one input `{INPUT}` [B, 3, H, W] and outputs {', '.join(OUTPUTS)}, but "
                f"`{onnx}` has {inputs} and {sorted(outputs)}; export it with `ddetr export`."
            )
        batch, _, height, width = shape
        if not isinstance(height, int) or not isinstance(width, int):
            raise ValueError(f"height and width of `{onnx}` must be fixed, but are {height} and {width}; export again.")
        return (batch if isinstance(batch, int) else None), (height, width)

    def __call__(self, pixels: Tensor, mask: Tensor | None = None) -> Prediction:
        """pixels (B, 3, H, W): normalised RGB of the graph's height and width; any B, also where the graph's is fixed.

        `mask` is passed over: a graph of fixed size sees images without padding. Returns a prediction on the device of
        `pixels`.
        """
        if tuple(pixels.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"this graph takes images of 3 x {self.size[0]} x {self.size[1]} (height x width), but got "
                f"{' x '.join(map(str, pixels.shape[1:]))}; set evaluate.input_height and evaluate.input_width to it."
            )
        values = pixels.detach().float().cpu().numpy()
        step = self.batch or len(values)
        parts = [self._run(values[start : start + step]) for start in range(0, len(values), step)]
        logits, boxes = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        return Prediction(logits.to(pixels.device), boxes.to(pixels.device))

    def _run(self, values: np.ndarray) -> list[np.ndarray]:
        count = len(values)
        if self.batch is not None and count < self.batch:  # the last images of a fixed batch: filled up, then cut
            values = np.concatenate((values, np.zeros((self.batch - count, *values.shape[1:]), values.dtype)))
        return [part[:count] for part in self._session.run(OUTPUTS, {INPUT: values})]
