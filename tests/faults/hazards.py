"""The real training with trouble by the number of a trial: 1 diverges, 2 has memory for half its batch, 3 for nothing.

Memory is refused where an allocator refuses it: when an operation's result would be too large.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import train as training
from model.module import Detector

DIVERGES, HALF, NOTHING = 1, 2, 3
HALF_BYTES = 400_000
"""Between the largest tensors of four and of eight images of 48 pixels."""


class Memory(TorchDispatchMode):
    """Refuses tensors above `most` bytes, and remembers the largest."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                size = leaf.numel() * leaf.element_size()
                self.largest = max(self.largest, size)
                if size > self.most:
                    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        return result


@contextlib.contextmanager
def memory(most: int) -> Iterator[Memory]:
    """So much for one tensor in a step's forward and loss."""
    real, mode = Detector._loss, Memory(most)

    def loss(self: Any, *given: Any) -> Any:
        with mode:
            return real(self, *given)

    Detector._loss = loss  # type: ignore[method-assign]
    try:
        yield mode
    finally:
        Detector._loss = real  # type: ignore[method-assign]


@contextlib.contextmanager
def divergence(step: int) -> Iterator[None]:
    """A weight becomes NaN before this step; what follows is the real thing."""
    real = Detector.training_step

    def training_step(self: Any, *batch: Any) -> Any:
        if self.trainer.global_step == step:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return real(self, *batch)

    Detector.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Detector.training_step = real  # type: ignore[method-assign]


def train(spec: Any, out: Path, **more: Any) -> Any:
    trouble: Any = {
        DIVERGES: divergence(4),
        HALF: memory(HALF_BYTES),
        NOTHING: memory(1000),
    }.get(int(out.name), contextlib.nullcontext())
    with trouble:
        return training.train(spec, out, **more)
