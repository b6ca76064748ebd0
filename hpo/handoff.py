"""The winner's way out of a run: handoff.json, ONNX, engine, each measured. Knows the run folder; how is `deploy`'s.

Nothing is handed over that does not say what PyTorch says: a difference over the tolerance raises ParityError.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from hpo.files import write_json
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from deploy.spec import ExportSpec, GenTrtEngineSpec
    from model.checkpoint import Checkpoint

HANDOFF = "handoff.json"
ONNX = "model.onnx"
ENGINE = "model.engine"
DELIVERY = "delivery.json"
"""What was handed over and how it was measured."""

MAP_TOLERANCE = 0.001
"""Largest difference allowed between the mAP50 of an exported file and of PyTorch on the same images."""

Split = Literal["test", "val"]


class Row(NamedTuple):
    """One form of the winner."""

    form: str
    file: Path
    bytes: int
    map50: float | None
    """On the images of `Delivery.split`, all resized to the export's size; None where it was not measured."""
    difference: float | None
    """Of map50 to PyTorch's."""


class Delivery(NamedTuple):
    rows: tuple[Row, ...]
    split: Split | None
    """Which images scored the rows; None where the spec names neither."""
    remarks: tuple[str, ...]
    """What was not done and why, what to know before use, what to install; a sentence each."""

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; files relative to its folder."""
        rows = [{**row._asdict(), "file": os.path.relpath(row.file, path.parent)} for row in self.rows]
        write_json({**self._asdict(), "rows": rows}, path)

    def table(self) -> Table:
        where = {"test": "test mAP50", "val": "validation mAP50 (optimistic)", None: "mAP50"}[self.split]
        table = Table(title="Handed over")
        table.add_column("form")
        table.add_column("file")
        for name in ("MB", where, "difference"):
            table.add_column(name, justify="right")
        for row in self.rows:
            score = "not measured" if row.map50 is None else f"{row.map50:.4f}"
            change = "" if row.difference is None else f"{row.difference:+.4f}"
            table.add_row(row.form, Text(str(row.file), overflow="fold"), f"{row.bytes / 1e6:.1f}", score, change)
        return table


def check(export: "ExportSpec", engine: "GenTrtEngineSpec") -> None:
    """Raises ValueError for what hand_off would refuse, so that a search does not end in it."""
    from deploy.engine import check_options as check_engine
    from deploy.export import check_options as check_export

    check_export(export.opset_version, export.batch_size)
    check_engine(engine.tensorrt)


def hand_off(
    run_dir: Path,
    checkpoint: Path,
    spec: ExperimentSpec,
    *,
    export: "ExportSpec",
    engine: "GenTrtEngineSpec",
    budget: Mapping[str, float],
    lineage: Mapping[str, Any],
    cpus: int = 1,
) -> Delivery:
    """Writes handoff.json, model.onnx and, where a TensorRT can be imported, model.engine into `run_dir`.

    spec: the request's; its data sources and `evaluate` count, architecture and classes are the checkpoint's own.
    export, engine: sizes and precision of their sections; file names are the run's. budget, lineage: as Handoff's.
    Files of an earlier handoff of this run are replaced.
    """
    from deploy.export import export_onnx
    from model.checkpoint import read_checkpoint
    from model.handoff import Handoff

    check(export, engine)
    remarks: list[str] = []
    winner = read_checkpoint(checkpoint)
    Handoff.of(winner, run_dir, budget=budget, lineage=lineage).write(run_dir / HANDOFF)
    onnx = run_dir / ONNX
    export_onnx(
        checkpoint,
        onnx,
        height=export.input_height,
        width=export.input_width,
        opset=export.opset_version,
        batch_size=export.batch_size,
        overwrite=True,
        lineage=lineage,
        verbose=export.verbose,
    )
    split = _split(spec)
    rows = [Row("PyTorch", checkpoint, checkpoint.stat().st_size, None, None)]
    rows.append(Row("ONNX", onnx, onnx.stat().st_size, None, None))
    if split is None:
        remarks.append(
            "No mAP50 was measured: the spec names neither test nor validation data; set dataset.test_data_sources."
        )
    else:
        if split == "val":
            remarks.append(
                "The spec names no test data: mAP50 is of the validation data, which chose the winner, and is "
                "optimistic; set dataset.test_data_sources."
            )
        rows = _measured(rows, winner, spec, split, cpus)
    built = _build(run_dir, onnx, engine, remarks)
    delivery = Delivery((*rows, *built), split, tuple(remarks))
    delivery.write(run_dir / DELIVERY)
    return delivery


def _split(spec: ExperimentSpec) -> Split | None:
    if spec.dataset.has_test:
        return "test"
    return "val" if spec.dataset.has_validation else None


def _measured(rows: list[Row], winner: "Checkpoint", spec: ExperimentSpec, split: Split, cpus: int) -> list[Row]:
    """The rows of the checkpoint and its ONNX with their scores. Raises ParityError when ONNX does not say what PyTorch
    says: of the first batch's logits and boxes, and of mAP50 over all images."""
    from deploy import parity
    from deploy.evaluate import images_of, score
    from deploy.runtime import OnnxPredictor
    from model.adopt import adopt
    from model.batch import normalise
    from model.checkpoint import load_model
    from model.evaluate import torch_predictor

    pytorch, onnx = rows
    ours = adopt(winner, _data(spec))
    model, _ = load_model(pytorch.file)
    predict, exported = torch_predictor(model), OnnxPredictor(onnx.file)

    batch = next(iter(images_of(ours, exported.size, split=split, cpus=0)[1]))
    sizes = ours.dataset.augmentation
    pixels, _ = normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std)
    parity.compare_predictors(predict, exported, pixels, name=onnx.file.name)

    expected, found = (
        score(each, ours, exported.size, split=split, cpus=cpus)[0].numbers["mAP50"] for each in (predict, exported)
    )
    if not abs(found - expected) <= MAP_TOLERANCE:
        raise parity.ParityError(
            f"`{onnx.file}` must reach the mAP50 of its checkpoint to {MAP_TOLERANCE:g}, but has {found:.4f} and "
            f"PyTorch {expected:.4f} on the same images; do not use this file."
        )
    return [
        pytorch._replace(map50=expected, difference=0.0),
        onnx._replace(map50=found, difference=found - expected),
    ]


