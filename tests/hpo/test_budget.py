"""Budgets as values, and the meter that no clock can fool."""

import random
from typing import Any

import pytest

from hpo.budget import LONGEST_STEP_S, Budget, Meter, Spent
from model.metrics import VAL_MAP50, Metric

NOTHING = {"trials": 0, "epochs": 0, "seconds": 0.0, "gpu_seconds": 0.0, "best": None, "since_best": 0}


def spent(**facts: Any) -> Spent:
    return Spent(**{**NOTHING, **facts})


def budget(**limits: Any) -> Budget:
    return Budget(**{"metric": VAL_MAP50, "trials": 20, **limits})


@pytest.mark.parametrize(
    ("limits", "below", "at"),
    [
        ({"hours": 0.5}, {"seconds": 1799.0}, {"seconds": 1800.0}),
        ({"gpu_hours": 2.0}, {"gpu_seconds": 7199.0}, {"gpu_seconds": 7200.0}),
        ({"target": 0.6}, {"best": 0.59}, {"best": 0.6}),
    ],
)
def test_what_stops_trials_under_way(limits: dict[str, float], below: dict[str, float], at: dict[str, float]) -> None:
    assert budget(**limits).over(spent(**below)) is None
    reached = budget(**limits).over(spent(**at))
    assert reached is not None
    assert reached.name in limits
    assert budget().over(spent(**at)) is None, "a limit that is not set"


@pytest.mark.parametrize(
    ("limits", "below", "at"),
    [
        ({"trials": 3}, {"trials": 2}, {"trials": 3}),
        ({"total_epochs": 40}, {"epochs": 20}, {"epochs": 21}),
        ({"patience": 4}, {"since_best": 3}, {"since_best": 4}),
    ],
)
def test_what_starts_nothing_more(limits: dict[str, int], below: dict[str, int], at: dict[str, int]) -> None:
    """With 10 epochs committed to running trials and 10 for the next."""
    assert budget(**limits).full(spent(**below), committed=10, epochs=10) is None
    reached = budget(**limits).full(spent(**at), committed=10, epochs=10)
    assert reached is not None
    assert reached.name in limits
    assert budget(**limits).over(spent(**at)) is None


def test_target_of_a_minimised_metric() -> None:
    loss = budget(metric=Metric("val_loss", "minimize"), target=0.5)
    assert loss.over(spent(best=0.6)) is None
    assert loss.over(spent(best=0.4)) is not None


def test_a_line_for_each_limit() -> None:
    every = budget(total_epochs=100, hours=2.0, gpu_hours=3.0, target=0.6, patience=5)
    facts = {"trials": 7, "epochs": 60, "seconds": 5400.0, "gpu_seconds": 3600.0, "best": 0.51, "since_best": 2}
    assert every.lines(spent(**facts)) == [
        "trials: 7 of 20",
        "epochs: 60 of 100",
        "hours: 1.5 of 2",
        "GPU hours: 1 of 3",
        "target: 0.5100 for val_mAP50 0.6",
        "patience: 2 of 5 trials without a better one",
    ]
    assert budget().lines(spent()) == ["trials: 0 of 20"]


def test_meter_adds_up_what_passes() -> None:
    readings = iter([5.0, 6.0, 6.5, 6.5, 16.5])
    meter = Meter(lambda: next(readings))
    assert [meter.step() for _ in range(4)] == [1.0, 0.5, 0.0, 10.0]


def test_a_clock_that_jumps_costs_one_step() -> None:
    rng = random.Random(0)
    now, true = 0.0, 0.0
    readings = []
    for _ in range(1000):
        true += 0.1
        now += 0.1
        if rng.random() < 0.01:
            now += rng.choice((-1e6, 1e6))
        readings.append(now)
    clock = iter([0.0, *readings])
    meter = Meter(lambda: next(clock))
    measured = sum(meter.step() for _ in readings)
    jumps = sum(abs(b - a) > 1.0 for a, b in zip([0.0, *readings], readings, strict=False))
    assert jumps > 3
    assert true - 0.2 * jumps <= measured <= true + LONGEST_STEP_S * jumps
