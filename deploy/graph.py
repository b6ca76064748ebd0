"""The detector as one ONNX graph: what goes in, what comes out, how attention is written. Knows PyTorch's exporter;
knows no checkpoint, no sidecar, and not whether the graph is right.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx as onnx_format
import torch
from torch import Tensor, nn

from deploy import plugin
from deploy.runtime import INPUT, OUTPUTS, SELECTED
from model.network.attention import MSDeformAttn
from model.network.detr import DeformableDETR
from model.network.postprocess import top_k


@dataclass(frozen=True, kw_only=True)
class Form:
    """Everything that a user may choose of a graph."""

    height: int
    width: int
    """Of the input, pixels; fixed."""
    opset: int
    batch_size: int
    """-1: any."""
    attention: str
    """A name of SAMPLERS."""
    normalises: bool
    """The input is uint8, and the graph itself applies mean and std; else it is float32 and normalised."""
    selects: bool
    """The outputs are the best detections; else logits and boxes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return SELECTED if self.selects else OUTPUTS


class Detector(nn.Module):
    """The last layer's prediction, or the detections chosen from it, as a plain tuple, for images without padding."""

    def __init__(
        self, model: DeformableDETR, form: Form, mean: tuple[float, ...], std: tuple[float, ...], num_select: int
    ) -> None:
        super().__init__()
        self.model, self.form, self.num_select = model, form, num_select
        self.mean_311, self.std_311 = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.form.normalises:
            pixels = (pixels.float() / 255.0 - self.mean_311) / self.std_311
        final = self.model(pixels, None).final
        if not self.form.selects:
            return tuple(final)
        return tuple(top_k(final, torch.tensor([[self.form.height, self.form.width]]), self.num_select))


def write(detector: Detector, example: Tensor, path: Path, *, verbose: bool) -> None:
    """example (N, 3, H, W): what the graph takes; a fixed batch is filled with copies of it."""
    form = detector.form
    if form.attention == "plugin":
        plugin.write_as_node(form.opset)
    example = example[torch.arange(max(form.batch_size, 1)) % len(example)]
    names = (INPUT, *form.outputs)
    with _sampling(detector, form.attention), warnings.catch_warnings(), torch.no_grad():
        if not verbose:  # the exporter's age, and Python numbers in the trace: the sizes of levels, which are constant
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            detector.eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=form.opset,
            input_names=[INPUT],
            output_names=list(form.outputs),
            dynamic_axes={name: {0: "batch"} for name in names} if form.batch_size == -1 else None,
            verbose=verbose,
        )
        shapes = [value.shape for value in detector(example[:1])]
    _state_output_shapes(path, shapes)
    onnx_format.checker.check_model(str(path), full_check=True)


@contextmanager
def _sampling(detector: Detector, attention: str) -> Iterator[None]:
    """Attention in that form for as long as the graph is written; the network itself stays as it was."""
    modules = [module for module in detector.modules() if isinstance(module, MSDeformAttn)]
    before = [module.sampler for module in modules]
    for module in modules:
        module.sampler = attention
    try:
        yield
    finally:
        for module, sampler in zip(modules, before, strict=True):
            module.sampler = sampler


def _state_output_shapes(path: Path, shapes: list[torch.Size]) -> None:
    """Only the batch of the outputs is open: the exporter loses the other numbers on the way, consumers want them."""
    graph = onnx_format.load(path)
    for output, shape in zip(graph.graph.output, shapes, strict=True):
        for axis in range(1, len(shape)):
            output.type.tensor_type.shape.dim[axis].dim_value = shape[axis]
    onnx_format.save(graph, path)
