"""One-to-one assignment of objects to queries. Knows predictions and truths of a batch; knows nothing of gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.batch import Target
from model.network.boxes import giou, to_corners

# L decoder layer, B image, Q query, C class, N objects of the fullest image, M matched pairs of a layer


class Costs(NamedTuple):
    """What a pair of query and object costs; the spec's loss coefficients, and the focal loss's alpha."""

    label: float
    box: float
    giou: float
    alpha: float


class Matches(NamedTuple):
    """Pairs of every decoder layer. Each layer has the same number of pairs in each image, so one tensor holds all."""

    image: Tensor
    """(L, M) int64: index of the image in the batch."""
    query: Tensor
    """(L, M) int64: index of the query."""
    target: Tensor
    """(L, M) int64: index among the objects of all images, laid end to end."""


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Sequence[Target], costs: Costs) -> Matches:
    """The cheapest assignment for each layer and image, found alone (Carion et al. 2020, eq. 1).

    logits (L, B, Q, C) before the sigmoid; boxes (L, B, Q, 4) cx, cy, w, h in [0, 1]. Where an image has more objects
    than queries, the objects that fit worst stay unmatched.
    """
    counts = [len(target.labels) for target in targets]
    layers = len(logits)
    if not sum(counts):
        none = torch.zeros(layers, 0, dtype=torch.int64, device=logits.device)
        return Matches(none, none, none)
    cost_LBQN = pair_costs(logits.float(), boxes.float(), *_padded(targets, max(counts)), costs)
    # A broken network gives NaN; matched anyhow, it reaches the loss, where the training loop names the images.
    cost = torch.nan_to_num(cost_LBQN, nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
    starts = np.cumsum([0, *counts])
    rows = []
    for layer in range(layers):
        triples = []
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(cost[layer, image, :, :count])
            triples.append(np.stack((np.full_like(query, image), query, target + starts[image])))
        rows.append(np.concatenate(triples, 1))
    found = torch.from_numpy(np.stack(rows, 1)).to(logits.device)
    return Matches(*found.unbind(0))


def pair_costs(logits: Tensor, boxes: Tensor, label_BN: Tensor, box_BN4: Tensor, costs: Costs) -> Tensor:
    """(L, B, Q, N): what it costs to give each query each object of its own image."""
    # Focal loss of the object's class if the query took it, less what it pays for that class if it did not.
    taken = costs.alpha * torch.sigmoid(-logits) ** 2 * F.softplus(-logits)
    left = (1 - costs.alpha) * torch.sigmoid(logits) ** 2 * F.softplus(logits)
    index_LBQN = label_BN[None, :, None].expand(*logits.shape[:3], -1)
    label_LBQN = (taken - left).gather(-1, index_LBQN)
    query_LBQ14, object_1B1N4 = boxes[..., None, :], box_BN4[None, :, None]
    box_LBQN = (query_LBQ14 - object_1B1N4).abs().sum(-1)
    giou_LBQN = giou(to_corners(query_LBQ14), to_corners(object_1B1N4))
    return costs.label * label_LBQN + costs.box * box_LBQN - costs.giou * giou_LBQN


def _padded(targets: Sequence[Target], most: int) -> tuple[Tensor, Tensor]:
    """Labels (B, most) and boxes (B, most, 4), zero where an image has fewer objects."""
    label_BN = torch.stack([F.pad(target.labels, (0, most - len(target.labels))) for target in targets])
    box_BN4 = torch.stack([F.pad(target.boxes, (0, 0, 0, most - len(target.boxes))) for target in targets])
    return label_BN, box_BN4.float()
