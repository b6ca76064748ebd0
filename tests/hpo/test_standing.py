"""Where a sweep stands, worked out by hand: leader, gain, and the time that is left."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.cluster import Share
from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.standing import MARGIN, Left, Standing
from model.metrics import VAL_MAP50
from tests.hpo.trials import at, trial

EMPTY = SweepResult(run_dir=Path("run"), metric=VAL_MAP50, trials=(), budget=4, space_hash="", seed=0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def standing(
    budget: int = 4,
    epochs: int = 10,
    concurrent: int = 2,
    seconds: float | None = None,
    known: tuple[TrialRecord, ...] = (),
) -> tuple[Standing, Clock]:
    clock = Clock()
    found = Standing(clock)
    share = Share(cpus=1, gpus=0, concurrent=concurrent)
    found.begin(replace(EMPTY, budget=budget, trials=known), epochs=epochs, share=share, seconds=seconds)
    return found, clock


def run(on: Standing, number: int, epochs: int, value: float = 0.5) -> None:
    on.started(trial(number, outcome=None))
    for epoch in range(1, epochs + 1):
        on.measured(number, at(epoch, value))


def test_nothing_is_promised_before_an_epoch_is_known() -> None:
    on, _ = standing()
    on.started(trial(0, outcome=None))
    assert on.left() is None


def test_a_range_until_five_epochs_are_known() -> None:
    on, _ = standing(budget=1, concurrent=1)
    on.started(trial(0, outcome=None))
    on.measured(0, at(1, 0.1, seconds=50.0))
    on.measured(0, at(2, 0.1, seconds=130.0))
    assert on.left() == Left(MARGIN[0] * 50 * 8, MARGIN[1] * 80 * 8)
    on.measured(0, at(3, 0.1, seconds=190.0))
    on.measured(0, at(4, 0.1, seconds=250.0))
    assert on.left() != Left(6 * 60.0, 6 * 60.0)
    on.measured(0, at(5, 0.1, seconds=310.0))  # 50, 80, 60, 60, 60 seconds an epoch
    assert on.left() == Left(5 * 60.0, 5 * 60.0)


def test_trials_are_spread_over_the_workers() -> None:
    on, _ = standing(budget=4, epochs=10, concurrent=2)
    run(on, 0, 6)  # 4 epochs to go
    on.started(trial(1, outcome=None))  # 10 to go; two more trials of 10 wait
    # The first worker: 4, then 10; the second: 10, then 10.
    assert on.left() == Left(20 * 60.0, 20 * 60.0)


def test_what_was_stopped_early_shortens_the_rest() -> None:
    on, _ = standing(budget=6, epochs=10, concurrent=1)
    for number, epochs in ((0, 10), (1, 2), (2, 2), (3, 2)):
        run(on, number, epochs)
        outcome = Outcome.COMPLETED if epochs == 10 else Outcome.PRUNED
        on.ended(trial(number, *[0.5] * epochs, outcome=outcome))
    assert on.left() == Left(2 * 4 * 60.0, 2 * 4 * 60.0)  # (10 + 2 + 2 + 2) / 4 epochs each
    run(on, 4, 3)
    # It got further than the short ones, and goes to the end; the last is as long as the mean.
    assert on.left() == Left((7 + 4) * 60.0, (7 + 4) * 60.0)


def test_repeats_are_full_and_count_as_no_trial_of_the_budget() -> None:
    on, _ = standing(budget=1, epochs=10, concurrent=1)
    run(on, 0, 10)
    on.ended(trial(0, *[0.5] * 10))
    on.started(trial(1, outcome=None, repeats=0))
    assert on.done == 1
    assert on.left() == Left(600.0, 600.0)


def test_the_limit_of_time_is_the_limit_of_the_estimate() -> None:
    on, clock = standing(budget=100, concurrent=1, seconds=1000.0)
    run(on, 0, 5)
    assert on.left() == Left(1000.0, 1000.0)
    clock.now += 400.0
    assert on.left() == Left(600.0, 600.0)


def test_what_an_earlier_session_measured_counts() -> None:
    on, _ = standing(budget=2, epochs=6, concurrent=1, known=(trial(0, 0.1, 0.2, 0.3, 0.4, 0.35, outcome=None),))
    assert on.rows[0].state == "waiting"
    assert (on.rows[0].now, on.rows[0].best, on.leader()) == (0.35, 0.4, 0.4)
    assert on.left() == Left(7 * 60.0, 7 * 60.0)


def test_gain_and_elapsed() -> None:
    on, clock = standing()
    run(on, 0, 2, 0.25)
    on.started(trial(1, outcome=None))
    on.measured(1, at(1, 0.75))
    assert on.to_default(on.leader()) == 0.5
    clock.now += 30
    assert on.of_trial(on.rows[1]) == 90.0
    on.ended(trial(1, 0.75, outcome=Outcome.PRUNED))
    clock.now += 30
    assert on.of_trial(on.rows[1]) == 60.0
    assert on.elapsed == pytest.approx(60.0)
