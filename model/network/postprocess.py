"""Predictions to detections. Knows scores and boxes; knows nothing of thresholds, files or the network's inside."""

from typing import NamedTuple

from torch import Tensor

from model.network.boxes import to_pixels
from model.network.detr import Prediction

# B image, Q query, C class, K detection


class Detections(NamedTuple):
    """The best detections of each image, best first."""

    scores: Tensor
    """(B, K) in [0, 1]."""
    labels: Tensor
    """(B, K) int64: category ids."""
    boxes: Tensor
    """(B, K, 4): x0, y0, x1, y1 in pixels of the original image, not clipped."""


def top_k(prediction: Prediction, sizes: Tensor, num_select: int) -> Detections:
    """The `num_select` best pairs of query and class; one query may give several (Zhu et al. 2021, released code).

    sizes (B, 2): height, width in pixels of each image before augmentation.
    """
    logits = prediction.logits.float()
    pairs, classes = logits.shape[1] * logits.shape[2], logits.shape[2]
    if num_select > pairs:
        raise ValueError(
            f"`num_select` must not exceed num_queries x num_classes = {pairs}, but is {num_select}; lower it."
        )
    scores, index_BK = logits.flatten(1).sigmoid().topk(num_select, dim=1)
    query_BK4 = (index_BK // classes)[..., None].expand(-1, -1, 4)
    boxes = to_pixels(prediction.boxes.float(), sizes).gather(1, query_BK4)
    return Detections(scores, index_BK % classes, boxes)