def _data(spec: ExperimentSpec) -> dict[str, Any]:
    """What of the request's spec scoring needs: data and evaluation. The rest, searched or not, is the checkpoint's."""
    given = spec.to_dict()
    kept = ("val_data_sources", "test_data_sources", "eval_class_ids", "workers")
    return {"dataset": {name: given["dataset"][name] for name in kept}, "evaluate": given["evaluate"]}


def _build(run_dir: Path, onnx: Path, wanted: "GenTrtEngineSpec", remarks: list[str]) -> list[Row]:
    """The engine's row; none, and a remark, where there is no TensorRT."""
    from deploy import trt
    from deploy.engine import build_engine
    from deploy.sidecar import path_of

    engine = run_dir / ENGINE
    for stale in (engine, path_of(engine)):  # an engine of an earlier winner must not stay beside this one's ONNX
        stale.unlink(missing_ok=True)
    try:
        report = build_engine(
            onnx,
            engine,
            min_batch=wanted.tensorrt.min_batch_size,
            opt_batch=wanted.tensorrt.opt_batch_size,
            max_batch=wanted.tensorrt.max_batch_size,
            workspace_mb=wanted.tensorrt.workspace_size,
            precision=wanted.tensorrt.data_type,
            verbose=wanted.verbose,
        )
    except trt.TensorRTMissing as missing:
        remarks.append(f"No engine was built: {missing}")
        return []
    remarks.append(report.line())
    return [Row(f"{report.library} {report.precision}", engine, report.bytes, None, None)]
