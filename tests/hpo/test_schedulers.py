"""Rules on hand-worked curves, and one harness that every scheduler must pass."""

import math
import random

import pytest

from hpo.schedulers import GO, SCHEDULERS, STOP, Curves, Halving, Hyperband, Median, Rule, ToTheEnd, check, gentle, make
from model.metrics import VAL_MAP50, Metric

RULE = Halving(metric=VAL_MAP50, rungs=(2, 4))


def stops(rule: Rule, number: int, curves: Curves) -> bool:
    return rule.judge(number, curves) == STOP


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
    assert not stops(RULE, 9, {**curves, 9: flat(0.35, 2)})
    assert not stops(RULE, 9, {**curves, 9: flat(0.25, 2)})
    assert stops(RULE, 9, {**curves, 9: flat(0.15, 2)})
    del curves[1]
    assert not stops(RULE, 9, {**curves, 9: flat(0.0, 2)})


def test_judged_at_rungs_only() -> None:
    curves = {n: flat(0.5, 4) for n in range(1, 6)}
    verdicts = [stops(RULE, 9, {**curves, 9: flat(0.1, epochs)}) for epochs in range(1, 6)]
    assert verdicts == [False, True, False, True, False]


def test_peers_that_did_not_reach_the_rung_do_not_count() -> None:
    curves = {n: flat(0.5, 3) for n in range(1, 6)}
    assert not stops(RULE, 9, {**curves, 9: flat(0.1, 4)})


def test_validation_every_third_epoch_is_judged_at_the_next_report() -> None:
    curves = {n: {3: 0.5, 6: 0.5} for n in range(1, 6)}
    assert stops(RULE, 9, {**curves, 9: {3: 0.1}})
    assert stops(RULE, 9, {**curves, 9: {3: 0.6, 6: 0.1}}) is False, "its best so far counts"
    assert stops(RULE, 9, {**curves, 9: {3: 0.2, 6: 0.1}})


def test_default_is_never_stopped_unless_it_diverges() -> None:
    curves = {n: flat(0.5, 2) for n in range(1, 9)}
    assert not stops(RULE, 0, {**curves, 0: flat(0.0, 2)})
    assert stops(RULE, 0, {**curves, 0: {1: 0.1, 2: math.nan}})


def test_values_that_are_not_finite_stop_and_do_not_judge_others() -> None:
    assert stops(ToTheEnd(metric=VAL_MAP50), 3, {3: {1: math.nan}})
    curves = {n: {1: math.nan, 2: math.nan} for n in range(1, 9)}
    assert not stops(RULE, 9, {**curves, 9: flat(0.1, 2)})


def test_minimised_metric() -> None:
    rule = Halving(metric=Metric("val_loss", "minimize"), rungs=(2,))
    curves = {n: flat(0.5, 2) for n in range(1, 5)}
    assert stops(rule, 9, {**curves, 9: flat(0.6, 2)})
    assert not stops(rule, 9, {**curves, 9: flat(0.4, 2)})


def test_best_trial_of_any_order_survives() -> None:
    rng = random.Random(0)
    for _ in range(50):
        order = [rng.random() for _ in range(12)]
        best = order.index(max(order))
        curves: dict[int, dict[int, float]] = {}
        for number, value in enumerate(order, start=1):
            curves[number] = flat(value, 2)
            assert number != best + 1 or not stops(RULE, number, curves)


# Every scheduler

EPOCHS = 12


def rule(name: str, metric: Metric = VAL_MAP50) -> Rule:
    return make(name, epochs=EPOCHS, metric=metric, seed=1)


def rising(seed: int, count: int = 24) -> list[list[float]]:
    """Curves that cross: a final value, a speed, noise of an epoch."""
    rng = random.Random(seed)
    drawn = [(rng.uniform(0.2, 0.7), rng.uniform(0.15, 0.6)) for _ in range(count)]
    return [
        [top * (1 - math.exp(-speed * e)) + rng.gauss(0, 0.01) for e in range(1, EPOCHS + 1)] for top, speed in drawn
    ]


