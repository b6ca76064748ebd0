"""Multi-scale deformable attention. Knows feature levels and sampling points; knows nothing of classes or ONNX.

One module holds the parameters; the sampling itself is a function of `SAMPLERS`, chosen by name, or `bags`, so that a
faster or more exportable form changes neither weights nor callers.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.bags import bags
from model.network.levels import Levels

# B image, Q query, S token of the flattened levels, H head, D feature of one head, C = H x D, L level, P point


WIDE = 16
"""Features of one head from which `bags` is the faster form on a CPU; below, `gridsample` is."""


def gridsample(value_BSHD: Tensor, levels: Levels, location_BQHLP2: Tensor, weight_BQHLP: Tensor) -> Tensor:
    """Bilinear samples of each head's feature maps, summed with their weights (Zhu et al. 2021, eq. 3).

    location: x, y as fractions of the whole map, padding included; a cell's centre is at its index + 0.5, and what
    lies outside the map is zero. Returns (B, Q, C).

    Maps keep the head's features innermost and the points run along the grid's height: of the simple forms the
    fastest on a CPU, forward and backward (1.2 to 1.8 times the loop that stacks all levels before the sum).
    """
    batch, queries, heads, _, _ = weight_BQHLP.shape
    features = value_BSHD.shape[-1]
    value_NSD = value_BSHD.transpose(1, 2).flatten(0, 1)  # N = B x H
    grid_NLPQ2 = (2 * location_BQHLP2 - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    weight_NLPQ = weight_BQHLP.permute(0, 2, 3, 4, 1).flatten(0, 1)
    total: Tensor | None = None
    for level, ((height, width), start) in enumerate(zip(levels.sizes, levels.starts, strict=True)):
        map_NDhw = value_NSD[:, start : start + height * width].view(-1, height, width, features).permute(0, 3, 1, 2)
        sample_NDPQ = F.grid_sample(map_NDhw, grid_NLPQ2[:, level], padding_mode="zeros", align_corners=False)
        part_NDQ = (sample_NDPQ * weight_NLPQ[:, level, None]).sum(2)
        total = part_NDQ if total is None else total + part_NDQ
    assert total is not None
    return total.reshape(batch, heads * features, queries).transpose(1, 2)


def gather(value_BSHD: Tensor, levels: Levels, location_BQHLP2: Tensor, weight_BQHLP: Tensor) -> Tensor:
    """What `gridsample` computes, by arithmetic and one gather a level: the four cells around each point are rows of
    one table. Every runtime has these, and in a trace all sizes but the batch's are numbers."""
    batch, heads, features = value_BSHD.shape[0], *value_BSHD.shape[2:]
    tokens = sum(height * width for height, width in levels.sizes)
    table_RD = value_BSHD.transpose(1, 2).reshape(-1, features)  # row (image x H + head) x S + token
    first_B1H1 = torch.arange(batch * heads, device=value_BSHD.device).view(-1, 1, heads, 1) * tokens
    total: Tensor | None = None
    for level, ((height, width), start) in enumerate(zip(levels.sizes, levels.starts, strict=True)):
        x_BQHP, y_BQHP = location_BQHLP2[:, :, :, level].unbind(-1)
        cells, shares = [], []
        for row_BQHP, down_BQHP in _neighbours(y_BQHP, height):
            down_BQHP = down_BQHP * weight_BQHLP[:, :, :, level]
            for column_BQHP, across_BQHP in _neighbours(x_BQHP, width):
                cells.append(row_BQHP * width + column_BQHP)  # whole numbers, exact in float32 up to 16 million
                shares.append(down_BQHP * across_BQHP)
        # N = 4 x P, the corners of all points
        corner_BQHND = F.embedding(torch.cat(cells, -1).long() + (first_B1H1 + start), table_RD)
        part_BQHD = (torch.cat(shares, -1)[..., None, :] @ corner_BQHND)[..., 0, :]
        total = part_BQHD if total is None else total + part_BQHD
    assert total is not None
    return total.flatten(-2)


def _neighbours(location: Tensor, cells: int) -> list[tuple[Tensor, Tensor]]:
    """Along one axis the two cells between whose centres each point lies: index and share in the point's value. A cell
    outside of the map has the share zero and the index of the nearest one inside."""
    place = location * cells - 0.5
    before = place.floor()
    found = []
    for index, share in ((before, 1 - (place - before)), (before + 1, place - before)):
        inside = index.clamp(0, cells - 1)
        found.append((inside, torch.where(inside == index, share, 0.0)))
    return found


def plugin(value_BSHD: Tensor, levels: Levels, location_BQHLP2: Tensor, weight_BQHLP: Tensor) -> Tensor:
    """What `gridsample` computes. In a trace it is one operator, so that an exporter can write the one node that a
    runtime has for all of it."""
    if not torch.jit.is_tracing():
        return gridsample(value_BSHD, levels, location_BQHLP2, weight_BQHLP)
    sizes_L2 = torch.tensor(levels.sizes, dtype=torch.int32)
    starts_L = torch.tensor(levels.starts, dtype=torch.int32)
    sampled_BQHD: Tensor = _whole(value_BSHD, sizes_L2, starts_L, location_BQHLP2, weight_BQHLP)
    return sampled_BQHD.flatten(-2)


WHOLE = "ddetr::deformable_attention"
"""Name of the operator that `plugin` is in a trace."""


@torch.library.custom_op(WHOLE, mutates_args=())
def _whole(
    value_BSHD: Tensor, sizes_L2: Tensor, starts_L: Tensor, location_BQHLP2: Tensor, weight_BQHLP: Tensor
) -> Tensor:
    levels = Levels(tuple((height, width) for height, width in sizes_L2.tolist()), tuple(starts_L.tolist()))
    return gridsample(value_BSHD, levels, location_BQHLP2, weight_BQHLP).unflatten(-1, value_BSHD.shape[2:])


