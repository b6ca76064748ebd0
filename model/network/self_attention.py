"""Attention of the decoder's queries to each other. Knows queries; knows nothing of feature maps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dropout import Dropout

# B image, Q query, C hidden feature, H head, D feature of one head


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's module and its parameters. Where dropout of the attention keeps PyTorch from its fused kernel on a CPU,
    the same arithmetic is done here with draws that cost less."""

    def __init__(self, dim: int, heads: int, p: float) -> None:
        super().__init__(dim, heads, dropout=p, batch_first=True)
        self.drop = Dropout(p)

    def forward(self, query: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        """query (B, Q, C) asks and is asked; value (B, Q, C) is what is read. Returns (B, Q, C)."""
        if not self.drop.own(query):
            return super().forward(query, query, value, need_weights=False)[0]
        dim, heads = self.embed_dim, self.num_heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        asked = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).unflatten(-1, (2, heads, dim // heads))
        query_BHQD, key_BHQD = asked.permute(2, 0, 3, 1, 4)
        value_BHQD = F.linear(value, weight[2 * dim :], bias[2 * dim :]).unflatten(-1, (heads, -1)).transpose(1, 2)
        score_BHQQ = (query_BHQD / math.sqrt(dim // heads)) @ key_BHQD.transpose(-1, -2)
        read_BHQD = self.drop(torch.softmax(score_BHQQ, -1)) @ value_BHQD
        return self.out_proj(read_BHQD.transpose(1, 2).flatten(2))
