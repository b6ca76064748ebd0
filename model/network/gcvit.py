"""GC-ViT backbones: window attention, locally and by queries of the whole image (Hatamizadeh et al. 2023).

Written from the paper; parameters carry the published names, so that published weights load by name. Knows images in
and feature maps out; knows nothing of projections, of levels beyond its last stage, or of weights on disk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.recompute import call

# B image, H W cells, C feature; N window (B x windows of an image), T cell of a window, h head, D feature of one head

DROP_PATH = 0.2
"""Chance that the last block's branches are left out for an image in training; it rises from 0 at the first block."""


class Architecture(NamedTuple):
    """What tells one GC-ViT from another."""

    width: int
    """Features of the first stage; each stage doubles them."""
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    expansion: int
    """Hidden features of a block's MLP, in widths."""
    layer_scale: float | None = None
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    """Side of a window in each stage, in cells."""


_DEEP = (3, 4, 19, 5)
GC_VITS = {
    "gc_vit_xxtiny": Architecture(64, (2, 2, 6, 2), (2, 4, 8, 16), 3),
    "gc_vit_xtiny": Architecture(64, (3, 4, 6, 5), (2, 4, 8, 16), 3),
    "gc_vit_tiny": Architecture(64, _DEEP, (2, 4, 8, 16), 3),
    "gc_vit_small": Architecture(96, _DEEP, (3, 6, 12, 24), 2, 1e-5),
    "gc_vit_base": Architecture(128, _DEEP, (4, 8, 16, 32), 2, 1e-5),
    "gc_vit_large": Architecture(192, _DEEP, (6, 12, 24, 48), 2, 1e-5),
    "gc_vit_large_384": Architecture(192, _DEEP, (6, 12, 24, 48), 2, 1e-5, (12, 12, 24, 12)),
}
_HALVINGS = (3, 2, 0, 0)
"""How often each stage halves its map to make the global query: as often as takes the resolution that a variant was
published for to one window."""


class SqueezeExcite(nn.Module):
    """Weighs each feature by what the whole map holds of all of them (Hu et al. 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        narrow = dim // 4
        self.fc = nn.Sequential(
            nn.Linear(dim, narrow, bias=False), nn.GELU(), nn.Linear(narrow, dim, bias=False), nn.Sigmoid()
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.fc(x_BCHW.mean((2, 3)))[:, :, None, None]


def fused_mbconv(dim: int) -> nn.Sequential:
    """The convolutional branch of every change of resolution (paper, section 2.2, eq. 1)."""
    depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
    return nn.Sequential(depthwise, nn.GELU(), SqueezeExcite(dim), nn.Conv2d(dim, dim, 1, bias=False))


class Downsampler(nn.Module):
    """(B, H, W, C) to (B, H / 2, W / 2, `outside`), rounded up (paper, eq. 1)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inside)
        self.conv = fused_mbconv(inside)
        self.reduction = nn.Conv2d(inside, outside, 3, 2, 1, bias=False)
        self.norm2 = nn.LayerNorm(outside)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = self.norm1(x_BHWC).permute(0, 3, 1, 2).contiguous()
        return self.norm2(self.reduction(x_BCHW + self.conv(x_BCHW)).permute(0, 2, 3, 1))


