"""The training loss: match, then focal loss for classes and L1 and GIoU for boxes, on every supervised decoder layer.

Knows predictions and truths; knows nothing of optimizers or of how the predictions were made.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch import Target
from model.errors import DataError
from model.network.boxes import giou, to_corners
from model.network.detr import Output, Prediction
from model.network.matcher import Costs, Matches, match
from model.spec import ModelSpec

# L decoder layer (the final one last), B image, Q query, C class, M matched pairs of a layer


class Losses(NamedTuple):
    """The loss of a batch."""

    total: Tensor
    """(): the terms times their coefficients, summed over all layers; carries the gradient."""
    terms: dict[str, Tensor]
    """(): loss_ce, loss_bbox, loss_giou of the final layer, the same with _0, _1, ... of the earlier ones and
    _enc of the encoder's proposals, before coefficients; class_error, per cent of matched queries whose best class is
    wrong. Detached."""


class Criterion(nn.Module):
    """The set loss of Carion et al. 2020 (eq. 2) with the focal loss of Zhu et al. 2021 (A.3); no parameters.

    Each layer is matched alone. The loss coefficients are the matching costs too, and both use `focal_alpha`.
    """

    def __init__(self, spec: ModelSpec, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.alpha = spec.focal_alpha
        self.costs = Costs(spec.cls_loss_coef, spec.bbox_loss_coef, spec.giou_loss_coef, spec.focal_alpha)
        coefficients = {
            "labels": {"loss_ce": spec.cls_loss_coef},
            "boxes": {"loss_bbox": spec.bbox_loss_coef, "loss_giou": spec.giou_loss_coef},
        }
        if not spec.loss_types or not set(spec.loss_types) <= set(coefficients):
            raise ValueError(
                f"`model.loss_types` must name some of {', '.join(coefficients)}, but is {list(spec.loss_types)}."
            )
        self.coefficients = {name: value for kind in spec.loss_types for name, value in coefficients[kind].items()}

    def forward(self, output: Output, targets: Sequence[Target], num_boxes: float | Tensor | None = None) -> Losses:
        """targets: one an image, in the order of the batch. Computed in float32 whatever the predictions' precision.

        num_boxes: what the sums over boxes are divided by; unset: the objects of these targets, over all processes.
        """
        check_labels(targets, self.num_classes)
        if num_boxes is None:
            num_boxes = mean_boxes(sum(len(target.labels) for target in targets), output.final.logits.device)
        layers = (*output.auxiliary, output.final)
        by_layer, error = self._layers(layers, targets, num_boxes)
        total = self._weighted(by_layer)
        terms = {name: loss[-1].detach() for name, loss in by_layer.items()}
        for index in range(len(layers) - 1):
            terms |= {f"{name}_{index}": loss[index].detach() for name, loss in by_layer.items()}
        if output.proposals is not None:
            # The encoder only tells objects from background, by the first class (Zhu et al. 2021, A.4).
            objects = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
            of_encoder, _ = self._layers((output.proposals,), objects, num_boxes)
            total = total + self._weighted(of_encoder)
            terms |= {f"{name}_enc": loss[0].detach() for name, loss in of_encoder.items()}
        if "loss_ce" in self.coefficients:
            terms["class_error"] = error
        return Losses(total, terms)

    def _layers(
        self, layers: Sequence[Prediction], targets: Sequence[Target], num_boxes: float | Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Each term (L,), before coefficients, and the class error () of the last layer."""
        logits = torch.stack([layer.logits for layer in layers]).float()
        boxes = torch.stack([layer.boxes for layer in layers]).float()
        label = torch.cat([target.labels for target in targets])
        box = torch.cat([target.boxes for target in targets]).float()
        matches = match(logits, boxes, targets, self.costs)
        share = 1.0 / num_boxes
        by_layer: dict[str, Tensor] = {}
        if "loss_ce" in self.coefficients:
            by_layer["loss_ce"] = share * focal_loss(logits, one_hot(logits, matches, label), self.alpha).sum((1, 2, 3))
        if "loss_bbox" in self.coefficients:
            paired = _paired(boxes, matches)
            truth = box[matches.target]
            by_layer["loss_bbox"] = share * (paired - truth).abs().sum((1, 2))
            by_layer["loss_giou"] = share * (1 - giou(to_corners(paired), to_corners(truth))).sum(1)
        return by_layer, class_error(logits, matches, label)

    def _weighted(self, by_layer: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.coefficients[name] * loss.sum() for name, loss in by_layer.items()]).sum()


def focal_loss(logits: Tensor, truth: Tensor, alpha: float) -> Tensor:
    """Sigmoid focal loss of each element with gamma 2 (Lin et al. 2017, eq. 5). truth: 1 or 0, shaped as `logits`."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    missed = probability + truth - 2 * probability * truth  # 1 - p_t
    weight = (1 - alpha) + (2 * alpha - 1) * truth  # alpha_t
    return weight * missed.square() * entropy


def one_hot(logits: Tensor, matches: Matches, label: Tensor) -> Tensor:
    """(L, B, Q, C) like `logits`: 1 at the class of each matched query's object, 0 elsewhere."""
    truth = torch.zeros_like(logits)
    layer = torch.arange(len(logits), device=logits.device)[:, None]
    truth[layer, matches.image, matches.query, label[matches.target]] = 1.0
    return truth


def class_error(logits: Tensor, matches: Matches, label: Tensor) -> Tensor:
    """(): per cent of the final layer's matched queries whose best class is not their object's; 0 with no objects."""
    best = logits[-1, matches.image[-1], matches.query[-1]].detach().argmax(-1)
    wrong = (best != label[matches.target[-1]]).float()
    return 100 * wrong.sum() / max(len(wrong), 1)


def mean_boxes(count: int, device: torch.device) -> float | Tensor:
    """Objects per process, at least 1: the loss of a global batch must not depend on how it is split."""
    if not (dist.is_available() and dist.is_initialized()):
        return float(max(count, 1))
    total = torch.tensor([float(count)], device=device)
    dist.all_reduce(total)
    return (total.clamp(min=1.0) / dist.get_world_size())[0]


def check_labels(targets: Sequence[Target], num_classes: int) -> None:
    """Refuses a label that has no logit, before an index kernel meets it."""
    label = torch.cat([target.labels for target in targets])
    if not bool(((label < 0) | (label >= num_classes)).any()):
        return
    for target in targets:
        wrong = sorted({int(value) for value in target.labels if not 0 <= int(value) < num_classes})
        if wrong:
            raise DataError(
                f"category ids must be within 0..{num_classes - 1}, but image {target.image_id} has {wrong}; set "
                "`dataset.num_classes` to the largest category id plus one."
            )


def _paired(value: Tensor, matches: Matches) -> Tensor:
    """value (L, B, Q, ...) at the matched queries: (L, M, ...)."""
    layer = torch.arange(len(value), device=value.device)[:, None]
    return value[layer, matches.image, matches.query]