def run(judge: Rule, table: list[list[float]], at_a_time: int, sign: float = 1.0) -> tuple[Curves, list[tuple]]:
    """Trials in the order of numbers, some side by side at speeds of their own; an exploit copies the parent's past."""
    curves: dict[int, dict[int, float]] = {}
    rng, running, verdicts = random.Random(0), [], []
    while len(curves) < len(table) or running:
        if len(curves) < len(table) and len(running) < at_a_time:
            running.append(len(curves))
            curves[running[-1]] = {}
            continue
        number = rng.choice(running)
        epoch = max(curves[number], default=0) + 1
        curves[number][epoch] = sign * table[number][epoch - 1]
        verdict = judge.judge(number, curves)
        verdicts.append((number, epoch, *verdict))
        if verdict.action == "exploit":
            curves[number] = dict(curves[verdict.parent])
        if verdict == STOP or max(curves[number]) == EPOCHS:
            running.remove(number)
    return curves, verdicts


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("at_a_time", [1, 8])
def test_default_and_complete_trials_are_left_alone(name: str, at_a_time: int) -> None:
    table = rising(3)
    table[0] = [0.0] * EPOCHS
    curves, verdicts = run(rule(name), table, at_a_time)
    assert len(curves[0]) == EPOCHS
    assert all(action == "go" for number, epoch, action, _ in verdicts if number == 0 or epoch == EPOCHS)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_not_finite_stops_at_once_and_judges_nobody(name: str) -> None:
    for number in (0, 5):
        for value in (math.nan, math.inf, -math.inf):
            assert rule(name).judge(number, {number: {1: 0.5, 2: value}}) == STOP
    broken = {n: dict.fromkeys(range(1, 12), math.nan) for n in range(1, 20)}
    for epoch in range(1, EPOCHS + 1):
        assert rule(name).judge(30, {**broken, 30: flat(0.01, epoch)}) == GO


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_verdict_is_a_function_of_the_curves(name: str) -> None:
    """A rule made anew, as after a resume, that sees the curves in another order says the same."""
    judge, table = rule(name), rising(5)
    curves: dict[int, dict[int, float]] = {n: {} for n in range(len(table))}
    for epoch in range(1, EPOCHS + 1):
        for number in curves:
            curves[number][epoch] = table[number][epoch - 1]
        for number in curves:
            shuffled = {n: dict(reversed(curves[n].items())) for n in reversed(curves)}
            assert rule(name).judge(number, shuffled) == judge.judge(number, curves)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_minimised_metric_is_the_mirror(name: str) -> None:
    table = rising(7)
    mirrored = run(rule(name, Metric("val_loss", "minimize")), table, 8, sign=-1.0)[1]
    assert mirrored == run(rule(name), table, 8)[1]


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("at_a_time", [1, 8])
def test_epochs_are_saved_and_the_best_kept(name: str, at_a_time: int) -> None:
    """30 sweeps of 24 curves that cross, against as many epochs spent on whole trials, whichever come first."""
    used, lost, lost_without = [], [], []
    for seed in range(30):
        table = rising(seed)
        curves, _ = run(rule(name), table, at_a_time)
        used.append(sum(map(len, curves.values())) / (len(table) * EPOCHS))
        best = max(map(max, table))
        lost.append(best - max(max(curve.values()) for curve in curves.values() if len(curve) == EPOCHS))
        lost_without.append(best - max(map(max, table[: round(used[-1] * len(table))])))
    spent, missed, without = (sum(each) / 30 for each in (used, lost, lost_without))
    print(
        f"{name}, {at_a_time} at a time: {spent:.2f} of the epochs, {missed:.4f} below the best; without {without:.4f}"
    )
    assert spent < 0.8
    assert missed < 0.3 * without


def test_names() -> None:
    with pytest.raises(ValueError, match="must be one of asha, hyperband, median, pbt, none, but is 'ahsa'"):
        make("ahsa", epochs=5, metric=VAL_MAP50, seed=0)
    with pytest.raises(ValueError, match="must be none where there are several"):
        check("asha", objectives=2)
    check("none", objectives=2)


# Hyperband


@pytest.mark.parametrize(
    ("epochs", "sizes"), [(27, [4, 6, 12, 27]), (81, [5, 8, 15, 34, 81]), (3, [2, 3]), (2, [1]), (1, [1])]
)
def test_brackets_are_filled_as_in_the_paper(epochs: int, sizes: list[int]) -> None:
    """The counts of Li et al. 2018, table 1 for R = 81; every stretch holds its share, rounded."""
    judge = Hyperband(metric=VAL_MAP50, epochs=epochs)
    drawn = [judge.bracket(number) for number in range(1, sum(sizes) + 1)]
    assert [drawn.count(s) for s in range(len(sizes))] == sizes
    assert [judge.bracket(number + sum(sizes)) for number in range(1, 9)] == [judge.bracket(n) for n in range(1, 9)]
    for length in range(1, len(drawn)):
        for s, size in enumerate(sizes):
            assert abs(drawn[:length].count(s) - length * size / sum(sizes)) < len(sizes)


def test_rungs_of_brackets() -> None:
    judge = Hyperband(metric=VAL_MAP50, epochs=27)
    assert [judge.rungs(s) for s in range(4)] == [(), (9,), (3, 9), (1, 3, 9)]
    assert Hyperband(metric=VAL_MAP50, epochs=243).halvings == 5, "counted in whole numbers: log gives 4.999..."
    assert Hyperband(metric=VAL_MAP50, epochs=10).rungs(2) == (2, 4)


def test_bracket_keeps_its_better_third() -> None:
    judge = Hyperband(metric=VAL_MAP50, epochs=27)
    first = [number for number in range(1, 60) if judge.bracket(number) == 3][:6]
    others = {number: flat(0.9, 27) for number in range(1, 60) if judge.bracket(number) != 3}
    curves: dict[int, dict[int, float]] = dict(others)
    actions = []
    for number, value in zip(first, (0.1, 0.2, 0.3, 0.25, 0.05, 0.4), strict=True):
        curves[number] = flat(value, 1)
        actions.append(judge.judge(number, curves).action)
    # Two go on for want of others; then the better third of three, two of four, two of five and two of six.
    assert actions == ["go", "go", "go", "go", "stop", "go"]


# The median


def test_median_of_running_means() -> None:
    judge = Median(metric=VAL_MAP50, epochs=10, grace=2)
    # Running means to epoch 2: 0.1, 0.2, 0.3, 0.5; their median 0.25.
    curves = {1: {1: 0.0, 2: 0.2}, 2: {1: 0.2, 2: 0.2, 3: 0.9}, 3: {1: 0.2, 2: 0.4}, 4: {1: 0.5, 2: 0.5}}
    assert judge.judge(9, {**curves, 9: {1: 0.0, 2: 0.24}}) == STOP
    assert judge.judge(9, {**curves, 9: {1: 0.26, 2: 0.0}}) == GO, "its best so far counts"
    assert judge.judge(9, {**curves, 9: {1: 0.0}}) == GO, "grace"
    del curves[4]
    assert judge.judge(9, {**curves, 9: {1: 0.0, 2: 0.0}}) == GO, "peers"
