"""The sampling of deformable attention as weighted sums of table rows: on a CPU the fastest form of wide heads.

The four cells around each point are rows of one table, and what a query reads is one bag of rows (`F.embedding_bag`),
so that a row is read once and whole. The backward pass computes places and shares again in place of keeping them. Sums
have one order, whatever the number of threads. Knows levels and points; knows nothing of the module around it.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.levels import Levels

# N map (image x head), Q query, M row (map x query), K point of all levels, D feature of one head, R cell of a canvas,
# X axis (x, y)

BLOCK = 1 << 19
"""Rows read per block of maps: 2 MiB in each of the dozen tensors at work, so that they stay in the cache."""


class Canvas:
    """All levels of a map under each other in a border of zeros, so that every point has four cells around it."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.width = max(width for _, width in levels.sizes) + 2
        heights = [height + 1 for height, _ in levels.sizes]  # a border is shared with the next level
        self.tops = [sum(heights[:level]) for level in range(len(heights))]
        self.height = sum(heights) + 1
        self.cells = self.height * self.width
        self.shifts = (0, 1, self.width, self.width + 1)
        """From a point's upper left cell to its four."""

    def lay(self, value_NSD: Tensor) -> Tensor:
        """(N x R, D)."""
        maps, _, features = value_NSD.shape
        canvas = value_NSD.new_zeros(maps, self.height, self.width, features)
        for inside, tokens in self._parts(canvas, value_NSD):
            inside.copy_(tokens)
        return canvas.view(-1, features)

    def lift(self, canvas_RD: Tensor, into_NSD: Tensor) -> None:
        """Copies what `lay` puts down, without the borders."""
        canvas = canvas_RD.view(len(into_NSD), self.height, self.width, -1)
        for inside, tokens in self._parts(canvas, into_NSD):
            tokens.copy_(inside)

    def _parts(self, canvas: Tensor, value_NSD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for (height, width), start, top in zip(self.levels.sizes, self.levels.starts, self.tops, strict=True):
            tokens = value_NSD[:, start : start + height * width]
            yield canvas[:, top + 1 : top + 1 + height, 1 : 1 + width], tokens.unflatten(1, (height, width))


class Places(NamedTuple):
    """Where points lie on the canvases of a block of maps."""

    cell: Tensor
    """(M, K) int32: row of the table that is the upper left of the four around the point."""
    beyond: Tensor
    """(2, M, K): how far the point is from that cell's centre, in cells."""
    moves: Tensor
    """(2, M, K): 1 where moving the point changes what it reads, 0 far outside."""


class Sampling:
    """One call's shapes and constants."""

    def __init__(self, levels: Levels, location_BQHLP2: Tensor) -> None:
        self.batch, self.queries, self.heads, _, points, _ = location_BQHLP2.shape
        self.canvas = Canvas(levels)
        self.points = points * len(levels.sizes)
        heights, widths = zip(*levels.sizes, strict=True)
        size_XL = torch.tensor((widths, heights), dtype=location_BQHLP2.dtype)
        self.size_X1K = size_XL.repeat_interleave(points, 1)[:, None]
        self.first_K = torch.tensor(self.canvas.tops, dtype=torch.int32).repeat_interleave(points) + 1

    def by_map(self, x: Tensor) -> Tensor:
        """(B, Q, H, ...) as (N, Q, ...)."""
        return x.transpose(1, 2).flatten(0, 1)

    def by_query(self, x: Tensor) -> Tensor:
        """(N, Q, ...) as (B, Q, H, ...)."""
        return x.unflatten(0, (self.batch, self.heads)).transpose(1, 2)

    def axes(self, location_BQHLP2: Tensor) -> Tensor:
        """(2, N, Q, K)."""
        return location_BQHLP2.flatten(3, 4).permute(4, 0, 2, 1, 3).flatten(1, 2)

    def blocks(self) -> Iterator[slice]:
        """Of maps, at least one each."""
        maps, step = self.batch * self.heads, max(1, BLOCK // max(1, 4 * self.queries * self.points))
        return (slice(start, min(start + step, maps)) for start in range(0, maps, step))

    def places(self, axes_XNQK: Tensor) -> Places:
        maps = axes_XNQK.shape[1]
        anywhere = (axes_XNQK.flatten(1, 2) * self.size_X1K).sub_(0.5)
        # A point a cell outside reads the border alone. NaN passes all this and makes the result NaN, as it should.
        place = torch.minimum(anywhere.clamp(min=-1.0), self.size_X1K)
        moves = anywhere.eq_(place)  # as numbers: a bool would be several times slower here and where it is used
        before = torch.minimum(place.floor(), self.size_X1K - 1)
        beyond = place.sub_(before)
        x, y = before.nan_to_num_().int()
        cell = y.add_(self.first_K).mul_(self.canvas.width).add_(x).add_(1)
        if maps > 1:
            first_N = torch.arange(maps, dtype=torch.int32) * self.canvas.cells
            cell = (cell.view(maps, -1) + first_N[:, None]).view_as(cell)
        return Places(cell, beyond, moves)

    def rows(self, cell_MK: Tensor) -> Tensor:
        """(M, 4 x K) int32: the four cells of each point, one corner after the other."""
        rows = cell_MK.new_empty(len(cell_MK), 4, self.points)
        for corner, shift in enumerate(self.canvas.shifts):
            torch.add(cell_MK, shift, out=rows[:, corner])
        return rows.flatten(1)

    def shares(self, beyond_XMK: Tensor, weight_MK: Tensor) -> Tensor:
        """(M, 4, K): each corner's bilinear share times the point's weight."""
        x, y = beyond_XMK
        shares = weight_MK.new_empty(len(weight_MK), 4, self.points)
        lower = weight_MK * y
        for half, (left, right) in ((weight_MK - lower, (0, 1)), (lower, (2, 3))):
            torch.mul(half, x, out=shares[:, right])
            torch.sub(half, shares[:, right], out=shares[:, left])
        return shares


class _Bags(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_BSHD: Tensor, levels: Levels, location_BQHLP2: Tensor, weight_BQHLP: Tensor) -> Tensor:
        ctx.levels = levels
        ctx.save_for_backward(value_BSHD, location_BQHLP2, weight_BQHLP)
        s = Sampling(levels, location_BQHLP2)
        value_NSD, axes_XNQK = s.by_map(value_BSHD), s.axes(location_BQHLP2)
        weight_NQK = s.by_map(weight_BQHLP.flatten(3))
        out_NQD = value_NSD.new_empty(len(value_NSD), s.queries, value_NSD.shape[-1])
        for maps in s.blocks():
            places = s.places(axes_XNQK[:, maps])
            shares = s.shares(places.beyond, weight_NQK[maps].flatten(0, 1)).flatten(1)
            table = s.canvas.lay(value_NSD[maps])
            read = F.embedding_bag(s.rows(places.cell), table, mode="sum", per_sample_weights=shares)
            out_NQD[maps] = read.view_as(out_NQD[maps])
        return s.by_query(out_NQD).flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BQC: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value_BSHD, location_BQHLP2, weight_BQHLP = ctx.saved_tensors
        s = Sampling(ctx.levels, location_BQHLP2)
        value_NSD, axes_XNQK = s.by_map(value_BSHD), s.axes(location_BQHLP2)
        weight_NQK = s.by_map(weight_BQHLP.flatten(3))
        grad_NQD = s.by_map(grad_BQC.unflatten(2, (s.heads, -1))).contiguous()
        of_value, of_axes, of_weight = (torch.empty_like(each) for each in (value_NSD, axes_XNQK, weight_NQK))
        for maps in s.blocks():
            places = s.places(axes_XNQK[:, maps])
            weight_MK, grad_MD = weight_NQK[maps].flatten(0, 1), grad_NQD[maps].flatten(0, 1)
            table = s.canvas.lay(value_NSD[maps])
            corners = _products(grad_MD, table, s.rows(places.cell)).unflatten(1, (4, -1)).unbind(1)
            by_weight, by_place = _slopes(corners, places.beyond)
            of_weight[maps] = by_weight.view_as(of_weight[maps])
            of_axes[:, maps] = (by_place * weight_MK).mul_(s.size_X1K).mul_(places.moves).view_as(of_axes[:, maps])
            shares = s.shares(places.beyond, weight_MK)
            s.canvas.lift(_spread(grad_MD, places.cell, shares, s.canvas.shifts, len(table)), of_value[maps])
        return (
            s.by_query(of_value).reshape(value_BSHD.shape),
            None,
            s.by_query(of_axes.permute(1, 2, 3, 0)).reshape(location_BQHLP2.shape),
            s.by_query(of_weight).reshape(weight_BQHLP.shape),
        )


def _products(grad_MD: Tensor, table_RD: Tensor, rows_MJ: Tensor) -> Tensor:
    """(M, J): the product of each gradient with each of its bag's rows."""
    _quiet()
    count, bag = rows_MJ.shape
    starts = torch.arange(0, count * bag + 1, bag, dtype=rows_MJ.dtype)
    found = grad_MD.new_zeros(count * bag)
    bags = torch.sparse_csr_tensor(starts, rows_MJ.flatten(), found, (count, len(table_RD)), check_invariants=False)
    torch.sparse.sampled_addmm(bags, grad_MD, table_RD.t(), beta=0.0, out=bags)
    return bags.values().view(count, bag)


def _slopes(corners: tuple[Tensor, ...], beyond_XMK: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K): the bilinear value of what the four corners have; (2, M, K): how it changes with x and y, a cell each."""
    upper_left, upper_right, lower_left, lower_right = corners
    x, y = beyond_XMK
    across, down = upper_right - upper_left, lower_left - upper_left
    skew = (lower_right - lower_left).sub_(across)
    by_y = down.addcmul_(skew, x)
    value = torch.addcmul(upper_left, across, x).addcmul_(by_y, y)
    return value, torch.stack((across.addcmul_(skew, y), by_y))


def _spread(grad_MD: Tensor, cell_MK: Tensor, shares_M4K: Tensor, shifts: tuple[int, ...], cells: int) -> Tensor:
    """(R, D): what each cell receives: a bag of the gradients of the queries that read it. The points are sorted by
    their upper left cell once; for the other corners the sums are the same bags with other shares, shifted."""
    points = cell_MK.shape[1]
    cell, place = cell_MK.flatten().sort(stable=True)
    starts = F.pad(torch.bincount(cell, minlength=cells).cumsum(0), (1, 0)).int()
    query = place.div(points, rounding_mode="floor")
    place += query * (3 * points)  # among the shares of the first corner
    query, flat = query.int(), shares_M4K.flatten()
    total: Tensor | None = None
    for corner, shift in enumerate(shifts):
        share = flat.index_select(0, place + corner * points)
        part = F.embedding_bag(query, grad_MD, starts, mode="sum", per_sample_weights=share, include_last_offset=True)
        if total is None:
            total = part
        else:
            total[shift:] += part[: cells - shift]
    assert total is not None
    return total


@functools.cache
def _quiet() -> None:
    """The first compressed sparse tensor of a process warns of a beta; the one kernel used here is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), [], [], (1, 1), check_invariants=False)


def bags(value_BSHD: Tensor, levels: Levels, location_BQHLP2: Tensor, weight_BQHLP: Tensor) -> Tensor:
    """What `attention.gridsample` computes, with its gradients, on a CPU; it cannot be differentiated twice."""
    sampled: Tensor = _Bags.apply(value_BSHD, levels, location_BQHLP2, weight_BQHLP)
    return sampled
