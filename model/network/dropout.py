"""Dropout that costs little on a CPU, alone and before a sum. Knows nothing of where it stands.

PyTorch's own, which other devices keep, draws one number an element there. Here one draw of 64 bits serves four
elements, in blocks that stay in the cache, and no mask is kept: the backward pass draws again from the same seed, which
comes from torch's global generator. A probability is rounded to 1/65536, and what is kept is scaled by exactly that.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
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
        return _Dropped.apply(x, None, self.steps) if self.own(x) else F.dropout(x, self.p, self.training)

    def plus(self, x: Tensor, rest: Tensor) -> Tensor:
        """`rest` plus dropout of `x`, of one shape."""
        if self.own(x) and x.dtype == rest.dtype:
            return _Dropped.apply(x, rest, self.steps)
        return rest + self(x)

    def own(self, x: Tensor) -> bool:
        """Whether it is done here: something is dropped, and on a CPU."""
        return self.training and x.device.type == "cpu" and 0 < self.steps < STEPS

    @property
    def steps(self) -> int:
        """Of STEPS, how many drop an element."""
        return round(self.p * STEPS)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rest: Tensor | None, steps: int) -> Tensor:
        ctx.seed, ctx.steps = new_seed(), steps
        return _drop(x, ctx.seed, steps, rest)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return _drop(grad, ctx.seed, ctx.steps, None), grad if ctx.needs_input_grad[1] else None, None


def new_seed() -> int:
    """From torch's global generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    flat = x.view(-1)
    return flat.split(BLOCK) if len(flat) > BLOCK else (flat,)


def scale_of(steps: int) -> float:
    """What is kept is multiplied by this."""
    return STEPS / (STEPS - steps)


def _drop(x: Tensor, seed: int, steps: int, rest: Tensor | None) -> Tensor:
    """Dropout of `x`, with `rest` added, in the order of the elements."""
    x = x.contiguous()
    out = torch.empty_like(x)
    parts = _blocks(x)
    rests = (None,) * len(parts) if rest is None else _blocks(rest.contiguous())
    for part, other, kept, into in zip(parts, rests, masks(parts, seed, steps), _blocks(out), strict=True):
        if other is None:
            torch.mul(part, kept, out=into).mul_(scale_of(steps))
        else:
            torch.addcmul(other, part, kept, value=scale_of(steps), out=into)
    return out


def masks(parts: Sequence[Tensor], seed: int, steps: int) -> Iterator[Tensor]:
    """For each flat part in turn, 1 where an element is kept and 0 where not; as numbers, since a product with a bool
    converts it first. Each takes the memory of the one before; the first is the longest."""
    bits = np.random.SFC64(seed)
    memory = torch.empty_like(parts[0])
    for part in parts:
        drawn = torch.from_numpy(bits.random_raw(-(-len(part) // 4)).view(np.int16))
        kept = memory[: len(part)]
        yield torch.ge(drawn[: len(part)], steps - STEPS // 2, out=kept)
