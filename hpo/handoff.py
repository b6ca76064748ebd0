"""The winner's way out of a run: handoff.json, an ONNX file and an engine of each precision, each measured.

Knows the file names of a run and the tolerances; the networks are run by `model` and `deploy`, whose heavy parts are
imported inside the functions. Raises ParityError when the export does not say what its checkpoint says; a precision
that loses too much accuracy is a failure of its own row, and the others are still handed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.delivery import DELIVERY, Delivery, Row, Split
from hpo.runs import HANDOFF, model_file
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from deploy.calibration import CalibrationImages
    from deploy.engine import EngineReport
    from deploy.precision import Lowered
    from deploy.sidecar import OnnxSidecar
    from deploy.spec import DeploySpec, ExportSpec, GenTrtEngineSpec
    from model.batch import ImageBatch
    from model.checkpoint import Checkpoint
    from model.network.detr import DeformableDETR

SHOWN = 3
"""Nodes that are named of those kept in a higher precision."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The sections of a spec that a handoff follows; their file names are passed over."""

    export: "ExportSpec"
    engine: "GenTrtEngineSpec"
    deploy: "DeploySpec"

    @property
    def precisions(self) -> tuple[str, ...]:
        """FP32 first: the others are made from it."""
        from deploy.spec import PRECISIONS

        asked = self.deploy.precisions or (self.engine.tensorrt.data_type,)
        return tuple(name for name in PRECISIONS if name == "FP32" or name in asked)

    def check(self, objectives: int = 1) -> None:
        """Raises ValueError for what hand_off would refuse, so that a search does not end in it."""
        from deploy.engine import check_options as check_engine
        from deploy.export import check as check_export

        check_export(self.export)
        check_engine(self.engine.tensorrt)
        if self.deploy.objective is not None and objectives < 2:
            raise ValueError(
                "`deploy.objective` chooses among the trade-offs of a search with several `automl.objectives`, but it "
                f"is {self.deploy.objective} and there is one objective; set automl.objectives=[val_mAP50, latency]."
            )


def hand_off(
    run_dir: Path,
    checkpoint: Path,
    spec: ExperimentSpec,
    *,
    wanted: Wanted,
    budget: Mapping[str, float],
    lineage: Mapping[str, Any],
    cpus: int = 1,
) -> Delivery:
    """Writes handoff.json, the ONNX file of each precision and, where a TensorRT can be imported, its engine.

    spec: the request's; its data sources and `evaluate` count, architecture and classes are the checkpoint's own.
    budget, lineage: as Handoff's. Files of an earlier handoff into this folder are replaced.
    """
    from deploy.export import export_onnx, options
    from model.checkpoint import read_checkpoint
    from model.handoff import Handoff

    wanted.check(objectives=2)
    winner = read_checkpoint(checkpoint)
    clear(run_dir)
    Handoff.of(winner, run_dir, budget=budget, lineage=lineage).write(run_dir / HANDOFF)
    onnx, export = run_dir / model_file("FP32", ".onnx"), wanted.export
    export_onnx(
        checkpoint,
        onnx,
        **options(replace(export, attention=_form(export.attention))),
        overwrite=True,
        lineage=lineage,
        verbose=export.verbose,
    )
    scale = _Scale(winner, onnx, spec, wanted, cpus)
    remarks, failures = [*scale.remarks], list[str]()
    rows = [scale.pytorch(), scale.exported()]
    made = {"FP32": onnx}
    for precision in wanted.precisions[1:]:
        lowered = _lower(onnx, precision, scale, spec, wanted, failures)
        if lowered is not None:
            made[precision] = lowered.onnx
            known = {} if scale.judge is None or lowered.score is None else {scale.judge: lowered.score}
            rows.append(scale.row(precision, lowered.onnx, _note(lowered), known))
            remarks += _kept(lowered)
    rows += _build(run_dir, made, wanted, remarks, failures)
    delivery = Delivery(tuple(rows), tuple(remarks), tuple(failures))
    delivery.write(run_dir / DELIVERY)
    return delivery


def clear(folder: Path) -> None:
    """Removes the files of an earlier winner: none of them must stay beside this one's."""
    from deploy.sidecar import path_of
    from deploy.spec import PRECISIONS

    for precision in PRECISIONS:
        for file in (folder / model_file(precision, ".onnx"), folder / model_file(precision, ".engine")):
            file.unlink(missing_ok=True)
            path_of(file).unlink(missing_ok=True)
    (folder / DELIVERY).unlink(missing_ok=True)


