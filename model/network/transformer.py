"""The deformable encoder and decoder. Knows feature maps, padding and reference boxes; nothing of images or classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.network.attention import MSDeformAttn
from model.network.dropout import Dropout
from model.network.levels import Levels
from model.network.mlp import expand
from model.network.position import sine_position
from model.network.proposals import candidates, sine_boxes
from model.network.recompute import call
from model.network.self_attention import SelfAttention

# B image (1 where all images share it), Q query, S token of the flattened levels, C hidden feature, L level


class Sizes(NamedTuple):
    """The widths and depths of a transformer; each is the spec's key of the same name."""

    hidden_dim: int
    nheads: int
    enc_layers: int
    dec_layers: int
    dim_feedforward: int
    dropout_ratio: float
    num_feature_levels: int
    enc_n_points: int
    dec_n_points: int
    two_stage: bool = False


class Proposer(NamedTuple):
    """The heads that score and correct one candidate box a token, and how many of the best become queries."""

    label: nn.Module
    box: nn.Module
    number: int


class Proposed(NamedTuple):
    """What the encoder says of every token in the two-stage form."""

    logits: Tensor
    """(B, S, C), before the sigmoid; the first class tells objects from background."""
    boxes: Tensor
    """(B, S, 4): cx, cy, w, h in [0, 1], as fractions of the unpadded image."""


class Decoded(NamedTuple):
    """What the decoder hands to the heads; each tuple has one entry a layer."""

    hidden: tuple[Tensor, ...]
    """(B, Q, C) after each layer."""
    references: tuple[Tensor, ...]
    """(B, Q, 2 or 4) before each layer: x, y or cx, cy, w, h as fractions of the unpadded image; no gradient after
    the first layer."""
    proposals: Proposed | None = None
    """In the two-stage form only."""


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of a fraction, kept finite at 0 and 1."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def add_delta(delta: Tensor, reference: Tensor) -> Tensor:
    """A box (..., 4) in [0, 1]: `delta` (..., 4) corrects, before the sigmoid, as much as `reference` (..., 2 or 4)
    knows (Zhu et al. 2021, A.3)."""
    known = inverse_sigmoid(reference)
    if known.shape[-1] == 2:
        return torch.cat((delta[..., :2] + known, delta[..., 2:]), -1).sigmoid()
    return (delta + known).sigmoid()


