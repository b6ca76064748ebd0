"""The halving rule on hand-worked curves."""

import math
import random

import pytest

from hpo.schedulers import Halving, gentle, to_the_end
from model.metrics import VAL_MAP50, Metric

RULE = Halving(metric=VAL_MAP50, rungs=(2, 4))


def flat(value: float, epochs: int) -> dict[int, float]:
    return dict.fromkeys(range(1, epochs + 1), value)


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(1, ()), (4, ()), (5, (2, 4)), (10, (2, 4, 8)), (12, (3, 6)), (20, (4, 8, 16)), (50, (10, 20, 40))],
)
def test_rungs(epochs: int, rungs: tuple[int, ...]) -> None:
    assert gentle(epochs, VAL_MAP50).rungs == rungs


def test_lower_half_stops_once_there_are_four_peers() -> None:
    curves = {n: flat(0.1 * n, 2) for n in range(1, 5)}
    # Five at the rung, so the better three go on: 0.35 is third, 0.25 fourth.
    assert not RULE.stops(9, {**curves, 9: flat(0.35, 2)})
    assert not RULE.stops(9, {**curves, 9: flat(0.25, 2)})
    assert RULE.stops(9, {**curves, 9: flat(0.15, 2)})
    del curves[1]
    assert not RULE.stops(9, {**curves, 9: flat(0.0, 2)})


def test_judged_at_rungs_only() -> None:
    curves = {n: flat(0.5, 4) for n in range(1, 6)}
    verdicts = [RULE.stops(9, {**curves, 9: flat(0.1, epochs)}) for epochs in range(1, 6)]
    assert verdicts == [False, True, False, True, False]


def test_peers_that_did_not_reach_the_rung_do_not_count() -> None:
    curves = {n: flat(0.5, 3) for n in range(1, 6)}
    assert not RULE.stops(9, {**curves, 9: flat(0.1, 4)})


def test_validation_every_third_epoch_is_judged_at_the_next_report() -> None:
    curves = {n: {3: 0.5, 6: 0.5} for n in range(1, 6)}
    assert RULE.stops(9, {**curves, 9: {3: 0.1}})
    assert RULE.stops(9, {**curves, 9: {3: 0.6, 6: 0.1}}) is False, "its best so far counts"
    assert RULE.stops(9, {**curves, 9: {3: 0.2, 6: 0.1}})


def test_default_is_never_stopped_unless_it_diverges() -> None:
    curves = {n: flat(0.5, 2) for n in range(1, 9)}
    assert not RULE.stops(0, {**curves, 0: flat(0.0, 2)})
    assert RULE.stops(0, {**curves, 0: {1: 0.1, 2: math.nan}})


def test_values_that_are_not_finite_stop_and_do_not_judge_others() -> None:
    assert to_the_end(10, VAL_MAP50).stops(3, {3: {1: math.nan}})
    curves = {n: {1: math.nan, 2: math.nan} for n in range(1, 9)}
    assert not RULE.stops(9, {**curves, 9: flat(0.1, 2)})


def test_minimised_metric() -> None:
    rule = Halving(metric=Metric("val_loss", "minimize"), rungs=(2,))
    curves = {n: flat(0.5, 2) for n in range(1, 5)}
    assert rule.stops(9, {**curves, 9: flat(0.6, 2)})
    assert not rule.stops(9, {**curves, 9: flat(0.4, 2)})


def test_best_trial_of_any_order_survives() -> None:
    rng = random.Random(0)
    for _ in range(50):
        order = [rng.random() for _ in range(12)]
        best = order.index(max(order))
        curves: dict[int, dict[int, float]] = {}
        for number, value in enumerate(order, start=1):
            curves[number] = flat(value, 2)
            assert number != best + 1 or not RULE.stops(number, curves)