def _form(asked: str) -> str:
    """The sampling that TensorRT computes rightly in every version, where an engine will be built."""
    from deploy import trt

    if asked != "auto":
        return asked
    try:
        trt.load()
    except trt.TensorRTMissing:
        return "gridsample"
    return "gather"


class _Scale:
    """Measures the forms of one winner on the same images of the same size, and against each other."""

    def __init__(self, winner: "Checkpoint", onnx: Path, spec: ExperimentSpec, wanted: Wanted, cpus: int) -> None:
        from deploy import sidecar
        from model.adopt import adopt

        self.winner, self.onnx, self.wanted, self.cpus = winner, onnx, wanted, cpus
        self.described: OnnxSidecar = sidecar.require_onnx(onnx)
        self.given = _data(spec)
        self.spec = adopt(winner, self.given)
        self.splits: list[Split] = []
        if spec.dataset.has_validation:
            self.splits.append("val")
        if spec.dataset.has_test:
            self.splits.append("test")
        self.expected: dict[Split, float] = {}
        self._images: ImageBatch | None = None

    @property
    def judge(self) -> Split | None:
        """The images whose loss counts: choosing layers is a choice too, and test images choose nothing."""
        return self.splits[0] if self.splits else None

    @property
    def remarks(self) -> list[str]:
        if not self.splits:
            return ["No mAP50 was measured: the spec names neither validation nor test data."]
        if "test" not in self.splits:
            return [
                "The spec names no test data: mAP50 is of the validation data, which chose the winner, and is "
                "optimistic; set dataset.test_data_sources."
            ]
        return []

    def pytorch(self) -> Row:
        from deploy.evaluate import score
        from model.checkpoint import load_model
        from model.evaluate import detector, device, torch_predictor

        model, _ = load_model(self.winner.path)
        predict = torch_predictor(model.to(device(self.spec.evaluate.gpu_ids)))
        for split in self.splits:
            detect = detector(predict, self.spec)
            result, _ = score(detect, self.spec, self.described.size, split=split, cpus=self.cpus)
            self.expected[split] = result.numbers["mAP50"]
        file, drop = self.winner.path, 0.0 if self.splits else None
        return Row("PyTorch", file, file.stat().st_size, dict(self.expected), drop, self._latency(model))

    def exported(self) -> Row:
        """The row of the FP32 export. Raises ParityError where its mAP50 is not that of PyTorch."""
        from deploy.parity import ParityError

        row, limit = self.row("FP32", self.onnx), self.wanted.deploy.max_drop.fp32
        if row.drop is not None and not abs(row.drop) <= limit:
            assert self.judge is not None
            raise ParityError(
                f"`{self.onnx}` must reach the mAP50 of its checkpoint to {limit:g} (deploy.max_drop.fp32), but has "
                f"{row.map50[self.judge]:.4f} and PyTorch {self.expected[self.judge]:.4f} on the same images; do not "
                "use this file."
            )
        return row

    def row(self, precision: str, onnx: Path, note: str = "", known: Mapping[Split, float] | None = None) -> Row:
        """known: scores of the file that were measured already."""
        found = {split: (known or {}).get(split) for split in self.splits}
        scores = {split: self.score(onnx, split) if value is None else value for split, value in found.items()}
        drop = self.expected[self.judge] - scores[self.judge] if self.judge else None
        return Row(f"ONNX {precision}", onnx, onnx.stat().st_size, scores, drop, self._latency(onnx), note)

    def score(self, onnx: Path, split: Split) -> float:
        """mAP50 of an ONNX file in ONNX Runtime."""
        from deploy.evaluate import evaluate_file

        return evaluate_file(onnx, self.given, split=split, cpus=self.cpus)[0].numbers["mAP50"]

    def _latency(self, network: "Path | DeformableDETR") -> float | None:
        """Median of one image through an ONNX file or PyTorch's network, milliseconds; None without an image."""
        from deploy.evaluate import images_of
        from deploy.latency import of_graph
        from deploy.runtime import OnnxPredictor, graph_input
        from model.batch import normalise
        from model.latency import of_torch

        if self.judge is None:
            return None
        if self._images is None:
            self._images = next(iter(images_of(self.spec, self.described.size, split=self.judge, cpus=0)[1]))
        images, sizes = self._images, self.spec.dataset.augmentation
        if isinstance(network, Path):
            graph = OnnxPredictor(network, exact=False)  # as ONNX Runtime runs it by itself
            found = of_graph(graph, graph_input(graph, images, self.spec), (1,))
        else:
            pixels, _ = normalise(images.pixels, images.sizes, sizes.input_mean, sizes.input_std)
            found = of_torch(network, pixels, None, (1,))
        return found.rows[0].median_ms


