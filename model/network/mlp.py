"""The transformer's two linear layers, with all that stands around them, block by block where a CPU trains them.

Knows nothing of attention or normalisation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.dropout import Dropout, masks, new_seed, scale_of

# N token, C hidden feature, E feature between the layers

ROWS = 1024
"""Tokens at a time, so that what the wide layer gives is used while it is in the cache."""


def expand(linear1: nn.Linear, linear2: nn.Linear, dropout: Dropout, x: Tensor) -> Tensor:
    """`x` (..., C) plus dropout(linear2(dropout(relu(linear1(x)))))."""
    if not dropout.own(x) or torch.is_autocast_enabled("cpu"):
        return dropout.plus(linear2(dropout(F.relu(linear1(x)))), x)
    weights = (linear1.weight, linear1.bias, linear2.weight, linear2.bias)
    made: Tensor = _Expanded.apply(x.reshape(-1, x.shape[-1]), *weights, dropout.steps)
    return made.view_as(x)


class _Expanded(torch.autograd.Function):
    """Keeps what is between the layers, as autograd would, but none of the gradients on the way."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, steps: int
    ) -> Tensor:
        ctx.seed, ctx.steps = new_seed(), steps
        between_NE = x_NC.new_empty(len(x_NC), len(weight1))
        out_NC = torch.empty_like(x_NC)
        xs, betweens, outs = (each.split(ROWS) for each in (x_NC, between_NE, out_NC))
        inner = masks([part.view(-1) for part in betweens], new_seed(), steps)
        outer = masks([part.view(-1) for part in outs], ctx.seed, steps)
        for x, between, out, kept, kept_out in zip(xs, betweens, outs, inner, outer, strict=True):
            torch.addmm(bias1, x, weight1.t(), out=between).relu_()
            between.view(-1).mul_(kept).mul_(scale_of(steps))
            torch.addmm(bias2, between, weight2.t(), out=out)
            torch.addcmul(x, out, kept_out.view_as(out), value=scale_of(steps), out=out)
        ctx.save_for_backward(x_NC, between_NE, weight1, weight2)
        return out_NC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        x_NC, between_NE, weight1, weight2 = ctx.saved_tensors
        below_NC = torch.empty_like(x_NC)
        of_weights = [torch.zeros_like(weight) for weight in (weight1, weight2)]
        of_biases = [weight.new_zeros(len(weight)) for weight in (weight1, weight2)]
        memory_C, memory_E = (weight.new_empty(ROWS, len(weight)) for weight in (weight2, weight1))
        belows = below_NC.split(ROWS)
        outer = masks([part.view(-1) for part in belows], ctx.seed, ctx.steps)
        blocks = (each.split(ROWS) for each in (x_NC, between_NE, grad_NC))
        for x, between, grad, below, kept_out in zip(*blocks, belows, outer, strict=True):
            count = len(x)
            of_out = torch.mul(grad, kept_out.view_as(grad), out=memory_C[:count]).mul_(scale_of(ctx.steps))
            of_between = torch.mm(of_out, weight2, out=memory_E[:count])
            # What was dropped is zero, as what the ReLU took is.
            torch.ops.aten.threshold_backward.grad_input(of_between, between, 0, grad_input=of_between)
            of_between.mul_(scale_of(ctx.steps))
            for of_weight, of_bias, above, into in zip(
                of_weights, of_biases, (of_between, of_out), (x, between), strict=True
            ):
                of_weight.addmm_(above.t(), into)
                of_bias += above.sum(0)
            torch.addmm(grad, of_between, weight1, out=below)
        return below_NC, of_weights[0], of_biases[0], of_weights[1], of_biases[1], None
