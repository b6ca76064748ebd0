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

# B image, H head, Q query, K point of all levels, M row (image x head x query) of a block, D feature of one head,
# R cell of a block's canvases, X axis (x, y)

BLOCK = 1 << 19
"""Rows read at a time: 2 MiB in each of the dozen tensors at work, so that they stay in the cache."""


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

    def lay(self, value_BSHD: Tensor) -> Tensor:
        """(R, D): one map after the other, heads within images."""
        images, _, heads, features = value_BSHD.shape
        canvas = value_BSHD.new_zeros(images, heads, self.height, self.width, features)
        for inside, tokens in self._parts(canvas, value_BSHD):
            inside.copy_(tokens)
        return canvas.view(-1, features)

    def lift(self, canvas_RD: Tensor, into_BSHD: Tensor) -> None:
        """Copies what `lay` puts down, without the borders."""
        images, _, heads, features = into_BSHD.shape
        canvas = canvas_RD.view(images, heads, self.height, self.width, features)
        for inside, tokens in self._parts(canvas, into_BSHD):
            tokens.copy_(inside)

    def _parts(self, canvas: Tensor, value_BSHD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for (height, width), start, top in zip(self.levels.sizes, self.levels.starts, self.tops, strict=True):
            tokens = value_BSHD[:, start : start + height * width].unflatten(1, (height, width))
            yield canvas[:, :, top + 1 : top + 1 + height, 1 : 1 + width], tokens.permute(0, 3, 1, 2, 4)


class Places(NamedTuple):
    """Where points lie on the canvases of a block."""

    cell: Tensor
    """(M, K) int32: row of the table that is the upper left of the four around the point."""
    beyond: Tensor
    """(2, M, K): how far the point is from that cell's centre, in cells."""
    moves: Tensor
    """(2, M, K): 1 where moving the point changes what it reads, 0 far outside."""


class Sampling:
    """One call's shapes and constants."""

    def __init__(self, levels: Levels, planes_3BHQK: Tensor) -> None:
        _, self.batch, self.heads, self.queries, self.points = planes_3BHQK.shape
        self.canvas = Canvas(levels)
        each = self.points // len(levels.sizes)
        heights, widths = zip(*levels.sizes, strict=True)
        size_XL = torch.tensor((widths, heights), dtype=planes_3BHQK.dtype)
        self.size_X1K = size_XL.repeat_interleave(each, 1)[:, None]
        self.first_K = torch.tensor(self.canvas.tops, dtype=torch.int32).repeat_interleave(each) + 1

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Images and heads, at least one of each; all heads where there is more than one image."""
        maps = max(1, BLOCK // max(1, 4 * self.queries * self.points))
        images, heads = max(1, maps // max(1, self.heads)), min(maps, self.heads)
        for image in range(0, self.batch, images):
            for head in range(0, self.heads, heads):
                yield slice(image, image + images), slice(head, head + heads)

    def places(self, anywhere_XMK: Tensor) -> Places:
        # A point a cell outside reads the border alone. NaN passes all this and makes the result NaN, as it should.
        place = torch.minimum(anywhere_XMK.clamp(min=-1.0), self.size_X1K)
        moves = anywhere_XMK.eq(place).to(place.dtype)  # a bool would be several times slower where it is used
        before = torch.minimum(place.floor(), self.size_X1K - 1)
        beyond = place.sub_(before)
        x, y = before.nan_to_num_().int()
        cell = y.add_(self.first_K).mul_(self.canvas.width).add_(x).add_(1)
        maps = len(cell) // self.queries if self.queries else 0
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
    def forward(ctx: Any, value_BSHD: Tensor, levels: Levels, planes_3BHQK: Tensor) -> Tensor:
        ctx.levels = levels
        ctx.save_for_backward(value_BSHD, planes_3BHQK)
        s = Sampling(levels, planes_3BHQK)
        features = value_BSHD.shape[-1]
        out_BQHD = value_BSHD.new_empty(s.batch, s.queries, s.heads, features)
        for images, heads in s.blocks():
            planes_3MK = planes_3BHQK[:, images, heads].flatten(1, 3)
            places = s.places(planes_3MK[:2])
            shares = s.shares(places.beyond, planes_3MK[2].softmax(-1)).flatten(1)
            table = s.canvas.lay(value_BSHD[images, :, heads])
            read = F.embedding_bag(s.rows(places.cell), table, mode="sum", per_sample_weights=shares)
            into = out_BQHD[images, :, heads].transpose(1, 2)
            into.copy_(read.view(into.shape))
        return out_BQHD.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BQC: Tensor) -> tuple[Tensor, None, Tensor]:
        value_BSHD, planes_3BHQK = ctx.saved_tensors
        s = Sampling(ctx.levels, planes_3BHQK)
        grad_BHQD = grad_BQC.unflatten(2, (s.heads, -1)).transpose(1, 2)
        of_value = torch.empty_like(value_BSHD, memory_format=torch.contiguous_format)
        of_planes = torch.empty_like(planes_3BHQK)
        for images, heads in s.blocks():
            planes_3MK = planes_3BHQK[:, images, heads].flatten(1, 3)
            into_3MK = of_planes[:, images, heads].flatten(1, 3)
            places, weight_MK = s.places(planes_3MK[:2]), planes_3MK[2].softmax(-1)
            grad_MD = grad_BHQD[images, heads].flatten(0, 2)
            table = s.canvas.lay(value_BSHD[images, :, heads])
            corners = _products(grad_MD, table, s.rows(places.cell)).unflatten(1, (4, s.points)).unbind(1)
            by_weight, by_place = _slopes(corners, places.beyond)
            torch.mul(by_place.mul_(weight_MK), places.moves, out=into_3MK[:2])
            # The softmax's slope by hand: PyTorch's kernel rounds differently with another number of threads.
            by_logit = by_weight.mul_(weight_MK)
            torch.addcmul(by_logit, weight_MK, by_logit.sum(-1, keepdim=True), value=-1, out=into_3MK[2])
            shares = s.shares(places.beyond, weight_MK)
            of_canvas = _spread(grad_MD, places.cell, shares, s.canvas.shifts, len(table))
            s.canvas.lift(of_canvas, of_value[images, :, heads])
        return of_value, None, of_planes


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
    touched = None
    if len(cell) < cells:  # most cells receive nothing: a decoder's
        touched, counts = torch.unique_consecutive(cell, return_counts=True)
    else:
        counts = torch.bincount(cell, minlength=cells)
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    query = place.div(points, rounding_mode="floor")
    place += query * (3 * points)  # among the shares of the first corner
    query, flat = query.int(), shares_M4K.flatten()
    total: Tensor | None = None if touched is None else grad_MD.new_zeros(cells, grad_MD.shape[1])
    for corner, shift in enumerate(shifts):
        share = flat.index_select(0, place + corner * points)
        part = F.embedding_bag(query, grad_MD, starts, mode="sum", per_sample_weights=share, include_last_offset=True)
        if total is None:
            total = part
        elif touched is None:
            total[shift:] += part[: cells - shift]
        else:
            total.index_add_(0, touched + shift, part)
    assert total is not None
    return total


@functools.cache
def _quiet() -> None:
    """The first compressed sparse tensor of a process warns of a beta; the one kernel used here is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), [], [], (1, 1), check_invariants=False)


def bags(value_BSHD: Tensor, levels: Levels, planes_3BHQK: Tensor) -> Tensor:
    """What `attention.gridsample` computes, with its gradients, on a CPU; it cannot be differentiated twice.

    planes: for each point, those of the first level first, its x and its y in cells of its level, 0 at the centre of
    the first, and its weight before the softmax over all K. In this order everything is read and written in lines;
    contiguous. Returns (B, Q, C).
    """
    sampled: Tensor = _Bags.apply(value_BSHD, levels, planes_3BHQK)
    return sampled
