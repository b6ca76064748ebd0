"""Checkpoint -> ONNX file and its sidecar, compared with PyTorch before it gets its name. Knows no data set, no engine.

The graph holds what the network computes and no more: normalised pixels in; logits and boxes out.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx as onnx_format
import torch
from torch import Tensor, nn

from deploy import parity, sidecar
from deploy.runtime import INPUT, OUTPUTS, OnnxPredictor
from deploy.spec import ExportSpec
from model.checkpoint import Checkpoint, load_model, public_dict, sha256
from model.evaluate import torch_predictor
from model.network.attention import SAMPLERS, MSDeformAttn
from model.network.detr import DeformableDETR
from model.progress import progress
from model.spec import ExperimentSpec

OPSETS = range(16, 21)
"""GridSample came with 16; the exporter ends at 20."""


def export_onnx(
    checkpoint: Path,
    onnx: Path,
    *,
    height: int,
    width: int,
    opset: int = 17,
    batch_size: int = -1,
    attention: str = "auto",
    overwrite: bool = False,
    lineage: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Path:
    """Writes `onnx` and its sidecar; returns the sidecar's path. height, width: pixels of the input, fixed.

    batch_size: -1 leaves the batch open. attention: a name of SAMPLERS; `auto` is gridsample. lineage: added to what
    the checkpoint tells of itself. Raises ParityError, and writes nothing, when ONNX Runtime and PyTorch disagree.
    """
    _check_target(onnx, overwrite)
    attention = check_options(opset, batch_size, attention)
    model, source = load_model(checkpoint)
    _use_sampler(model, attention)
    mean, std = source.spec.dataset.augmentation.input_mean, source.spec.dataset.augmentation.input_std
    inputs = parity.photographs(height, width, mean, std)
    described_by = sidecar.path_of(onnx)
    with (
        progress("exporting to ONNX", 3, "parts") as counting,
        sidecar.in_place(onnx, described_by) as (partial, partial_sidecar),
    ):
        counting.advance(0, "tracing")
        _trace(model, inputs[: max(batch_size, 1)], partial, opset, batch_size, verbose=verbose)
        counting.advance(1, "checking the graph")
        onnx_format.checker.check_model(str(partial), full_check=True)
        counting.advance(1, "comparing with PyTorch")
        compared = parity.compare_predictors(torch_predictor(model), OnnxPredictor(partial), inputs, name=onnx.name)
        content = sidecar.OnnxSidecar(
            format_version=sidecar.FORMAT_VERSION,
            onnx_sha256=sha256(partial),
            checkpoint=checkpoint.name,
            checkpoint_sha256=source.sha256,
            num_classes=source.num_classes,
            classes={str(key): name for key, name in source.classes.items()},
            input={
                "name": INPUT,
                "layout": "NCHW",
                "dtype": "float32",
                "colour": "RGB",
                "batch": batch_size,
                "height": height,
                "width": width,
                "resize": sidecar.RESIZE,
                "mean": list(mean),
                "std": list(std),
            },
            outputs={
                "pred_logits": "[B, queries, num_classes], before the sigmoid; the class index is the category id",
                "pred_boxes": "[B, queries, 4]: cx, cy, w, h as fractions of the image",
            },
            model=public_dict(source.spec)["model"],
            opset=opset,
            attention=attention,
            parity={**compared._asdict(), "tolerance": parity.TOLERANCE, "images": "scikit-learn's two photographs"},
            lineage={**_lineage(source), **(lineage or {})},
        )
        sidecar.write(content, partial_sidecar)
    return described_by


def export_action(spec: ExperimentSpec, export: ExportSpec) -> Path:
    """The `export` action, on the CPU whatever `export.on_cpu` and `export.gpu_id` say: the file is the same. Returns
    the ONNX file's path. Architecture, classes and normalisation are the checkpoint's own, not the spec's."""
    for name in ("checkpoint", "onnx_file"):
        if getattr(export, name) is None:
            raise ValueError(f"`export.{name}` must name a file, but is unset; set it.")
    for name, only, later in (("format", "onnx", ""), ("input_channel", 3, ""), ("serialize_nvdsinfer", False, "yet ")):
        if getattr(export, name) != only:
            raise ValueError(
                f"`export.{name}` must be {only}: nothing else is {later}supported, but it is "
                f"{getattr(export, name)}; set it to {only}."
            )
    assert export.checkpoint is not None
    assert export.onnx_file is not None
    onnx = Path(export.onnx_file)
    described_by = export_onnx(
        Path(export.checkpoint),
        onnx,
        height=export.input_height,
        width=export.input_width,
        opset=export.opset_version,
        batch_size=export.batch_size,
        overwrite=export.overwrite,
        lineage={"model_name": spec.model_name} if spec.model_name else None,
        verbose=export.verbose,
    )
    written = sidecar.require_onnx(onnx)
    print(
        f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, {export.input_width} x {export.input_height} pixels, opset "
        f"{written.opset}, {written.attention} attention; largest differences from PyTorch on two photographs: logits "
        f"{written.parity['logits']:.1e}, boxes {written.parity['boxes']:.1e}. Described in {described_by.name}."
    )
    if quantised := written.lineage.get("quantised"):
        print(f"{onnx} holds the weights of {len(quantised)} quantised layers in float32, as they are computed with.")
    return onnx


