"""Whole sweeps on a real Ray: how they are stopped, extended, seeded, repeated; stuck workers; several objectives."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from hpo.console import Lines
from hpo.errors import DiskFullError, RunError
from hpo.result import Outcome, SweepResult, read_result
from hpo.stall import Stall
from hpo.sweep import resume_sweep, run_sweep, stop_sweep
from hpo.sweep_spec import SweepSpec
from model.metrics import VAL_MAP50
from model.spec import ExperimentSpec
from schemas import dotted
from search_spaces.space import SearchSpace

LR, DECAY = "train.optim.lr", "train.optim.weight_decay"
SLOW = "train.optim.warmup_steps"
"""Milliseconds of an epoch of the stand-in."""


class Said(Lines):
    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(RichConsole(file=self.text, force_terminal=False, width=400))


def of(spec: ExperimentSpec, **values: Any) -> ExperimentSpec:
    plain = spec.to_dict()
    for name, value in values.items():
        plain = dotted.put(plain, name.replace("__", "."), value)
    return ExperimentSpec.from_dict(plain)


def numbers(result: SweepResult) -> list[tuple[Any, ...]]:
    """What must repeat: not the seconds, which are measured."""
    return [
        (trial.number, trial.outcome, trial.sample, trial.params, [one.values for one in trial.measurements])
        for trial in result.trials
    ]


def test_same_seed_repeats_is_extended_and_seeds_another(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    block = SweepSpec(trials=7, concurrent=1, seed=5)
    runs = [run_sweep(tmp_path / name, spec, block, space, console=Said(), train="bowl:train") for name in "ab"]
    assert numbers(runs[0]) == numbers(runs[1])
    assert len(runs[0].trials) == 7

    extended = resume_sweep(tmp_path / "a", add_trials=2, console=Said())
    assert numbers(extended)[:7] == numbers(runs[0])
    assert len(extended.trials) == 9
    assert extended.finished
    assert read_result(tmp_path / "a") == extended

    said = Said()
    block = SweepSpec(trials=3, concurrent=1, seed_from="a", points=({"lr": 1e-4},), searcher="random")
    third = run_sweep(tmp_path / "c", spec, block, space, console=said, train="bowl:train")
    best = extended.best
    assert best is not None
    assert third.trials[1].params[LR] == pytest.approx(1e-4)
    assert third.trials[2].params == pytest.approx(dict(best.params))
    assert f"from a/{best.number} (val_mAP50" in said.text.getvalue()


def test_stop_keeps_the_best(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    run = tmp_path / "run"
    told: list[bool] = []

    def stop() -> None:
        while not (run / "trials/2/epochs.jsonl").exists():
            time.sleep(0.05)
        told.append(stop_sweep(run))

    thread = threading.Thread(target=stop)
    thread.start()
    slow = of(spec, **{SLOW: 200})
    result = run_sweep(run, slow, SweepSpec(trials=20, scheduler="none"), space, console=Said(), train="bowl:train")
    thread.join()
    assert told == [True]
    assert result.finished
    assert result.ended == "stopped by `ddetr stop`"
    assert {trial.outcome for trial in result.trials} == {Outcome.COMPLETED, Outcome.PRUNED}
    assert len(result.trials) < 6
    assert result.best is not None
    assert result.best.checkpoint is not None
    again = resume_sweep(run, console=Said())
    assert again == result, "a stopped sweep is over"
    with pytest.raises(RunError, match=r"must hold sweep\.json"):
        stop_sweep(tmp_path)


def test_deadline_ends_workers_in_mid_epoch(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    run = tmp_path / "run"
    slow = of(spec, **{SLOW: 60_000})
    ticks = iter(range(10**9))
    result = run_sweep(
        run, slow, SweepSpec(trials=5, hours=1.0), space, console=Said(), train="bowl:train",
        clock=lambda: 50.0 * next(ticks),  # time flies: almost a minute from one look to the next
    )  # fmt: skip
    assert result.finished
    assert [trial.outcome for trial in result.trials] == [Outcome.PRUNED, Outcome.PRUNED]
    assert all("hours" in (trial.reason or "") for trial in result.trials)
    assert result.best is None, "not one epoch was measured"
    with pytest.raises(RunError, match="a budget that is not used up"):
        resume_sweep(run, add_trials=3, console=Said())
    assert read_result(run).finished, "and nothing was changed"


def test_stuck_worker_is_killed_with_its_stack_and_tried_again(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    run, said = tmp_path / "run", Said()
    block = SweepSpec(trials=3, searcher="random", scheduler="none", points=({DECAY: 5e-6}, {DECAY: 7e-6}))
    result = run_sweep(
        run, spec, block, space, console=said, train="bowl:train", stall=Stall(at_least=3.0, own=1.0, peers=1.0)
    )
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 3
    assert "trial 1: was stuck (1, tried again 1 times at most): no progress for" in said.text.getvalue()
    assert "trial 2: its worker was lost" in said.text.getvalue()
    stack = (run / "trials/1/stack.txt").read_text()
    assert "_misfortune" in stack
    assert [one.epoch for one in result.trials[1].measurements] == list(range(1, 9))


@pytest.mark.slow
def test_full_disk_of_a_worker_stops_and_goes_on(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    run = tmp_path / "run"
    (run / "trials").mkdir(parents=True)
    (run / "trials/full").touch()
    block = SweepSpec(trials=4, searcher="random", scheduler="none", points=({DECAY: 6e-6},))
    with pytest.raises(DiskFullError, match="is full"):
        run_sweep(run, spec, block, space, console=Said(), train="bowl:train")
    assert not read_result(run).finished
    (run / "trials/full").unlink()
    result = resume_sweep(run, console=Said())
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 4


def test_several_objectives(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    block = SweepSpec(trials=6, scheduler="none", objectives=("val_mAP50", "size"))
    result = run_sweep(tmp_path / "run", spec, block, space, console=Said(), train="bowl:train")
    done = [trial for trial in result.trials if trial.outcome is Outcome.COMPLETED]
    assert [trial.costs for trial in done] == [{"size": 8.0}] * len(done)
    # All cost the same, so only the most accurate is left.
    assert result.pareto == (result.best,)
    assert max(trial.value(VAL_MAP50) or 0.0 for trial in done) == result.best.value(VAL_MAP50)  # type: ignore[union-attr]
    assert {row["Pareto"] for row in result.table()} == {"yes", ""}


@pytest.mark.slow
def test_population_based_training(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, bowl: Any
) -> None:
    """The fifth trial is the best and the sixth the worst; they run side by side, the best an epoch or two ahead."""
    (tmp_path / "run/trials").mkdir(parents=True)
    (tmp_path / "run/trials/pace").write_text(json.dumps({"5": (4, 0), "4": (5, -2)}))
    rates = (3e-4, 4e-4, 5e-4, 1e-3, 2e-5)
    block = SweepSpec(trials=6, algorithm="pbt", points=tuple({LR: rate} for rate in rates))
    said = Said()
    slow = of(spec, **{SLOW: 200})
    result = run_sweep(tmp_path / "run", slow, block, space, console=said, train="bowl:train")
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 6
    assert "trial 5 goes on from the checkpoint of trial 4" in said.text.getvalue()
    worst = result.trials[5]
    space.check(worst.sample)
    assert worst.params[LR] > 1e-4, "a mutation of the best one's rate"
    assert [one.epoch for one in worst.measurements] == list(range(1, 9))
    assert (worst.value(VAL_MAP50) or 0.0) > 0.8


@pytest.mark.slow
def test_same_seed_repeats_with_the_real_detector(
    local_ray: None, tmp_path: Path, digits_spec: dict[str, Any], space: SearchSpace
) -> None:
    real = ExperimentSpec.from_dict(dotted.put(digits_spec, "train.num_epochs", 2))
    block = SweepSpec(trials=3, concurrent=1, seed=1)
    first, second = (run_sweep(tmp_path / name, real, block, space, console=Said()) for name in "ab")
    assert {trial.outcome for trial in first.trials} == {Outcome.COMPLETED}
    assert numbers(first) == numbers(second)


def test_a_trial_that_ray_never_started_spoils_no_result(
    local_ray: None,
    tmp_path: Path,
    spec: ExperimentSpec,
    space: SearchSpace,
    bowl: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end Ray asks every trial for its folder, which one that was stopped while it waited does not have."""
    from ray import tune

    fit = tune.Tuner.fit

    def stumbling(tuner: tune.Tuner) -> None:
        fit(tuner)
        raise RuntimeError("Should not access `trial_fs_path` without setting `trial_dir_name`")

    monkeypatch.setattr(tune.Tuner, "fit", stumbling)
    result = run_sweep(tmp_path / "run", spec, SweepSpec(trials=1), space, console=Said(), train="bowl:train")
    assert result.finished
    assert result.best is not None
