"""The result as a value: who wins, what is said of the default, in which order rows stand."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpo.errors import RunError
from hpo.result import Outcome, SweepResult, TrialRecord, read_result
from model.metrics import VAL_MAP50
from tests.hpo.trials import at, trial


def result(*trials: TrialRecord, budget: int = 4) -> SweepResult:
    return SweepResult(run_dir=Path("run"), metric=VAL_MAP50, trials=trials, budget=budget, space_hash="", seed=0)


def test_best_epoch_decides_not_the_last() -> None:
    found = result(trial(0, 0.1, 0.2), trial(1, 0.5, 0.3), trial(2, 0.4, 0.4))
    assert found.best is not None
    assert found.best.number == 1
    assert found.best.best(VAL_MAP50) == at(1, 0.5)
    assert found.verdict() == "Trial 1 won with val_mAP50 0.5000, +0.3000 to the default's 0.2000."


def test_earliest_of_equal_epochs() -> None:
    best = trial(0, 0.3, 0.3).best(VAL_MAP50)
    assert best is not None
    assert best.epoch == 1


def test_only_completed_trials_win() -> None:
    found = result(trial(0, 0.2), trial(1, 0.9, outcome=Outcome.PRUNED), trial(2, 0.9, outcome=None))
    assert found.best is found.baseline


def test_tie_keeps_the_default() -> None:
    found = result(trial(0, 0.2), trial(1, 0.2))
    assert found.best is found.baseline
    assert not found.improved
    assert found.verdict() == "Nothing beat the default (val_mAP50 0.2000): the default is the answer."


def test_failed_default_does_not_block() -> None:
    found = result(trial(0, outcome=Outcome.FAILED, reason="boom"), trial(1, 0.2))
    assert found.best is not None
    assert found.best.number == 1
    assert "the default has no value (failed)" in found.verdict()


def test_no_winner() -> None:
    assert result(trial(0, outcome=Outcome.FAILED, reason="boom")).verdict().startswith("No trial completed")


def test_minimised_metric() -> None:
    loss = replace(VAL_MAP50, goal="minimize")
    found = replace(result(trial(0, 0.5, 0.4), trial(1, 0.6, 0.3)), metric=loss)
    assert found.best is not None
    assert found.best.number == 1
    assert [row["trial"] for row in found.table()] == ["1", "0 (default)"]


def test_table_accounts_for_every_trial() -> None:
    found = result(
        trial(0, 0.2), trial(1, outcome=Outcome.FAILED, reason="boom"), trial(2, 0.6), trial(3, 0.1, outcome=None)
    )
    rows = found.table()
    assert [row["trial"] for row in rows] == ["2", "0 (default)", "3", "1"]
    assert [row["to default"] for row in rows] == ["+0.4000", "+0.0000", "-0.1000", ""]
    assert rows[3]["note"] == "boom"
    assert rows[2]["outcome"] == "running"
    assert not found.finished


def test_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold study"):
        read_result(tmp_path)


def again(number: int, of: int, value: float, outcome: Outcome = Outcome.COMPLETED) -> TrialRecord:
    return trial(number, value, outcome=outcome, repeats=of)


def test_mean_over_seeds_decides_among_those_that_ran_again() -> None:
    base = result(trial(0, 0.5), trial(1, 0.9), trial(2, 0.8), trial(3, 0.86))
    runs = (again(4, 1, 0.3), again(5, 2, 0.9), again(6, 0, 0.5), again(7, 0, 0.0, Outcome.FAILED))
    found = replace(base, repeats=runs, confirmed=(1, 2, 0))
    assert [each.number for each in found.ranked()] == [2, 1, 0]
    assert found.score(base.trials[1]) == pytest.approx((0.6, 0.4243, 2), abs=1e-4)
    assert found.score(base.trials[0]) == (0.5, 0.0, 2), "a failed repeat is no value"
    assert found.table()[0]["trial"] == "2"
    assert "of 2 seeds" in found.table()[0][VAL_MAP50.name]
    assert found.verdict().startswith("Trial 2 won with val_mAP50 0.8500 ± 0.0707 of 2 seeds")
    extended = replace(found, confirmed=())
    assert extended.best is extended.trials[3], "a sweep that goes on is judged by all again"


def test_longest_trained_wins_where_none_completed() -> None:
    cut = Outcome.PRUNED
    found = result(trial(0, 0.1, 0.2, outcome=cut), trial(1, 0.9, outcome=cut), trial(2, 0.3, 0.3, outcome=cut))
    assert found.best is found.trials[2]


def test_pareto_and_the_cheaper_of_equals() -> None:
    costs = ({"size": 9.0}, {"size": 5.0}, {"size": 7.0}, {"size": 6.0}, {})
    values = (0.5, 0.2, 0.5, 0.1, 0.9)
    trials = [trial(n, value, costs=cost) for n, (value, cost) in enumerate(zip(values, costs, strict=True))]
    found = replace(result(*trials[:4]), goals={"size": "minimize"})
    assert [each.number for each in found.pareto] == [1, 2]
    assert found.best is trials[2], "as accurate as the default, and smaller"
    assert [row["Pareto"] for row in found.table()] == ["yes", "", "yes", ""]
    unmeasured = replace(result(*trials), goals={"size": "minimize"})
    assert unmeasured.best is trials[4]
    assert [each.number for each in unmeasured.pareto] == [1, 2]
