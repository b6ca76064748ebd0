"""Trials times threads stay within the cores, as read inside of trials on a real Ray."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from hpo.console import Lines
from hpo.result import Outcome
from hpo.sweep import run_sweep
from hpo.sweep_spec import SweepSpec
from hpo.tracking import Tracker
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace


def quiet() -> Lines:
    return Lines(RichConsole(file=io.StringIO(), force_terminal=False, width=200))


class NoTracker(Tracker):
    """Tracks nothing."""

    def _say(self, event: Mapping[str, Any]) -> None:
        pass


def test_each_library_gets_the_cores_of_its_trial(
    local_ray: None, tmp_path: Path, spec: ExperimentSpec, space: SearchSpace
) -> None:
    """Both cores of two; that of two trials at once each has one thread is seen in test_sweep.py."""
    run, block = tmp_path / "run", SweepSpec(trials=1, searcher="random", cpus_per_trial=2)
    run_sweep(run, spec, block, space, console=quiet(), tracker=NoTracker(tmp_path, "run"), train="bowl:train")
    (call,) = [json.loads(line) for line in (run / "trials/0/calls.jsonl").open()]
    told = call["threads"]
    assert {told[name] for name in ("torch", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")} == {2}
    assert max(told.values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("cpus", "workers"), [(1, 0), (2, 1)])
def test_a_real_training_and_its_data_workers(
    local_ray: None, tmp_path: Path, digits_spec: dict[str, Any], space: SearchSpace, cpus: int, workers: int
) -> None:
    digits_spec["train"]["num_epochs"] = 1
    digits_spec["dataset"].update(batch_size=4, workers=4)
    block = SweepSpec(trials=2 // cpus, searcher="random", cpus_per_trial=cpus)
    spec = ExperimentSpec.from_dict(digits_spec)
    result = run_sweep(
        tmp_path / "run", spec, block, space, console=quiet(), tracker=NoTracker(tmp_path, "run"), train="counted:train"
    )
    assert {trial.outcome for trial in result.trials} <= {Outcome.COMPLETED, Outcome.PRUNED}
    for folder in tmp_path.glob("run/trials/*"):
        (step,) = folder.glob("step-*.json")
        assert set(json.loads(step.read_text()).values()) <= set(range(1, cpus + 1))
        assert json.loads(step.read_text())["torch"] == cpus
        loading = {path.stem.partition("-")[2]: json.loads(path.read_text()) for path in folder.glob("worker-*.json")}
        own = step.stem.partition("-")[2]
        # Training and validation have a worker each, one at a time.
        assert len(loading) == max(1, 2 * workers)
        assert (own in loading) == (workers == 0)
        assert all(told["torch"] == 1 for pid, told in loading.items() if pid != own)