class EncoderLayer(nn.Module):
    """Deformable self-attention over all tokens, then an MLP; each added and normalised."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(s.hidden_dim, s.num_feature_levels, s.nheads, s.enc_n_points)
        self.norm1 = nn.LayerNorm(s.hidden_dim)
        self.linear1 = nn.Linear(s.hidden_dim, s.dim_feedforward)
        self.linear2 = nn.Linear(s.dim_feedforward, s.hidden_dim)
        self.norm2 = nn.LayerNorm(s.hidden_dim)
        self.dropout = Dropout(s.dropout_ratio)

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, levels: Levels, padding: Tensor | None
    ) -> Tensor:
        attended = self.self_attn(tokens + position, reference, tokens, levels, padding)
        tokens = self.norm1(self.dropout.plus(attended, tokens))
        return self.norm2(expand(self.linear1, self.linear2, self.dropout, tokens))


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the tokens, an MLP. `norm1` follows the second of them:
    the names are those of published checkpoints."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.cross_attn = MSDeformAttn(s.hidden_dim, s.num_feature_levels, s.nheads, s.dec_n_points)
        self.norm1 = nn.LayerNorm(s.hidden_dim)
        self.self_attn = SelfAttention(s.hidden_dim, s.nheads, s.dropout_ratio)
        self.norm2 = nn.LayerNorm(s.hidden_dim)
        self.linear1 = nn.Linear(s.hidden_dim, s.dim_feedforward)
        self.linear2 = nn.Linear(s.dim_feedforward, s.hidden_dim)
        self.norm3 = nn.LayerNorm(s.hidden_dim)
        self.dropout = Dropout(s.dropout_ratio)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, tokens: Tensor, levels: Levels, padding: Tensor | None
    ) -> Tensor:
        x = self.norm2(self.dropout.plus(self.self_attn(x + position, x), x))
        attended = self.cross_attn(x + position, reference, tokens, levels, padding)
        x = self.norm1(self.dropout.plus(attended, x))
        return self.norm3(expand(self.linear1, self.linear2, self.dropout, x))


class Encoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(s) for _ in range(s.enc_layers))
        self.activation_checkpoint = False

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, levels: Levels, padding: Tensor | None
    ) -> Tensor:
        for layer in self.layers:
            tokens = call(layer, tokens, position, reference, levels, padding, recompute=self.activation_checkpoint)
        return tokens


class Decoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(s) for _ in range(s.dec_layers))
        self.activation_checkpoint = False

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        ratio_BL2: Tensor,
        tokens: Tensor,
        levels: Levels,
        padding: Tensor | None,
        box_heads: Sequence[nn.Module] | None,
    ) -> Decoded:
        """reference (B, Q, 2). With `box_heads`, one a layer, each layer's corrected boxes are the next one's
        references."""
        hidden, references = [], []
        for index, layer in enumerate(self.layers):
            references.append(reference)
            scale_BL = torch.cat((ratio_BL2, ratio_BL2), -1) if reference.shape[-1] == 4 else ratio_BL2
            points = reference[:, :, None] * scale_BL[:, None]
            x = call(layer, x, position, points, tokens, levels, padding, recompute=self.activation_checkpoint)
            hidden.append(x)
            if box_heads is not None and index + 1 < len(self.layers):
                reference = add_delta(box_heads[index](x), reference).detach()
        return Decoded(tuple(hidden), tuple(references))


class Transformer(nn.Module):
    """Encoder and decoder over several feature levels (Zhu et al. 2021, section 4)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.encoder = Encoder(s)
        self.decoder = Decoder(s)
        self.level_embed = nn.Parameter(torch.empty(s.num_feature_levels, s.hidden_dim))
        if s.two_stage:
            self.enc_output = nn.Linear(s.hidden_dim, s.hidden_dim)
            self.enc_output_norm = nn.LayerNorm(s.hidden_dim)
            self.pos_trans = nn.Linear(2 * s.hidden_dim, 2 * s.hidden_dim)
            self.pos_trans_norm = nn.LayerNorm(2 * s.hidden_dim)
        else:
            self.reference_points = nn.Linear(s.hidden_dim, 2)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        if not s.two_stage:
            nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        features: Sequence[Tensor],
        masks: Sequence[Tensor] | None,
        queries: Tensor | Proposer,
        box_heads: Sequence[nn.Module] | None = None,
    ) -> Decoded:
        """features: one (B, C, h, w) a level. masks: one (B, h, w) bool a level, True at right or bottom padding, or
        None for none at all. queries: learned ones (Q, 2 C), position, then content; or, in the two-stage form, the
        heads that make them from the encoder's tokens."""
        levels = Levels.of(tuple((int(feature.shape[-2]), int(feature.shape[-1])) for feature in features))
        tokens_BSC = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], 1)
        padding_BS = None if masks is None else torch.cat([mask.flatten(1) for mask in masks], 1)
        valid_BL2 = valid_cells(levels, masks, tokens_BSC)
        ratio_BL2 = (valid_BL2 / valid_cells(levels, None, tokens_BSC)).flip(-1)  # x, y as references are

        position_BSC = self._positions(levels, valid_BL2)
        centre_BS2 = cell_centres(levels, valid_BL2)
        tokens_BSC = self.encoder(
            tokens_BSC, position_BSC, centre_BS2[:, :, None] * ratio_BL2[:, None], levels, padding_BS
        )

        proposed = None
        if isinstance(queries, Proposer):
            proposed, reference, where, what = self._propose(tokens_BSC, levels, centre_BS2, queries)
        else:
            where, what = queries.chunk(2, -1)
            point = self.reference_points(where)
            # Under autocast a coordinate in half precision would be rounded to some pixels.
            reference = point.to(torch.promote_types(point.dtype, torch.float32)).sigmoid()[None]
            what = what.expand(tokens_BSC.shape[0], -1, -1)
        decoded = self.decoder(what, where, reference, ratio_BL2, tokens_BSC, levels, padding_BS, box_heads)
        return decoded._replace(proposals=proposed)

    def _propose(
        self, tokens_BSC: Tensor, levels: Levels, centre_BS2: Tensor, proposer: Proposer
    ) -> tuple[Proposed, Tensor, Tensor, Tensor]:
        """The tokens' predictions, and of the best of them the boxes (B, Q, 4), positions and contents (B, Q, C).

        Queries know their box alone, not the token's features, and send no gradient to it (Zhu et al. 2021, A.4).
        """
        if proposer.number > tokens_BSC.shape[1]:
            raise ValueError(
                f"with `model.two_stage` an image must give at least `model.num_queries` tokens, but num_queries="
                f"{proposer.number} and levels of {', '.join(f'{h} x {w}' for h, w in levels.sizes)} cells give "
                f"{tokens_BSC.shape[1]}; use larger images or fewer queries."
            )
        logit_BS4, counts_BS1 = candidates(levels, centre_BS2)
        feature_BSC = self.enc_output_norm(self.enc_output(tokens_BSC.masked_fill(~counts_BS1, 0.0)))
        score_BSC = proposer.label(feature_BSC)
        box_BS4 = (proposer.box(feature_BSC) + logit_BS4).sigmoid()
        best_BQ = score_BSC[..., 0].topk(proposer.number, dim=1).indices
        reference_BQ4 = box_BS4.detach().gather(1, best_BQ[..., None].expand(-1, proposer.number, 4))
        encoded = sine_boxes(reference_BQ4, tokens_BSC.shape[-1] // 2)
        where_BQC, what_BQC = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, -1)
        return Proposed(score_BSC, box_BS4), reference_BQ4, where_BQC, what_BQC

    def _positions(self, levels: Levels, valid_BL2: Tensor) -> Tensor:
        """(B, S, C): the sine position of each token plus its level's embedding."""
        hidden = self.level_embed.shape[-1]
        parts = [
            sine_position(height, width, valid_BL2[:, level], hidden).flatten(1, 2) + self.level_embed[level]
            for level, (height, width) in enumerate(levels.sizes)
        ]
        return torch.cat(parts, 1)