class Stem(nn.Module):
    """(B, 3, H, W) to (B, H / 4, W / 4, C), rounded up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 3, 2, 1)
        self.conv_down = Downsampler(width, width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv_down(self.proj(pixels).permute(0, 2, 3, 1))


class FeatureExtractor(nn.Module):
    """One step towards the global query (paper, section 2.3)."""

    def __init__(self, dim: int, *, halve: bool) -> None:
        super().__init__()
        self.conv = fused_mbconv(dim)
        self.halve = halve

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.conv(x_BCHW)
        return F.max_pool2d(x_BCHW, 3, 2, 1) if self.halve else x_BCHW


class GlobalQuery(nn.Module):
    """(B, H, W, C) to (B, T, C): the whole map as one window of queries (paper, section 2.3).

    A map of another size than the published resolution ends at another size than a window, and is resized to one.
    """

    def __init__(self, dim: int, halvings: int, window: int) -> None:
        super().__init__()
        self.window = window
        steps = [FeatureExtractor(dim, halve=halvings > 0) for _ in range(max(halvings, 1))]
        self.to_q_global = nn.Sequential(*steps)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        query_BCHW = self.to_q_global(x_BHWC.permute(0, 3, 1, 2).contiguous())
        if tuple(query_BCHW.shape[2:]) != (self.window, self.window):
            dtype = query_BCHW.dtype
            size = (self.window, self.window)
            query_BCHW = F.interpolate(query_BCHW.float(), size=size, mode="bicubic", align_corners=False).to(dtype)
        return query_BCHW.flatten(2).transpose(1, 2)


class WindowAttention(nn.Module):
    """Attention among the cells of a window, each pair of cells biased by where the one lies from the other; queries
    come from the window itself, or in place of them from the whole image (paper, section 2.4)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, *, by_global_query: bool) -> None:
        super().__init__()
        self.heads, self.by_global_query = heads, by_global_query
        self.qkv = nn.Linear(dim, (2 if by_global_query else 3) * dim)
        self.proj = nn.Linear(dim, dim)
        reach = 2 * window - 1  # offsets along one axis
        self.relative_position_bias_table = nn.Parameter(torch.empty(reach * reach, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _offsets(window), persistent=False)

    def forward(self, x_NTC: Tensor, query_BTC: Tensor, windows: int) -> Tensor:
        """windows: how many one image has; they follow each other in `x`."""
        projected = self.qkv(x_NTC)
        if self.by_global_query:
            key, value = projected.chunk(2, -1)
            query = query_BTC[:, None].expand(-1, windows, -1, -1).reshape(-1, *x_NTC.shape[1:])
        else:
            query, key, value = projected.chunk(3, -1)
        cells = x_NTC.shape[1]
        bias_TTh = self.relative_position_bias_table[self.relative_position_index.flatten()].view(cells, cells, -1)
        bias_1hTT = bias_TTh.permute(2, 0, 1)[None]
        mixed_NhTD = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=bias_1hTT.to(projected.dtype)
        )
        return self.proj(mixed_NhTD.transpose(1, 2).flatten(2))

    def _split(self, x_NTC: Tensor) -> Tensor:
        """(N, h, T, D)"""
        return x_NTC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _offsets(window: int) -> Tensor:
    """(T, T) int64: the row of the bias table for each query cell and key cell, by their offset down and right."""
    cell = torch.arange(window)
    place_T2 = torch.cartesian_prod(cell, cell)
    offset_TT2 = place_T2[:, None] - place_T2[None] + (window - 1)
    return offset_TT2[..., 0] * (2 * window - 1) + offset_TT2[..., 1]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention, then an MLP; each normalised before, scaled where the variant says so, and added."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        expansion: int,
        *,
        by_global_query: bool,
        scale: float | None,
        drop: float,
    ) -> None:
        super().__init__()
        self.window, self.drop = window, drop
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, by_global_query=by_global_query)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * expansion)
        self.scaled = scale is not None
        if scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x_BHWC: Tensor, query_BTC: Tensor, stochastic: bool) -> Tensor:
        """stochastic: leave the branches out by chance."""
        drop = self.drop if stochastic else 0.0
        attended = self._attend(self.norm1(x_BHWC), query_BTC)
        x_BHWC = x_BHWC + drop_path(attended * self.gamma1 if self.scaled else attended, drop)
        expanded = self.mlp(self.norm2(x_BHWC))
        return x_BHWC + drop_path(expanded * self.gamma2 if self.scaled else expanded, drop)

    def _attend(self, x_BHWC: Tensor, query_BTC: Tensor) -> Tensor:
        """Zeros at the bottom and right fill the last windows; they take part, as in the published networks."""
        side = self.window
        height, width = int(x_BHWC.shape[1]), int(x_BHWC.shape[2])
        down, across = -(-height // side), -(-width // side)
        padded = F.pad(x_BHWC, (0, 0, 0, across * side - width, 0, down * side - height))
        windows = padded.unflatten(2, (across, side)).unflatten(1, (down, side)).transpose(2, 3)
        mixed_NTC = self.attn(windows.reshape(-1, side * side, x_BHWC.shape[3]), query_BTC, down * across)
        mixed = mixed_NTC.view(-1, down, across, side, side, x_BHWC.shape[3]).transpose(2, 3)
        return mixed.reshape(-1, down * side, across * side, x_BHWC.shape[3])[:, :height, :width]


def drop_path(branch: Tensor, chance: float) -> Tensor:
    """Zero for a `chance` of the images, the rest scaled up to keep the mean (Huang et al. 2016)."""
    if chance == 0.0:
        return branch
    kept_B = torch.rand(branch.shape[0], device=branch.device) >= chance
    return branch * (kept_B / (1 - chance)).to(branch.dtype).view(-1, 1, 1, 1)


class Level(nn.Module):
    """One stage: blocks with local and global queries in turn, then half the resolution."""

    def __init__(self, s: Architecture, stage: int, *, downsample: bool) -> None:
        super().__init__()
        dim, before, total = s.width << stage, sum(s.depths[:stage]), sum(s.depths)
        self.q_global_gen = GlobalQuery(dim, _HALVINGS[stage], s.windows[stage])
        self.blocks = nn.ModuleList(
            Block(
                dim, s.heads[stage], s.windows[stage], s.expansion, by_global_query=index % 2 == 1, scale=s.layer_scale,
                drop=DROP_PATH * (before + index) / (total - 1),
            )
            for index in range(s.depths[stage])
        )  # fmt: skip
        self.downsample = Downsampler(dim, 2 * dim) if downsample else None

    def forward(self, x_BHWC: Tensor, *, recompute: bool) -> Tensor:
        query_BTC = self.q_global_gen(x_BHWC)
        # A frozen stage must give the same features each time.
        stochastic = self.training and any(parameter.requires_grad for parameter in self.parameters())
        for block in self.blocks:
            x_BHWC = call(block, x_BHWC, query_BTC, stochastic, recompute=recompute)
        return x_BHWC


class GCViT(nn.Module):
    """A GC-ViT without its classifier, cut after the last stage that is asked for.

    stages: which of the stages 0 to 3 to return, in rising order; their strides are 4, 8, 16, 32. Each returned map
    has a normalisation of its own, `norm{stage}`, which published classifiers lack.
    """

    def __init__(self, name: str, stages: tuple[int, ...]) -> None:
        super().__init__()
        s = GC_VITS[name]
        self.stages = stages
        self.channels = tuple(s.width << stage for stage in stages)
        self.activation_checkpoint = False
        self.patch_embed = Stem(s.width)
        last = max(stages)
        self.levels = nn.ModuleList(Level(s, stage, downsample=stage < last) for stage in range(last + 1))
        for stage, channels in zip(stages, self.channels, strict=True):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W). Returns one (B, channels, H / stride, W / stride) for each of `stages`, rounded up."""
        x_BHWC = self.patch_embed(pixels)
        features = []
        for stage, level in enumerate(self.levels):
            assert isinstance(level, Level)
            x_BHWC = level(x_BHWC, recompute=self.activation_checkpoint)
            if stage in self.stages:
                features.append(self.get_submodule(f"norm{stage}")(x_BHWC).permute(0, 3, 1, 2).contiguous())
            if level.downsample is not None:
                x_BHWC = level.downsample(x_BHWC)
        return features
