"""Score any predictor on COCO data: a checkpoint here, an ONNX file or an engine through `deploy`. One metric for all.

Knows detections and ground truth; does not know what runs the network.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.adopt import adopt
from model.batch import ImageBatch, normalise
from model.checkpoint import load_model
from model.data.coco import CocoIndex
from model.data.datamodule import CocoDataModule
from model.errors import SpecError
from model.latency import Latency, of_torch
from model.metrics import CocoEvaluator, CocoResult
from model.network.detr import DeformableDETR, Prediction
from model.network.postprocess import Detections, top_k
from model.progress import track
from model.report import write_result
from model.spec import ExperimentSpec
from model.status import StatusLog

Predictor = Callable[[Tensor, Tensor | None], Prediction]
"""(pixels (B, 3, H, W) normalised, padding mask (B, H, W) or None) -> Prediction."""
Detector = Callable[[ImageBatch], Detections]
"""The best `model.num_select` detections of each image of a batch, boxes in pixels of the original image."""
Split = Literal["test", "val"]


class Opened(NamedTuple):
    """The network of a checkpoint, where it is to run."""

    model: DeformableDETR
    spec: ExperimentSpec
    """The checkpoint's own, with the user's keys over it."""

    def score(self, *, split: Split = "test", cpus: int = 1) -> tuple[CocoResult, CocoEvaluator]:
        """Validation images are batched as in training."""
        index, batches = _scored(CocoDataModule(self.spec, cpus=cpus), split)
        return evaluate_detector(detector(torch_predictor(self.model), self.spec), batches, index, self.spec)

    def latency(self, *, split: Split = "test") -> Latency:
        """At `evaluate.latency_batch_sizes`, on the first images that are scored, as the network sees them then."""
        images = next(iter(_scored(CocoDataModule(self.spec, cpus=1), split)[1]))
        sizes = self.spec.dataset.augmentation
        pixels, mask = normalise(images.pixels, images.sizes, sizes.input_mean, sizes.input_std)
        return of_torch(self.model, pixels, mask, self.spec.evaluate.latency_batch_sizes)


def device(gpu_ids: Sequence[int]) -> torch.device:
    """The first of the GPUs that the spec names, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    first = gpu_ids[0] if gpu_ids else 0
    if first >= torch.cuda.device_count():
        raise SpecError(
            [f"`gpu_ids` must name GPUs of this machine, but names {first} of {torch.cuda.device_count()}."]
        )
    return torch.device("cuda", first)


def torch_predictor(model: torch.nn.Module) -> Predictor:
    """The detector itself, without gradients, on the device that its weights are on."""
    device = next(model.parameters()).device

    def predict(pixels: Tensor, mask: Tensor | None) -> Prediction:
        with torch.inference_mode():
            output = model(pixels.to(device), None if mask is None else mask.to(device))
        final = output.final
        return Prediction(final.logits.cpu(), final.boxes.cpu())

    return predict


def detector(predict: Predictor, spec: ExperimentSpec) -> Detector:
    """Normalisation before `predict` and selection after it, by the values of `spec`."""
    sizes = spec.dataset.augmentation

    def detect(batch: ImageBatch) -> Detections:
        prediction = predict(*normalise(batch.pixels, batch.sizes, sizes.input_mean, sizes.input_std))
        return top_k(prediction, original_sizes(batch), spec.model.num_select)

    return detect


def original_sizes(batch: ImageBatch) -> Tensor:
    """(B, 2): height, width in pixels of each image before it was resized."""
    return torch.tensor([target.orig_size for target in batch.targets])


def evaluate_detector(
    detect: Detector, batches: Iterable[ImageBatch], index: CocoIndex, spec: ExperimentSpec
) -> tuple[CocoResult, CocoEvaluator]:
    """Scores `detect` on every image of `index`. The evaluator is returned for its detections."""
    evaluator = CocoEvaluator(index, spec.dataset.eval_class_ids)
    threshold = spec.evaluate.conf_threshold
    for batch in track(batches, "evaluating", len(index.images), "images", size=lambda one: len(one.targets)):
        found = detect(batch)
        ids = [target.image_id for target in batch.targets]
        if threshold <= 0:
            evaluator.update(ids, found)
            continue
        for place, image_id in enumerate(ids):  # each image keeps its own number of detections
            keep = found.scores[place] >= threshold
            evaluator.update([image_id], Detections(*(part[place][keep][None] for part in found)))
    return evaluator.result(), evaluator


def open_checkpoint(path: Path, given: Mapping[str, Any]) -> Opened:
    """The checkpoint at `path`; `given` is what the user's spec says (data above all)."""
    model, checkpoint = load_model(path)
    spec = adopt(checkpoint, given)
    return Opened(model.to(device(spec.evaluate.gpu_ids)), spec)


def evaluate_checkpoint(
    path: Path, given: Mapping[str, Any], *, split: Split = "test", cpus: int = 1
) -> tuple[CocoResult, CocoEvaluator]:
    """The score of the checkpoint at `path` on a split."""
    return open_checkpoint(path, given).score(split=split, cpus=cpus)


def _scored(data: CocoDataModule, split: Split) -> tuple[CocoIndex, Iterable[ImageBatch]]:
    if split == "val":
        return data.val_index, data.eval_loader(data.val_index, data.spec.dataset.batch_size)
    return data.test_index, data.test_dataloader()


def evaluate(given: Mapping[str, Any], out: Path, *, cpus: int = 1) -> CocoResult:
    """The `evaluate` action on a PyTorch checkpoint. `out` gets what `record` writes."""
    status = StatusLog(out)
    with status.action("evaluate"):
        path = (given.get("evaluate") or {}).get("checkpoint")
        if not path or path == "???":
            raise SpecError(["`evaluate.checkpoint` must name a checkpoint, but is unset; set it, or give --from RUN."])
        result, evaluator = evaluate_checkpoint(Path(path), given, cpus=cpus)
        record(status, out, result, evaluator)
    return result


def record(status: StatusLog, out: Path, result: CocoResult, evaluator: CocoEvaluator) -> None:
    """What an evaluation leaves in `out`: metrics.json, results.json (the same numbers by TAO's names), per_class.csv,
    predictions.json (COCO results), worst_and_best.png, and test_mAP and test_mAP50 in status.json."""
    write_result(out, result, evaluator)
    kpi = {"test_mAP": result.numbers["mAP"], "test_mAP50": result.numbers["mAP50"]}
    status.write("RUNNING", "Test metrics generated.", kpi=kpi)
