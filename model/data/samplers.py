"""The order in which images are seen. Knows positions, shards and processes; knows no pixels and no annotations.

An order depends on nothing but (seed, epoch) and, where the user asks for it, on how shards are dealt to processes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from model.errors import DataError


class Key(NamedTuple):
    """What a sampler asks for. The epoch travels with it, so that long-lived workers need not be told."""

    epoch: int
    position: int
    repeat: int = 0
    """How often this epoch had the image before: each time it is augmented anew."""

    def generator(self, seed: int) -> np.random.Generator:
        """All chance in the augmentation of this image."""
        return np.random.default_rng([seed, *self])


Tall = Callable[[Key], bool]
"""Whether the image is higher than wide once augmented."""


class ShuffledSampler(DistributedSampler[Key]):
    """A new order each epoch, the same for all processes; step by step they share one batch of the whole.

    Each process gets every `world`-th image, and as many as fill whole batches of `batch_size` in all processes.
    With `tall`, batches hold images of one orientation, because a batch of both is padded to a square. Lightning calls
    `set_epoch`, and leaves a DistributedSampler where it is.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        tall: Tall | None = None,
    ) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._count, self._batch, self._tall = count, batch_size, tall
        self._taken = count // (batch_size * world) * batch_size

    def __len__(self) -> int:
        return self._taken

    def __iter__(self) -> Iterator[Key]:
        return iter(self._mine())

    def _mine(self) -> list[Key]:
        order = _keys(self.epoch, self._order(np.random.default_rng([self.seed, self.epoch])))
        order = _grouped(order, self._tall, self._batch * self.num_replicas)
        return order[self.rank :: self.num_replicas][: self._taken]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(self._count)


class UniformSampler(ShuffledSampler):
    """Every shard equally likely, then every image in it, with replacement: a small shard is seen as often as a large
    one. As many draws an epoch as there are images."""

    def __init__(self, shards: Sequence[int], *args: int, **options: object) -> None:
        super().__init__(sum(shards), *args, **options)  # type: ignore[arg-type]
        self._sizes = np.array(shards)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        shard = rng.integers(len(self._sizes), size=self._count)
        return (np.cumsum(self._sizes) - self._sizes)[shard] + rng.integers(self._sizes[shard])


class DealtSampler(ShuffledSampler):
    """Shards dealt to the processes like cards, and shuffled there: a process reads its own files only.

    All processes take the same number of steps: one with few images begins again, one with many leaves some for the
    next epoch's order.
    """

    def __init__(self, shards: Sequence[int], *args: int, **options: object) -> None:
        super().__init__(sum(shards), *args, **options)  # type: ignore[arg-type]
        if len(shards) < self.num_replicas:
            raise DataError(
                "`dataset.train_sampler` non_uniform_sampler needs an annotation file for each process, but there are "
                f"{len(shards)} files for {self.num_replicas} processes; split the files, or take default_sampler."
            )
        shard_of = np.repeat(np.arange(len(shards)), shards)
        self._own = np.flatnonzero(shard_of % self.num_replicas == self.rank)

    def _mine(self) -> list[Key]:
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        rounds = -(-self._taken // len(self._own))
        order = np.concatenate([rng.permutation(self._own) for _ in range(max(1, rounds))])
        return _grouped(_keys(self.epoch, order[: self._taken]), self._tall, self._batch)


class OrderedSampler(DistributedSampler[Key]):
    """Every image once, in order, none repeated to make the processes even."""

    def __init__(self, count: int, *, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._mine = range(rank, count, world)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Key]:
        return iter([Key(0, position) for position in self._mine])


def train_sampler(
    name: str,
    shards: Sequence[int],
    batch_size: int,
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
    tall: Tall | None = None,
) -> ShuffledSampler:
    """The sampler that `dataset.train_sampler` names. `shards`: images of each annotation file."""
    if name == "uniform_sampler":
        return UniformSampler(shards, batch_size, seed, rank=rank, world=world, tall=tall)
    if name == "non_uniform_sampler":
        return DealtSampler(shards, batch_size, seed, rank=rank, world=world, tall=tall)
    return ShuffledSampler(sum(shards), batch_size, seed, rank=rank, world=world, tall=tall)


def _keys(epoch: int, order: np.ndarray) -> list[Key]:
    seen: Counter[int] = Counter()
    keys = []
    for position in order.tolist():
        keys.append(Key(epoch, position, seen[position]))
        seen[position] += 1
    return keys


def _grouped(order: list[Key], tall: Tall | None, batch: int) -> list[Key]:
    """`order` in whole batches of one orientation, first come first served. What is left over of both is at the end, so
    at most one batch is mixed."""
    if tall is None:
        return order
    done: list[Key] = []
    waiting: tuple[list[Key], list[Key]] = ([], [])
    for key in order:
        queue = waiting[tall(key)]
        queue.append(key)
        if len(queue) == batch:
            done += queue
            queue.clear()
    return done + waiting[0] + waiting[1]
