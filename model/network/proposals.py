"""Where a two-stage detector looks first: one candidate box a token. Knows levels and boxes; no features, no heads."""

import math

import torch
from torch import Tensor

from model.network.levels import Levels

# B image (1 where all images share it), S token of the flattened levels, Q query, F features of one coordinate

EXTENT = 0.05
"""Width and height of a candidate on the first level, as a fraction of the image; each level doubles it."""
INSIDE = (0.01, 0.99)
"""A candidate with a coordinate outside has no finite logit worth correcting and is no candidate at all."""
NOWHERE = 1e4
"""The logit of what is no candidate: no correction moves its box from 1, and no gradient comes of it."""


def candidates(levels: Levels, centre_BS2: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes before the sigmoid (B, S, 4), cx, cy, w, h as fractions of the unpadded image, and which of them count
    (B, S, 1), bool (Zhu et al. 2021, A.4). Centres beyond 1 lie in the padding and do not count."""
    extent = [
        torch.full((height * width,), EXTENT * 2.0**level, dtype=centre_BS2.dtype)
        for level, (height, width) in enumerate(levels.sizes)
    ]
    extent_1S2 = torch.cat(extent).to(centre_BS2.device, non_blocking=True)[None, :, None].expand(-1, -1, 2)
    box_BS4 = torch.cat((centre_BS2, extent_1S2.expand(centre_BS2.shape[0], -1, -1)), -1)
    low, high = INSIDE
    counts_BS1 = ((box_BS4 > low) & (box_BS4 < high)).all(-1, keepdim=True)
    inside_BS4 = box_BS4.clamp(low, high)
    logit_BS4 = torch.log(inside_BS4 / (1 - inside_BS4))
    return logit_BS4.masked_fill(~counts_BS1, NOWHERE), counts_BS1


def sine_boxes(box_BQ4: Tensor, features: int) -> Tensor:
    """(B, Q, 4 x features): each coordinate at `features` / 2 wavelengths, sine and cosine in
    turn, as the positions of tokens are encoded."""
    exponent_N = torch.arange(features // 2, dtype=box_BQ4.dtype, device=box_BQ4.device) * (2 / features)
    angle_BQ4N = box_BQ4[..., None] * (2 * math.pi) / 10000.0**exponent_N
    return torch.stack((angle_BQ4N.sin(), angle_BQ4N.cos()), -1).flatten(2)