def _data(spec: ExperimentSpec) -> dict[str, Any]:
    """What of the request's spec scoring needs: data and evaluation. The rest, searched or not, is the checkpoint's."""
    given = spec.to_dict()
    kept = ("val_data_sources", "test_data_sources", "eval_class_ids", "workers")
    return {"dataset": {name: given["dataset"][name] for name in kept}, "evaluate": given["evaluate"]}


def _lower(
    onnx: Path, precision: str, scale: _Scale, spec: ExperimentSpec, wanted: Wanted, failures: list[str]
) -> "Lowered | None":
    """The ONNX file in a lower precision, with as many nodes left above it as the tolerance asks for."""
    from deploy import precision as lowering

    asked, judge = wanted.engine.tensorrt, scale.judge
    try:
        return lowering.lower(
            onnx,
            onnx.with_name(model_file(precision, ".onnx")),
            precision,
            images=_calibration(spec, scale.described, wanted),
            layers_precision=asked.layers_precision if asked.data_type == precision else (),
            method=asked.calibration.method,
            score=None if judge is None else lambda file: scale.score(file, judge),
            reference=None if judge is None else scale.expected[judge],
            max_drop=wanted.deploy.max_drop.of(precision),
        )
    except lowering.PrecisionError as error:
        failures.append(f"{precision}: {error}")
        return None


def _calibration(spec: ExperimentSpec, described: "OnnxSidecar", wanted: Wanted) -> "CalibrationImages":
    """The images of `cal_image_dir`, else those that the spec names for every precision, or of the training data."""
    from deploy.calibration import from_folders, from_spec

    asked = wanted.engine.tensorrt.calibration
    size = asked.cal_batch_size
    if asked.cal_image_dir:
        return from_folders(asked.cal_image_dir, batch_size=size, batches=asked.cal_batches, described=described)
    return from_spec(spec, described, wanted.deploy.calibration_images, batch_size=size)


def _note(lowered: "Lowered") -> str:
    kept = f"{len(lowered.kept)} of {lowered.nodes} nodes kept back" if lowered.kept else ""
    return "; ".join(filter(None, (f"{lowered.quantised} layers in INT8" if lowered.quantised else "", kept)))


def _kept(lowered: "Lowered") -> list[str]:
    """What is not of the precision, and why, in a sentence; the sidecar has all of it."""
    if not lowered.kept:
        return []
    shown = [f"{name} ({why})" for name, why in list(lowered.kept.items())[:SHOWN]]
    rest = len(lowered.kept) - len(shown)
    more = f"; {rest} more are listed in {lowered.onnx.name}.json" if rest else ""
    return [f"{lowered.precision} keeps back {', '.join(shown)}{more}."]


def _build(
    run_dir: Path, made: Mapping[str, Path], wanted: Wanted, remarks: list[str], failures: list[str]
) -> list[Row]:
    """The engines' rows; none, and a remark, where there is no TensorRT. One that cannot be built, or does not say what
    its ONNX file says, which only a GPU can tell, is a failure."""
    from deploy import trt
    from deploy.engine import build_engine, options
    from deploy.parity import ParityError
    from deploy.runtime import EngineError

    reports: dict[str, EngineReport] = {}
    for precision, onnx in made.items():
        try:
            reports[precision] = build_engine(
                onnx,
                run_dir / model_file(precision, ".engine"),
                **options(wanted.engine),
                precision=precision,
                reference=made["FP32"],
            )
        except (ParityError, EngineError, ValueError) as error:
            failures.append(f"{precision} engine: {error}")
        except trt.TensorRTMissing as missing:
            remarks.append(f"No engine was built: {missing}")
            return []
    if reports:
        remarks.append(_compared(reports))
    return [
        Row(f"{report.library} {precision}", report.engine, report.bytes, {}, note=f"built in {report.seconds:.1f} s")
        for precision, report in reports.items()
    ]


def _compared(reports: Mapping[str, "EngineReport"]) -> str:
    """How far each precision's engine was compared with its ONNX file, in a sentence."""
    said: dict[str, list[str]] = {}
    for precision, report in reports.items():
        said.setdefault(report.compared, []).append(precision)
    each = "; ".join(f"{', '.join(precisions)} {compared}" for compared, precisions in said.items())
    first = next(iter(reports.values()))
    return f"Engines of {first.library} {first.version}: {each}."
