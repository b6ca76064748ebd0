"""What the data hands to the network: uint8 batches with their unpadded sizes. Knows no files and no layers."""

from typing import NamedTuple

import torch
from torch import Tensor

# B image, H W pixels of the padded batch, N boxes of one image


class Target(NamedTuple):
    """The truth of one image."""

    labels: Tensor
    """(N,) int64: COCO category ids, used as class indices without remapping."""
    boxes: Tensor
    """(N, 4) float32: cx, cy, w, h as fractions of the unpadded, augmented image."""
    image_id: int
    """COCO image id, unique over all sources; or UNREADABLE."""
    orig_size: tuple[int, int]
    """Height and width in pixels before augmentation."""


class ImageBatch(NamedTuple):
    """Images of unequal size in one tensor, padded at the right and the bottom."""

    pixels: Tensor
    """(B, 3, H, W) uint8 RGB, zero where padded."""
    sizes: Tensor
    """(B, 2) int64: height and width of the image inside its padding."""
    targets: tuple[Target, ...]


def padding_mask(sizes: Tensor, height: int, width: int) -> Tensor:
    """sizes (B, 2): height, width in pixels. Returns (B, height, width) bool, True where there is only padding."""
    rows = torch.arange(height, device=sizes.device)
    columns = torch.arange(width, device=sizes.device)
    below = rows[None, :] >= sizes[:, :1]
    right = columns[None, :] >= sizes[:, 1:]
    return below[:, :, None] | right[:, None, :]


def normalise(
    pixels: Tensor, sizes: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor | None]:
    """pixels (B, 3, H, W) uint8, sizes (B, 2). Returns float32 pixels / 255, shifted by `mean` and scaled by `std`
    per channel, zero where padded, and the padding mask (B, H, W), or None when no image is padded.
    """
    height, width = pixels.shape[-2:]
    shift = torch.tensor(mean, device=pixels.device).view(3, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(3, 1, 1)
    normal = (pixels.float() / 255.0 - shift) / scale
    mask = padding_mask(sizes, height, width)
    if not bool(mask.any()):
        return normal, None
    return normal.masked_fill(mask[:, None], 0.0), mask