def valid_cells(levels: Levels, masks: Sequence[Tensor] | None, like: Tensor) -> Tensor:
    """(B, L, 2) float: height and width of the unpadded part of each level, in cells; B is 1 without masks."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # coordinates stay exact under half precision
    if masks is None:
        return torch.tensor([levels.sizes], dtype=dtype).to(like.device, non_blocking=True)
    extents = [torch.stack(((~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)), -1) for mask in masks]
    return torch.stack(extents, 1).to(dtype)


def cell_centres(levels: Levels, valid_BL2: Tensor) -> Tensor:
    """(B, S, 2): x, y of each cell's centre as fractions of its level's unpadded part; over 1 in the padding."""
    parts = []
    for level, (height, width) in enumerate(levels.sizes):
        y_BH = (torch.arange(height, dtype=valid_BL2.dtype, device=valid_BL2.device) + 0.5) / valid_BL2[:, level, :1]
        x_BW = (torch.arange(width, dtype=valid_BL2.dtype, device=valid_BL2.device) + 0.5) / valid_BL2[:, level, 1:]
        y_BHW = y_BH[:, :, None].expand(-1, -1, width)
        x_BHW = x_BW[:, None].expand(-1, height, -1)
        parts.append(torch.stack((x_BHW, y_BHW), -1).flatten(1, 2))
    return torch.cat(parts, 1)
