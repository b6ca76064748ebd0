"""Box formats and overlaps. Knows four numbers a box; knows nothing of images, classes or the network."""

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """boxes (..., 4): cx, cy, w, h. Returns (..., 4): x0, y0, x1, y1 in the same unit and frame."""
    centre, extent = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - 0.5 * extent, centre + 0.5 * extent), -1)


def to_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """boxes (B, Q, 4): cx, cy, w, h as fractions of the unpadded image. sizes (B, 2): height, width in pixels of the
    image to draw on. Returns (B, Q, 4): x0, y0, x1, y1 in pixels of that image, not clipped."""
    height, width = sizes.to(boxes.dtype).unbind(-1)
    scale = torch.stack((width, height, width, height), -1)
    return to_corners(boxes) * scale[:, None]


def area(boxes: Tensor) -> Tensor:
    """boxes (..., 4): x0, y0, x1, y1. Returns (...): width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019, eq. 1 to 3), in [-1, 1].

    a, b (..., 4): x0, y0, x1, y1 with x0 <= x1 and y0 <= y1; their leading axes broadcast against each other.
    """
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    intersection, hull = inner.prod(-1), outer.prod(-1)
    union = area(a) + area(b) - intersection
    # Two boxes without extent have no union: a number far below any real area keeps 0 / 0 out of the loss.
    tiny = 1e-12
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