Sampler = Callable[[Tensor, Levels, Tensor, Tensor], Tensor]

SAMPLERS: dict[str, Sampler] = {"gridsample": gridsample, "gather": gather, "plugin": plugin}
"""The forms that can be traced."""


class MSDeformAttn(nn.Module):
    """Each query reads a few learned points around its reference, on every level (Zhu et al. 2021, section 4.1)."""

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"`hidden_dim` must be a multiple of `nheads`, but got hidden_dim={dim}, nheads={heads}.")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampler: str | None = None
        """A name of SAMPLERS for a trace; None: whatever form takes least on this device."""
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal weights, and points that start out along one direction a head, 1 to P cells away (paper, A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle_H = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_H2 = torch.stack((angle_H.cos(), angle_H.sin()), -1)
        direction_H2 = direction_H2 / direction_H2.abs().amax(-1, keepdim=True)
        distance_P = torch.arange(1, self.points + 1)
        offset_HLP2 = direction_H2[:, None, None] * distance_P[:, None].expand(self.levels, -1, 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offset_HLP2.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, levels: Levels, padding: Tensor | None
    ) -> Tensor:
        """query (B, Q, C). tokens (B, S, C), the flattened levels. padding (B, S) bool, True at tokens without image.

        reference (B or 1, Q, L, 2 or 4): a point x, y, or a box cx, cy, w, h, as fractions of each level's whole map.
        Returns (B, Q, C).
        """
        value_BSC = self.value_proj(tokens)
        if padding is not None:
            value_BSC = value_BSC.masked_fill(padding[..., None], 0.0)
        read = self._in_bags if self._takes_bags(value_BSC) else self._by_location
        return self.output_proj(read(value_BSC, query, reference, levels))

    def _by_location(self, value_BSC: Tensor, query: Tensor, reference: Tensor, levels: Levels) -> Tensor:
        batch, queries, _ = query.shape
        shape = (batch, queries, self.heads, self.levels, self.points)
        offset_BQHLP2 = self.sampling_offsets(query).view(*shape, 2)
        weight_BQHLP = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(-1).view(shape)
        location_BQHLP2 = self._locations(reference[:, :, None, :, None], offset_BQHLP2, levels)
        # Under autocast projections are half precision; coordinates are not, and sampling follows them.
        dtype = location_BQHLP2.dtype
        value_BSHD = value_BSC.view(batch, -1, self.heads, value_BSC.shape[-1] // self.heads).to(dtype)
        sample = SAMPLERS[self.sampler or "gridsample"]
        return sample(value_BSHD, levels, location_BQHLP2, weight_BQHLP.to(dtype))

    def _locations(self, reference: Tensor, offset_BQHLP2: Tensor, levels: Levels) -> Tensor:
        """Offsets count cells from a point, or half box extents (shared by the P points) from a box's centre."""
        if reference.shape[-1] == 4:
            return reference[..., :2] + offset_BQHLP2 * (reference[..., 2:] * (0.5 / self.points))
        cell = [(1.0 / width, 1.0 / height) for height, width in levels.sizes]
        cell_L12 = torch.tensor(cell, dtype=reference.dtype).to(reference.device, non_blocking=True)[:, None]
        return reference + offset_BQHLP2 * cell_L12

    def _takes_bags(self, value_BSC: Tensor) -> bool:
        """Whether `bags` is asked for and the faster form here."""
        free = self.sampler is None and not torch.jit.is_tracing()
        return free and value_BSC.device.type == "cpu" and value_BSC.shape[-1] // self.heads >= WIDE

    def _in_bags(self, value_BSC: Tensor, query: Tensor, reference: Tensor, levels: Levels) -> Tensor:
        planes_3BHQK = self._planes(query, reference, levels)
        return bags(value_BSC.unflatten(-1, (self.heads, -1)).to(planes_3BHQK.dtype), levels, planes_3BHQK)

    def _planes(self, query: Tensor, reference: Tensor, levels: Levels) -> Tensor:
        """(3, B, H, Q, K): what `bags` takes. One product gives all three, in planes rather than point by point."""
        offsets, weights = self.sampling_offsets, self.attention_weights
        x_rows, y_rows = offsets.weight.unflatten(0, (-1, 2)).unbind(1)
        x_bias, y_bias = offsets.bias.unflatten(0, (-1, 2)).unbind(1)
        made = F.linear(query, torch.cat((x_rows, y_rows, weights.weight)), torch.cat((x_bias, y_bias, weights.bias)))
        made_3BHQK = made.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Under autocast projections are half precision; coordinates are not.
        planes = made_3BHQK.to(reference.dtype, copy=True, memory_format=torch.contiguous_format)
        size_L2 = torch.tensor([(width, height) for height, width in levels.sizes], dtype=reference.dtype)
        if reference.shape[-1] == 4:
            extent = reference[..., 2:] * (size_L2 * (0.5 / self.points))
            planes = planes * F.pad(self._plane(extent), (0, 0) * 4 + (0, 1), value=1.0)
        centre = reference[..., :2] * size_L2 - 0.5
        return planes.add_(F.pad(self._plane(centre), (0, 0) * 4 + (0, 1)))

    def _plane(self, each_BQL2: Tensor) -> Tensor:
        """(2, B, 1, Q, K): x and y that the points of a level share."""
        return each_BQL2.permute(3, 0, 1, 2).repeat_interleave(self.points, -1)[:, :, None]
