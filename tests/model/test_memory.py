"""The next smaller batch, and what counts as out of memory."""

import pytest
import torch

from model.memory import Batch, is_out_of_memory


def test_halving_goes_down_to_one_image_and_keeps_the_step() -> None:
    seen, batch = [], Batch.of(4, None)
    while batch is not None:
        assert batch.per_step == 4
        seen.append(batch.per_forward)
        batch = batch.smaller()
    assert seen == [4, 2, 1]


@pytest.mark.parametrize("per_step", range(1, 40))
def test_every_part_divides_the_step(per_step: int) -> None:
    batch: Batch | None = Batch.of(per_step, None)
    while batch is not None:
        assert per_step % batch.per_forward == 0
        after = batch.smaller()
        assert after is None or after.per_forward <= batch.per_forward / 2
        batch = after


def test_a_limit_is_met_from_below() -> None:
    assert Batch.of(6, 4).per_forward == 3
    assert Batch.of(6, 100).per_forward == 6
    assert Batch.of(7, 4).per_forward == 1


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as refused:  # the allocator's own words, whatever they are in this version
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))
