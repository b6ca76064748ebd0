"""Dropout that costs little on a CPU, alone and after a ReLU. Knows nothing of where it stands.

PyTorch's own, which other devices keep, draws one number an element there. Here one draw of 64 bits serves four
elements, in blocks that stay in the cache, and after a ReLU the result itself says what was dropped, so that no mask is
kept. Draws come from torch's global generator. A probability is rounded to 1/65536, and what is kept is scaled by
exactly that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16
BLOCK = 1 << 18
"""Elements at a time; a multiple of four."""


class Dropout(nn.Module):
    """Sets elements to zero with probability `p` in training, and scales the others so that the mean stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return _Dropped.apply(x, self._steps) if self.own(x) else F.dropout(x, self.p, self.training)

    def after_relu(self, x: Tensor) -> Tensor:
        """Of `relu(x)`. In training it takes the memory of `x`, which nothing else may need."""
        return _ReluDropped.apply(x, self._steps) if self.own(x) else F.dropout(F.relu(x), self.p, self.training)

    def own(self, x: Tensor) -> bool:
        """Whether it is done here: something is dropped, and on a CPU."""
        return self.training and x.device.type == "cpu" and 0 < self._steps < STEPS

    @property
    def _steps(self) -> int:
        """Of STEPS, how many drop an element."""
        return round(self.p * STEPS)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        kept = torch.empty(out.shape, dtype=torch.bool)
        for part, keep in zip(_blocks(out), _blocks(kept), strict=True):
            _drop(part, steps, keep)
        ctx.steps = steps
        ctx.save_for_backward(kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        for part, keep in zip(_blocks(grad), _blocks(kept), strict=True):
            part.mul_(keep).mul_(_scale(ctx.steps))
        return grad, None


class _ReluDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        assert x.is_contiguous(), "a linear layer's result is"
        keep = torch.empty(min(BLOCK, x.numel()), dtype=torch.bool)
        for part in _blocks(x):
            _drop(part.relu_(), steps, keep[: len(part)])
        ctx.steps = steps
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        grad = grad.contiguous()
        below = torch.empty_like(grad)
        for part, known, into in zip(_blocks(grad), _blocks(result), _blocks(below), strict=True):
            torch.ops.aten.threshold_backward.grad_input(part, known, 0, grad_input=into)
            into.mul_(_scale(ctx.steps))
        return below, None


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(-1).split(BLOCK)


def _scale(steps: int) -> float:
    return STEPS / (STEPS - steps)


def _drop(part: Tensor, steps: int, keep: Tensor) -> None:
    """In place; `keep` is written."""
    drawn = torch.empty(-(-len(part) // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    torch.ge(drawn[: len(part)], steps - STEPS // 2, out=keep)
    part.mul_(keep).mul_(_scale(steps))
