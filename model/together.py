"""What the processes of one training tell each other. With a single process every function is the identity.

Knows tensors and plain objects; knows neither the network nor the metric.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over all processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gathered(value: T) -> list[T]:
    """`value` of every process, in the order of ranks."""
    if world() == 1:
        return [value]
    found: list[T | None] = [None] * world()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process; the others wait for it, and do not call it."""
    if world() == 1:
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[return-value]


def share_buffers(module: nn.Module) -> None:
    """Gives every process the first one's buffers: running statistics, which each has gathered from its own images."""
    if world() == 1:
        return
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)
