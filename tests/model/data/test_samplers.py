from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.samplers import Key, OrderedSampler, ShuffledSampler, train_sampler
from model.errors import DataError

NAMES = ("default_sampler", "uniform_sampler", "non_uniform_sampler")


def keys(sampler: ShuffledSampler, epoch: int = 0) -> list[Key]:
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert {key.epoch for key in found} <= {epoch}
    return found


def tall(key: Key) -> bool:
    return (key.position * 7 + key.epoch) % 3 == 0


@pytest.mark.parametrize("name", ["default_sampler", "uniform_sampler"])
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 5),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
    grouped=st.booleans(),
)
def test_processes_share_the_batches_of_one(
    name: str, count: int, batch: int, world: int, epoch: int, grouped: bool
) -> None:
    shards = (count - count // 3, count // 3) if count // 3 else (count,)
    kind = tall if grouped else None
    alone = keys(train_sampler(name, shards, batch * world, 7, tall=kind), epoch)
    shares = [
        keys(train_sampler(name, shards, batch, 7, rank=rank, world=world, tall=kind), epoch) for rank in range(world)
    ]
    assert len(alone) == count // (batch * world) * batch * world
    assert len(set(alone)) == len(alone), "each time an image comes, it is another key"
    for start in range(0, len(alone), batch * world):
        step = slice(start // world, start // world + batch)
        assert sorted(key for share in shares for key in share[step]) == sorted(alone[start : start + batch * world])
    if name == "default_sampler":
        assert {key.repeat for key in alone} <= {0}


@given(count=st.integers(1, 60), world=st.integers(1, 4))
def test_evaluation_sees_every_image_once(count: int, world: int) -> None:
    ordered = [key.position for rank in range(world) for key in OrderedSampler(count, rank=rank, world=world)]
    assert sorted(ordered) == list(range(count))


@pytest.mark.parametrize("name", NAMES)
def test_at_most_one_batch_is_mixed(name: str) -> None:
    for epoch in range(4):
        found = keys(train_sampler(name, (31, 20), 4, 1, tall=tall), epoch)
        batches = [found[start : start + 4] for start in range(0, len(found), 4)]
        mixed = [batch for batch in batches if len({tall(key) for key in batch}) == 2]
        assert len(batches) == 12
        assert mixed in ([], batches[-1:])


@pytest.mark.parametrize("name", NAMES)
def test_an_order_depends_on_seed_and_epoch_alone(name: str) -> None:
    first, again, other = (train_sampler(name, (30, 20), 4, seed) for seed in (1, 1, 2))
    keys(first, 0)
    assert keys(first, 3) == keys(again, 3)
    assert keys(first, 3) != keys(first, 4)
    assert keys(first, 3) != keys(other, 3)


def test_uniform_shows_a_small_shard_as_often_as_a_large_one() -> None:
    sampler = train_sampler("uniform_sampler", (5, 95), 1, 0)
    drawn = Counter(key.position < 5 for epoch in range(40) for key in keys(sampler, epoch))
    # 4,000 draws with probability 1/2: the share has sd 0.0079, so 0.05 is over 6 sd, about 1e-9
    assert abs(drawn[True] / 4000 - 0.5) < 0.05
    repeats = [key for key in keys(sampler, 0) if key.position == 0]
    assert [key.repeat for key in repeats] == list(range(len(repeats)))


@given(
    shards=st.lists(st.integers(1, 20), min_size=3, max_size=7),
    batch=st.integers(1, 3),
    world=st.integers(1, 3),
    grouped=st.booleans(),
)
def test_dealt_shards_stay_with_their_process_for_equal_steps(
    shards: list[int], batch: int, world: int, grouped: bool
) -> None:
    kind = tall if grouped else None
    starts = [sum(shards[:number]) for number in range(len(shards))]
    lengths = set()
    for rank in range(world):
        found = keys(train_sampler("non_uniform_sampler", shards, batch, 5, rank=rank, world=world, tall=kind))
        own = {
            start + place
            for start, size in list(zip(starts, shards, strict=True))[rank::world]
            for place in range(size)
        }
        assert {key.position for key in found} <= own
        assert len(set(found)) == len(found)
        lengths.add(len(found))
        if len(found) >= len(own):
            assert {key.position for key in found} == own, "none is left out before one comes twice"
    assert lengths == {sum(shards) // (batch * world) * batch}


def test_too_few_shards_to_deal() -> None:
    with pytest.raises(DataError, match=r"there are 2 files for 3 processes; split the files"):
        train_sampler("non_uniform_sampler", (5, 5), 1, 0, rank=2, world=3)
