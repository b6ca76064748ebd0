"""Sine position embedding of a padded feature map. Knows sizes and the share of them that is image; no features."""

import math

import torch
from torch import Tensor

# B image, H W cells of one feature level, F features of one axis


def sine_position(height: int, width: int, valid: Tensor, features: int) -> Tensor:
    """Position features of every cell (Carion et al. 2020, appendix A.4, scaled so that the unpadded image spans 2 pi).

    valid (B, 2): height and width of the unpadded part, in cells; float. Returns (B, height, width, features): the
    first half encodes y, the second x, sine and cosine in turn. Cells in the padding go on beyond 2 pi.
    """
    if features % 4:
        raise ValueError(f"`hidden_dim` must be a multiple of 4 for sine positions, but got hidden_dim={features}.")
    y_BHF = _axis(height, valid[:, 0], features // 2)
    x_BWF = _axis(width, valid[:, 1], features // 2)
    y_BHWF = y_BHF[:, :, None].expand(-1, -1, width, -1)
    x_BHWF = x_BWF[:, None].expand(-1, height, -1, -1)
    return torch.cat((y_BHWF, x_BHWF), -1)


def _axis(cells: int, valid_B: Tensor, features: int) -> Tensor:
    """(B, cells, features): sine and cosine of cell centres at `features` / 2 wavelengths from 2 pi to 20,000 pi."""
    centre = torch.arange(cells, dtype=valid_B.dtype, device=valid_B.device) + 0.5
    angle_BN = centre / (valid_B[:, None] + 1e-6) * (2 * math.pi)
    exponent = torch.arange(features // 2, dtype=valid_B.dtype, device=valid_B.device) * (2 / features)
    angle_BNF = angle_BN[:, :, None] / 10000.0**exponent
    return torch.stack((angle_BNF.sin(), angle_BNF.cos()), -1).flatten(-2)