def _check_target(onnx: Path, overwrite: bool) -> None:
    if onnx.suffix != ".onnx":
        raise ValueError(f"`export.onnx_file` must end in .onnx, but is `{onnx}`; encrypted formats are not written.")
    if onnx.exists() and not overwrite:
        raise ValueError(
            f"`export.onnx_file` must not exist yet, but `{onnx}` does; name another file, or set "
            "export.overwrite=true."
        )


def check_options(opset: int, batch_size: int, attention: str = "auto") -> str:
    """Raises ValueError for what no export can do; returns the attention form that `attention` means."""
    if opset not in OPSETS:
        raise ValueError(
            f"`export.opset_version` must be {OPSETS[0]} to {OPSETS[-1]}, but is {opset}; 17 is a good choice."
        )
    if batch_size != -1 and batch_size < 1:
        raise ValueError(f"`export.batch_size` must be at least 1, or -1 for any, but is {batch_size}.")
    form = "gridsample" if attention == "auto" else attention
    if form not in SAMPLERS:
        raise ValueError(f"`export.attention` must be auto or one of {', '.join(SAMPLERS)}, but is `{attention}`.")
    return form


def _use_sampler(model: DeformableDETR, name: str) -> None:
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.sampler = name


class _Graph(nn.Module):
    """The last layer's prediction as a plain tuple, for images without padding."""

    def __init__(self, model: DeformableDETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        final = self.model(pixels, None).final
        return final.logits, final.boxes


def _trace(model: DeformableDETR, example: Tensor, path: Path, opset: int, batch_size: int, *, verbose: bool) -> None:
    example = example.repeat(-(-batch_size // len(example)), 1, 1, 1)[:batch_size] if batch_size > 0 else example
    names = (INPUT, *OUTPUTS)
    with warnings.catch_warnings(), torch.no_grad():
        if not verbose:  # the exporter's age, and Python numbers in the trace: the sizes of levels, which are constant
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            _Graph(model).eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "batch"} for name in names} if batch_size == -1 else None,
            verbose=verbose,
        )
    _state_output_shapes(model, example, path)


def _state_output_shapes(model: DeformableDETR, example: Tensor, path: Path) -> None:
    """Only the batch of the outputs is open: the exporter loses the number of queries on the way, consumers want it."""
    with torch.no_grad():
        shapes = [value.shape for value in model(example[:1], None).final]
    graph = onnx_format.load(path)
    for output, shape in zip(graph.graph.output, shapes, strict=True):
        for axis in (1, 2):
            output.type.tensor_type.shape.dim[axis].dim_value = shape[axis]
    onnx_format.save(graph, path)


def _lineage(source: Checkpoint) -> dict[str, Any]:
    return {
        "epoch": source.epoch,
        "metrics": dict(source.metrics),
        "torch": torch.__version__,
        **({"quantised": dict(source.quantised)} if source.quantised else {}),
    }
