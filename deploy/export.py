"""Checkpoint -> ONNX file and its sidecar, compared with PyTorch before it gets its name. Knows no data set, no engine.

How the graph is written is `deploy.graph`'s, what agreement is `deploy.parity`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deploy import deepstream, graph, parity, sidecar
from deploy.runtime import INPUT, OnnxPredictor
from deploy.spec import ExportSpec
from model.checkpoint import Checkpoint, load_model, public_dict, sha256
from model.evaluate import torch_predictor
from model.network.attention import SAMPLERS
from model.progress import progress
from model.spec import ExperimentSpec
from model.whole import in_place

OPSETS = range(16, 21)
"""GridSample came with 16; the exporter ends at 20."""
DTYPES = ("float32", "uint8")

NORMALISED = "(pixel / 255 - mean) / std"
MEANINGS = {
    "pred_logits": "[B, queries, num_classes], before the sigmoid; the class index is the category id",
    "pred_boxes": "[B, queries, 4]: cx, cy, w, h as fractions of the image",
    "scores": "[B, num_select] in 0..1, best first",
    "labels": "[B, num_select] int64: category ids",
    "boxes": "[B, num_select, 4]: x0, y0, x1, y1 in pixels of the input, not clipped",
}


def export_onnx(
    checkpoint: Path,
    onnx: Path,
    *,
    height: int,
    width: int,
    opset: int = 17,
    batch_size: int = -1,
    attention: str = "auto",
    postprocess: bool = False,
    input_dtype: str = "float32",
    nvdsinfer: bool = False,
    overwrite: bool = False,
    lineage: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Path:
    """Writes `onnx` and its sidecar; returns the sidecar's path. height, width: pixels of the input, fixed.

    batch_size: -1 leaves the batch open. attention: a name of SAMPLERS; `auto` is the fastest in ONNX Runtime.
    postprocess: the outputs are the best detections, boxes in pixels of the input. input_dtype: uint8 puts the
    normalisation inside. nvdsinfer: also writes DeepStream's files. lineage: added to what the checkpoint tells of
    itself. Raises ParityError, and writes nothing, when ONNX Runtime and PyTorch disagree.
    """
    form = _form(
        height=height,
        width=width,
        opset=opset,
        batch_size=batch_size,
        attention=attention,
        postprocess=postprocess,
        input_dtype=input_dtype,
        nvdsinfer=nvdsinfer,
    )
    files = [onnx, sidecar.path_of(onnx)]
    files += [onnx.with_name(name) for name in (deepstream.LABELS, deepstream.CONFIG)] if nvdsinfer else []
    _check_target(files, overwrite)
    model, source = load_model(checkpoint)
    sizes, num_select = source.spec.dataset.augmentation, source.spec.model.num_select
    detector = graph.Detector(model, form, sizes.input_mean, sizes.input_std, num_select)
    pixels = parity.photographs(height, width)
    with progress("exporting to ONNX", 2, "parts") as counting, in_place(*files) as (partial, beside, *more):
        counting.advance(0, "tracing")
        example = pixels if form.normalises else pixels / 255.0
        graph.write(detector, example, partial, verbose=verbose)
        counting.advance(1, "comparing with PyTorch")
        found = parity.compare(
            torch_predictor(model), OnnxPredictor(partial), pixels, sizes, num_select, name=onnx.name
        )
        sidecar.write(_described(partial, source, form, found, lineage or {}), beside)
        if more:
            labels = deepstream.labels(source.classes, source.num_classes)
            threshold = source.spec.inference.conf_threshold
            text = deepstream.config(onnx, form, sizes.input_mean, sizes.input_std, source.num_classes, threshold)
            for path, content in zip(more, ("\n".join(labels) + "\n", text), strict=True):
                path.write_text(content, encoding="utf-8")
    return files[1]


def export_action(spec: ExperimentSpec, export: ExportSpec) -> Path:
    """The `export` action, on the CPU whatever `export.on_cpu` and `export.gpu_id` say: the file is the same. Returns
    the ONNX file's path. Architecture, classes and normalisation are the checkpoint's own, not the spec's."""
    for name in ("checkpoint", "onnx_file"):
        if getattr(export, name) is None:
            raise ValueError(f"`export.{name}` must name a file, but is unset; set it.")
    for name, only in (("format", "onnx"), ("input_channel", 3)):
        if getattr(export, name) != only:
            raise ValueError(
                f"`export.{name}` must be {only}: nothing else is supported, but it is {getattr(export, name)}; set it "
                f"to {only}."
            )
    assert export.checkpoint is not None
    assert export.onnx_file is not None
    onnx = Path(export.onnx_file)
    export_onnx(
        Path(export.checkpoint),
        onnx,
        **options(export),
        overwrite=export.overwrite,
        lineage={"model_name": spec.model_name} if spec.model_name else None,
        verbose=export.verbose,
    )
    written = sidecar.require_onnx(onnx)
    _tell(onnx, written, export)
    return onnx


