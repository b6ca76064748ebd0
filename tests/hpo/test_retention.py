"""What is deleted after a search, and what never is."""

from pathlib import Path

import pytest

from hpo.files import write_json
from hpo.ledger import Ledger
from hpo.result import Outcome, read_result
from hpo.retention import tidy
from model.metrics import VAL_MAP50, Measurement
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace

VALUES = (0.2, 0.5, 0.4, 0.1, 0.3)


@pytest.fixture
def run(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> Path:
    """Five trials with two numbered checkpoints, a link and a best one each; trial 3 was pruned, trial 4 has no best
    one, as where nothing is validated."""
    ledger = Ledger.create(tmp_path, spec, space, searcher="random", seed=1, budget=5, points=(), metric=VAL_MAP50)
    for value in VALUES:
        number = ledger.next()
        assert number is not None
        folder = tmp_path / f"trials/{number}"
        for name in ("model_epoch_000_step_00001.pth", "model_epoch_001_step_00002.pth", "model_best.pth"):
            (folder / name).write_bytes(b"x" * 1000)
        (folder / "dd_model_latest.pth").symlink_to("model_epoch_001_step_00002.pth")
        (folder / "dd_model_latest.pth.unreadable").write_bytes(b"x")
        ledger.record(number, Measurement(epoch=2, values={VAL_MAP50.name: value}, seconds=1.0))
        own = "model_best.pth" if number != 4 else "model_epoch_001_step_00002.pth"
        if number == 4:
            (folder / "model_best.pth").unlink()
        outcome = Outcome.PRUNED if number == 3 else Outcome.COMPLETED
        ledger.finish(number, outcome, checkpoint=f"trials/{number}/{own}")
    ledger.end("5 of 5 trials", [])
    write_json({"sweep": {"keep": 2}}, tmp_path / "sweep.json")
    return tmp_path


def files(run: Path, number: int) -> set[str]:
    return {path.name for path in (run / f"trials/{number}").glob("*.pth")}


def test_nothing_before_the_winner_is_out(run: Path) -> None:
    assert tidy(run) is None
    assert all(len(files(run, number)) >= 3 for number in range(5))


def test_best_trials_keep_all_and_the_others_their_best(run: Path) -> None:
    (run / "handoff.json").write_text("{}")
    line = tidy(run)
    assert line is not None
    assert "not those of the best (1, 2)" in line
    everything = {
        "model_epoch_000_step_00001.pth",
        "model_epoch_001_step_00002.pth",
        "dd_model_latest.pth",
        "model_best.pth",
    }
    assert files(run, 1) == files(run, 2) == everything
    assert files(run, 0) == files(run, 3) == {"model_best.pth"}
    assert files(run, 4) == {"model_epoch_001_step_00002.pth"} | ({"dd_model_latest.pth"} & files(run, 4))
    assert not list(run.glob("trials/*/*.unreadable"))
    for trial in read_result(run).trials:
        assert trial.checkpoint is not None
        assert trial.checkpoint.exists()
    assert tidy(run) is None, "done is done"
    assert tidy(run, keep=1) is not None
    assert files(run, 2) == {"model_best.pth"}


def test_interrupted_deletion_is_finished_the_next_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "handoff.json").write_text("{}")
    real, calls = Path.unlink, []

    def dies(self: Path, missing_ok: bool = False) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        tidy(run)
    monkeypatch.undo()
    assert tidy(run) is not None
    assert files(run, 0) == files(run, 3) == {"model_best.pth"}


def test_unfinished_sweep_keeps_all(run: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    (run / "handoff.json").write_text("{}")
    Ledger.open(run, spec, space, "random").extend(2)
    assert tidy(run) is None
