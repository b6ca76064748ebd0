"""Score an exported file with `model`'s own post-processing and metric. Knows which size the file takes; no metric of
its own, so that a number here differs from PyTorch's only by what the file computes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from deploy import sidecar
from deploy.runtime import OnnxPredictor
from model.adopt import adopt
from model.batch import ImageBatch
from model.data.coco import CocoIndex
from model.data.datamodule import CocoDataModule
from model.errors import SpecError
from model.evaluate import Predictor, evaluate_predictor, write_result
from model.metrics import CocoEvaluator, CocoResult
from model.spec import ExperimentSpec
from model.status import StatusLog

Split = Literal["test", "val"]


def evaluate_onnx(
    onnx: Path, given: Mapping[str, Any], *, split: Split = "test", cpus: int = 1, threads: int | None = None
) -> tuple[CocoResult, CocoEvaluator]:
    """Scores an ONNX file on a split of the data that `given`, the user's nested spec, names. Every image is resized to
    the graph's size; every image counts, whatever is left for the last batch. threads: as OnnxPredictor's."""
    described = sidecar.require_onnx(onnx)
    spec = spec_for(onnx, described, given, "evaluate")
    return score(OnnxPredictor(onnx, threads=threads), spec, described.size, split=split, cpus=cpus)


def evaluate_action(given: Mapping[str, Any], out: Path, *, cpus: int = 1) -> CocoResult:
    """The `evaluate` action where `evaluate.checkpoint` is an ONNX file. `out` gets what that of a .pth file gets."""
    status = StatusLog(out)
    with status.action("evaluate"):
        result, evaluator = evaluate_onnx(named_onnx(given, "evaluate"), given, cpus=cpus)
        write_result(out, result, evaluator)
        kpi = {"test_mAP": result.numbers["mAP"], "test_mAP50": result.numbers["mAP50"]}
        status.write("RUNNING", "Test metrics generated.", kpi=kpi)
    return result


def score(
    predict: Predictor, spec: ExperimentSpec, size: tuple[int, int], *, split: Split = "test", cpus: int = 1
) -> tuple[CocoResult, CocoEvaluator]:
    """Scores any predictor as exported files are scored: images resized to exactly `size` (height, width), unpadded."""
    index, batches = images_of(spec, size, split=split, cpus=cpus)
    return evaluate_predictor(predict, batches, index, spec)


def images_of(
    spec: ExperimentSpec, size: tuple[int, int], *, split: Split = "test", cpus: int = 1
) -> tuple[CocoIndex, Iterable[ImageBatch]]:
    """A split's index and its batches, every image once and in order, resized to `size` (height, width)."""
    data = CocoDataModule(spec, cpus=cpus)
    index = data.test_index if split == "test" else data.val_index
    batch = spec.evaluate.batch_size if spec.evaluate.batch_size > 0 else spec.dataset.batch_size
    return index, data.eval_loader(index, batch, size)


def named_onnx(given: Mapping[str, Any], action: str) -> Path:
    named = (given.get(action) or {}).get("checkpoint")
    if not named or not str(named).endswith(".onnx"):
        raise SpecError([f"`{action}.checkpoint` must name an .onnx file here, but is {named!r}; set it."])
    return Path(named)


def spec_for(onnx: Path, described: sidecar.OnnxSidecar, given: Mapping[str, Any], action: str) -> ExperimentSpec:
    """The user's spec over what the file says of itself. Raises SpecError where the user wants another input size."""
    for name, own in zip(("input_height", "input_width"), described.size, strict=True):
        asked = (given.get(action) or {}).get(name)
        if asked is not None and asked != own:
            problem = f"`{action}.{name}` must be that of the ONNX file, but is {asked} and `{onnx}` takes {own}; "
            raise SpecError([problem + "leave it out, or export at the size wanted."])
    return adopt(described.as_checkpoint(onnx), given)
