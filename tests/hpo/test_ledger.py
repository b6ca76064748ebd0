"""The study as the book: what is written when, and what a driver killed at any line leaves to the next."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hpo.ledger import Ledger
from hpo.result import STUDY_NAME, Outcome, read_result, study_url
from model.metrics import VAL_MAP50, Measurement
from model.spec import ExperimentSpec
from search_spaces.space import Parameter, SearchSpace

LR, DECAY = "train.optim.lr", "train.optim.weight_decay"


def create(run: Path, spec: ExperimentSpec, space: SearchSpace, **changes: Any) -> Ledger:
    settings: dict[str, Any] = {"searcher": "random", "seed": 7, "budget": 4, "points": (), "metric": VAL_MAP50}
    run.mkdir(parents=True, exist_ok=True)
    return Ledger.create(run, spec, space, **{**settings, **changes})


def at(epoch: int, value: float) -> Measurement:
    return Measurement(epoch=epoch, values={VAL_MAP50.name: value, "val_loss": 2.0}, seconds=float(epoch))


def finish(ledger: Ledger, number: int, value: float = 0.5) -> None:
    ledger.record(number, at(1, value))
    ledger.finish(number, Outcome.COMPLETED, seconds=1.0)


def test_trial_0_is_the_users_spec_unchanged(tmp_path: Path, space: SearchSpace) -> None:
    # Outside the space: what is trained is the user's value, and only the study sees it clipped.
    spec = ExperimentSpec.from_dict({"train": {"optim": {"lr": 0.01, "weight_decay": 1e-3}}})
    ledger = create(tmp_path, spec, space)
    assert ledger.next() == 0
    written = yaml.safe_load((tmp_path / "trials/0/spec.yaml").read_text())
    assert ExperimentSpec.from_dict(written) == spec
    record = ledger.record_of(0)
    assert record.baseline
    assert record.params == {LR: 0.01, DECAY: 1e-3}
    assert record.sample[LR] == 2e-3
    number = ledger.next()
    assert number == 1
    other = ledger.record_of(number)
    assert not other.baseline
    drawn = ExperimentSpec.from_dict(yaml.safe_load((tmp_path / "trials/1/spec.yaml").read_text()))
    assert drawn.train.optim.lr == other.params[LR]
    expected = dataclasses.replace(
        spec,
        train=dataclasses.replace(
            spec.train,
            optim=dataclasses.replace(spec.train.optim, lr=other.params[LR], weight_decay=other.params[DECAY]),
        ),
    )
    assert drawn == expected


def test_secret_is_not_written(tmp_path: Path, space: SearchSpace) -> None:
    ledger = create(tmp_path, ExperimentSpec.from_dict({"encryption_key": "open sesame"}), space)
    ledger.next()
    assert "sesame" not in (tmp_path / "trials/0/spec.yaml").read_text()


def test_points_come_second_nested_or_dotted(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    points = [{"train": {"optim": {"lr": 1e-3}}}, {LR: 5e-5, DECAY: 1e-5}]
    ledger = create(tmp_path, spec, space, points=points)
    params = [ledger.record_of(ledger.next() or 0).params for _ in range(3)]
    assert params[1] == {LR: 1e-3, DECAY: spec.train.optim.weight_decay}
    assert params[2] == pytest.approx({LR: 5e-5, DECAY: 1e-5})


@pytest.mark.parametrize(
    ("point", "complaint"),
    [({"train.optim.lr": 1.0}, "must lie in the space"), ({"train.num_epochs": 3}, "searched keys only")],
)
def test_point_that_would_be_ignored_is_refused(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, point: dict, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        create(tmp_path, spec, space, points=[point])
    assert not (tmp_path / "study.db").exists()


def test_nothing_is_trained_twice(tmp_path: Path, spec: ExperimentSpec) -> None:
    layers = SearchSpace(parameters=(Parameter(name="model.dec_layers", kind="int", low=5, high=7, default=6),))
    ledger = create(tmp_path, spec, layers, budget=10, points=[{"model.dec_layers": 6}, {"model.dec_layers": 5}])
    begun = []
    while (number := ledger.next()) is not None:
        begun.append(number)
        finish(ledger, number)
    result = read_result(tmp_path)
    assert sorted(trial.params["model.dec_layers"] for trial in result.trials) == [5, 6, 7]
    assert [trial.number for trial in result.trials] == begun
    assert ledger.done
    assert ledger.exhausted


def test_endings_reach_the_study_by_their_names(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    ledger = create(tmp_path, spec, space, budget=5)
    for outcome in Outcome:
        number = ledger.next()
        assert number is not None
        ledger.record(number, at(1, 0.2))
        ledger.record(number, at(2, 0.6))
        ledger.record(number, at(3, 0.4))
        reason = None if outcome in (Outcome.COMPLETED, Outcome.PRUNED) else "because"
        ledger.finish(number, outcome, reason=reason, seconds=3.0)
    study = optuna.load_study(study_name=STUDY_NAME, storage=study_url(tmp_path))
    told = {Outcome(trial.user_attrs["outcome"]): trial for trial in study.trials}
    assert told[Outcome.COMPLETED].value == 0.6
    assert told[Outcome.COMPLETED].user_attrs["best_epoch"] == 2
    assert {outcome: trial.state.name for outcome, trial in told.items()} == {
        Outcome.COMPLETED: "COMPLETE",
        Outcome.PRUNED: "PRUNED",
        Outcome.INFEASIBLE: "PRUNED",
        Outcome.FAILED: "FAIL",
        Outcome.LOST: "FAIL",
    }
    assert told[Outcome.INFEASIBLE].constraints == {"infeasible": 1.0}
    assert told[Outcome.PRUNED].constraints == {"infeasible": -1.0}
    assert told[Outcome.PRUNED].intermediate_values == {1: 0.2, 2: 0.6, 3: 0.4}
    result = read_result(tmp_path)
    assert [trial.outcome for trial in result.trials] == list(Outcome)
    assert result.trials[3].reason == "because"
    assert result.trials[0].measurements == (at(1, 0.2), at(2, 0.6), at(3, 0.4))


def test_epochs_are_kept_once(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    ledger = create(tmp_path, spec, space)
    ledger.next()
    assert ledger.record(0, at(1, 0.2))
    assert not ledger.record(0, at(1, 0.9))
    reopened = Ledger.open(tmp_path, spec, space, "random")
    assert reopened.next() == 0
    assert not reopened.record(0, at(1, 0.9))
    assert reopened.curves == {0: {1: 0.2}}


def test_running_trials_go_on_first_and_the_budget_holds(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace
) -> None:
    ledger = create(tmp_path, spec, space)
    numbers = [ledger.next() for _ in range(3)]
    finish(ledger, 1)
    before = [ledger.record_of(number or 0).params for number in numbers]
    reopened = Ledger.open(tmp_path, spec, space, "random")
    assert [reopened.next() for _ in range(4)] == [0, 2, 3, None]
    assert [reopened.record_of(number).params for number in range(3)] == before
    assert reopened.record_of(3).params not in before, "a sampler made again must not repeat its sequence"


def test_lost_trial_is_queued_again_without_using_the_budget(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace
) -> None:
    ledger = create(tmp_path, spec, space, budget=2)
    assert [ledger.next(), ledger.next()] == [0, 1]
    assert ledger.lose(0) == 1
    assert not ledger.done
    assert ledger.next() == 0
    assert ledger.done
    assert ledger.lose(0) == 2


def test_killed_between_outcome_and_tell(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, monkeypatch) -> None:
    ledger = create(tmp_path, spec, space)
    ledger.next()
    ledger.record(0, at(1, 0.3))
    monkeypatch.setattr(Ledger, "_tell", lambda *args: None)
    ledger.finish(0, Outcome.COMPLETED, seconds=1.0)
    assert read_result(tmp_path).trials[0].outcome is None
    monkeypatch.undo()
    reopened = Ledger.open(tmp_path, spec, space, "random")
    assert read_result(tmp_path).trials[0].outcome is Outcome.COMPLETED
    assert reopened.next() == 1


def test_killed_in_mid_draw(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    create(tmp_path, spec, space)
    study = optuna.load_study(study_name=STUDY_NAME, storage=study_url(tmp_path))
    study.ask()  # the default, without one parameter stored
    study.ask().suggest_float(LR, 2e-5, 2e-3, log=True)  # the next, with one of two
    reopened = Ledger.open(tmp_path, spec, space, "random")
    assert [reopened.next() for _ in range(2)] == [0, 1]
    result = read_result(tmp_path)
    assert result.trials[0].params == {LR: spec.train.optim.lr, DECAY: spec.train.optim.weight_decay}
    assert set(result.trials[1].params) == {LR, DECAY}
    assert (tmp_path / "trials/1/spec.yaml").exists()


def test_killed_while_points_are_enqueued(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    points = [{LR: 1e-3}, {LR: 1e-4}]
    create(tmp_path, spec, space, points=points[:1])
    ledger = create(tmp_path, spec, space, points=points)
    rates = [ledger.record_of(ledger.next() or 0).params[LR] for _ in range(3)]
    assert rates == pytest.approx([spec.train.optim.lr, 1e-3, 1e-4])


def test_what_is_spent_by_hand_and_after_a_kill(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    """Counted as trials end; a driver that opens the book later counts all at once, and comes to the same."""
    ledger = create(tmp_path, spec, space, budget=5)

    def spent() -> tuple[int, int, float | None, int]:
        found = ledger.spent
        return found.trials, found.epochs, found.best, found.since_best

    assert spent() == (0, 0, None, 0)
    for number, values in enumerate(((0.3, 0.2), (0.6,), (0.1, 0.5), (0.4,))):
        assert ledger.next() == number
        for epoch, value in enumerate(values, start=1):
            ledger.record(number, at(epoch, value))
    assert spent() == (4, 6, 0.6, 0), "all of them run"
    ledger.finish(0, Outcome.COMPLETED)
    ledger.finish(1, Outcome.PRUNED)
    assert spent() == (4, 6, 0.6, 1), "a pruned trial leads, and does not count as an improvement"
    ledger.finish(2, Outcome.COMPLETED)
    assert spent() == (4, 6, 0.6, 0)
    ledger.record(3, at(2, 0.7))
    assert spent() == (4, 7, 0.7, 0)
    ledger.lose(3)
    ledger = Ledger.open(tmp_path, spec, space, "random")
    assert spent() == (4, 7, 0.7, 0)
    assert ledger.next() == 3
    ledger.finish(3, Outcome.FAILED, reason="x")
    assert spent() == (4, 7, 0.7, 1)
    assert ledger.next() == 4
    assert spent() == (5, 7, 0.7, 1)
