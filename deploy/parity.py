"""Whether an exported graph says what PyTorch says. Knows two predictors and two photographs; knows no metric.

What the graph does by itself is compared too: its normalisation with `model.batch`, its selection with
`model.network.postprocess`.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from deploy.runtime import OUTPUTS, SELECTED, GraphPredictor, Outputs
from model.batch import normalise
from model.data.transforms import Sample, resize
from model.errors import Kind
from model.evaluate import Predictor
from model.network.boxes import to_pixels
from model.network.detr import Prediction
from model.network.postprocess import top_k
from model.spec import AugmentationSpec

# B image, Q query, C class, K detection

TOLERANCE = 1e-4
"""Largest absolute difference allowed, of a logit or score, and of a box coordinate as a fraction of the image."""

Differences = Mapping[str, float]
"""Largest absolute differences over all images and queries: logits or scores, and boxes."""


class ParityError(RuntimeError):
    """An exported file does not say what its checkpoint says; it must not be used."""

    kind: ClassVar[Kind] = "run"


def compare(
    reference: Predictor, graph: GraphPredictor, pixels: Tensor, sizes: AugmentationSpec, num_select: int, *, name: str
) -> Differences:
    """Runs both on one image alone, and on as many as the graph takes at once (on all of `pixels` where it takes any
    number). Raises ParityError when a difference is over TOLERANCE.

    pixels (B, 3, H, W) uint8 RGB of the graph's size; sizes: mean and std; num_select: of a graph that selects.
    """
    found: dict[str, float] = {}
    for count in sorted({1, graph.batch_range[1] or len(pixels)}):
        batch = pixels[torch.arange(count) % len(pixels)]
        normal, _ = normalise(batch, torch.tensor([graph.size]).expand(count, 2), sizes.input_mean, sizes.input_std)
        outputs = graph.run(batch if graph.dtype == torch.uint8 else normal)
        expected = reference(normal, None)
        this = selected(expected, outputs, graph.size, num_select) if "scores" in outputs else raw(expected, outputs)
        # A tolerance is checked per batch, so that a NaN cannot hide behind the larger of two numbers.
        if not all(value <= TOLERANCE for value in this.values()):
            said = " and ".join(f"its {what} differ by up to {value:.3g}" for what, value in this.items())
            raise ParityError(
                f"`{name}` must agree with PyTorch to {TOLERANCE:g}, but on a batch of {count} {said}; do not use this "
                "file, and report the model and the versions of torch and onnxruntime."
            )
        found = {what: max(value, found.get(what, 0.0)) for what, value in this.items()}
    return found


def raw(expected: Prediction, found: Outputs) -> Differences:
    logits, boxes = (float((a - found[name]).abs().max()) for a, name in zip(expected, OUTPUTS, strict=True))
    return {"logits": logits, "boxes": boxes}


def selected(expected: Prediction, found: Outputs, size: tuple[int, int], num_select: int) -> Differences:
    """scores: of the best, the second best and so on. boxes: of each detection from the nearest query that has its
    score for its class: of two that tie within the tolerance either may come first. Infinite where a label is no class.
    size: height, width that boxes are pixels of."""
    scores_BK, labels_BK, boxes_BK4 = (found[name] for name in SELECTED)
    size_12 = torch.tensor([size])
    best = top_k(expected, size_12, num_select)
    classes = expected.logits.shape[2]
    if scores_BK.shape != best.scores.shape or not bool(((labels_BK >= 0) & (labels_BK < classes)).all()):
        return {"scores": float("inf"), "boxes": float("inf")}
    score_BQK = expected.logits.sigmoid().gather(2, labels_BK[:, None].expand(-1, expected.logits.shape[1], -1))
    box_BQ4, pixels_4 = to_pixels(expected.boxes, size_12), size_12.flip(1).repeat(1, 2)
    off_BQK = ((box_BQ4[:, :, None] - boxes_BK4[:, None]) / pixels_4).abs().amax(-1)
    worst = torch.maximum(off_BQK, (score_BQK - scores_BK[:, None]).abs()).amin(1).max()
    return {"scores": float((scores_BK - best.scores).abs().max()), "boxes": float(worst)}


def photographs(height: int, width: int) -> Tensor:
    """(3, 3, height, width) uint8 RGB: the two photographs that come with scikit-learn, and one of them mirrored, so
    that a comparison on real pixels needs no data set."""
    temple, flower = load_sample_images().images
    images = (temple, flower, np.ascontiguousarray(temple[:, ::-1]))
    nothing = np.empty((0, 4)), np.empty(0, dtype=np.int64)
    pixels = np.stack([resize(Sample(image, *nothing), height, width).image for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