def _tell(onnx: Path, written: sidecar.OnnxSidecar, export: ExportSpec) -> None:
    batch = "any batch" if export.batch_size == -1 else f"batch {export.batch_size}"
    found = ", ".join(
        f"{what} {written.parity[what]:.1e}" for what in ("logits", "scores", "boxes") if what in written.parity
    )
    print(
        f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, {export.input_width} x {export.input_height} pixels, opset "
        f"{written.opset}, {written.attention} attention, {batch}; takes {written.input['dtype']}, gives "
        f"{', '.join(written.outputs)}. Largest differences from PyTorch on two photographs: {found}. Described in "
        f"{sidecar.path_of(onnx).name}."
    )
    if export.attention == "auto":
        print(f"{written.attention} is the fastest form in ONNX Runtime; for TensorRT set export.attention=gather.")
    if written.attention == "plugin":
        print(
            "The plugin form is for TensorRT alone; it was compared with its plugin's documented meaning in its place."
        )
    if quantised := written.lineage.get("quantised"):
        print(f"{onnx} holds the weights of {len(quantised)} quantised layers in float32, as they are computed with.")
    if export.serialize_nvdsinfer:
        remark = deepstream.remark(tuple(written.input["std"]))
        print(f"For DeepStream: {deepstream.LABELS} and {deepstream.CONFIG}. {remark}")


def _check_target(files: list[Path], overwrite: bool) -> None:
    onnx, _, *more = files  # a sidecar goes with its file
    if onnx.suffix != ".onnx":
        raise ValueError(f"`export.onnx_file` must end in .onnx, but is `{onnx}`; encrypted formats are not written.")
    for file in (onnx, *more):
        if file.exists() and not overwrite:
            raise ValueError(
                f"`export.onnx_file` must not exist yet, nor what goes beside it, but `{file}` does; name another "
                "file, or set export.overwrite=true."
            )


def options(export: ExportSpec) -> dict[str, Any]:
    """What a spec asks of the file, as export_onnx takes it."""
    return {
        "height": export.input_height,
        "width": export.input_width,
        "opset": export.opset_version,
        "batch_size": export.batch_size,
        "attention": export.attention,
        "postprocess": export.postprocess,
        "input_dtype": export.input_dtype,
        "nvdsinfer": export.serialize_nvdsinfer,
    }


def check(export: ExportSpec) -> None:
    """Raises ValueError for what an export with these options would refuse whatever the checkpoint."""
    _form(**options(export))


def _form(
    *,
    height: int,
    width: int,
    opset: int,
    batch_size: int,
    attention: str,
    postprocess: bool,
    input_dtype: str,
    nvdsinfer: bool,
) -> graph.Form:
    """What export_onnx's options mean. Raises ValueError for what no export can do."""
    if opset not in OPSETS:
        raise ValueError(
            f"`export.opset_version` must be {OPSETS[0]} to {OPSETS[-1]}, but is {opset}; 17 is a good choice."
        )
    if batch_size != -1 and batch_size < 1:
        raise ValueError(f"`export.batch_size` must be at least 1, or -1 for any, but is {batch_size}.")
    sampling = "gridsample" if attention == "auto" else attention
    if sampling not in SAMPLERS:
        raise ValueError(f"`export.attention` must be auto or one of {', '.join(SAMPLERS)}, but is `{attention}`.")
    if input_dtype not in DTYPES:
        raise ValueError(f"`export.input_dtype` must be one of {', '.join(DTYPES)}, but is `{input_dtype}`.")
    form = graph.Form(
        height=height,
        width=width,
        opset=opset,
        batch_size=batch_size,
        attention=sampling,
        normalises=input_dtype == "uint8",
        selects=postprocess,
    )
    if nvdsinfer:
        deepstream.check(form)
    return form


def _described(
    onnx: Path, source: Checkpoint, form: graph.Form, found: parity.Differences, lineage: Mapping[str, Any]
) -> sidecar.OnnxSidecar:
    sizes = source.spec.dataset.augmentation
    return sidecar.OnnxSidecar(
        format_version=sidecar.FORMAT_VERSION,
        onnx_sha256=sha256(onnx),
        checkpoint=source.path.name,
        checkpoint_sha256=source.sha256,
        num_classes=source.num_classes,
        classes={str(key): name for key, name in source.classes.items()},
        input={
            "name": INPUT,
            "layout": "NCHW",
            "dtype": "uint8" if form.normalises else "float32",
            "colour": "RGB",
            "batch": form.batch_size,
            "height": form.height,
            "width": form.width,
            "resize": sidecar.RESIZE,
            "values": "pixels as they are; mean and std are applied inside" if form.normalises else NORMALISED,
            "mean": list(sizes.input_mean),
            "std": list(sizes.input_std),
        },
        outputs={name: MEANINGS[name] for name in form.outputs},
        thresholds={
            "num_select": source.spec.model.num_select,
            "confidence": source.spec.inference.conf_threshold,
        },
        model=public_dict(source.spec)["model"],
        opset=form.opset,
        attention=form.attention,
        parity={**found, "tolerance": parity.TOLERANCE, "images": "scikit-learn's two photographs"},
        lineage={**_lineage(source), **lineage},
    )


def _lineage(source: Checkpoint) -> dict[str, Any]:
    return {
        "epoch": source.epoch,
        "metrics": dict(source.metrics),
        "torch": torch.__version__,
        **({"quantised": dict(source.quantised)} if source.quantised else {}),
    }
