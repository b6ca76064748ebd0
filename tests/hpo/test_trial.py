"""The worker's half of a trial, without Ray: every ending by its name, and going on from the folder's checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import RunError
from hpo.files import write_spec
from hpo.locks import exclusive
from hpo.trial import DUMP, ORDERED, STACK_FILE, execute, stack_dumps
from model.spec import ExperimentSpec
from schemas import dotted


def run(
    out: Path, *, decay: float = 1e-4, epochs: int = 4, **extra: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = ExperimentSpec.from_dict({"train": {"num_epochs": epochs, "optim": {"weight_decay": decay}}}).to_dict()
    for name, value in extra.items():
        spec = dotted.put(spec, name, value)
    write_spec(spec, out / "spec.yaml")
    said: list[dict[str, Any]] = []
    return execute(out, "bowl:train", 1, lambda message: said.append(json.loads(json.dumps(message)))), said


def test_completed(tmp_path: Path, bowl: Any) -> None:
    final, said = run(tmp_path / "trials/3")
    assert final["outcome"] == "completed"
    assert final["reason"] is None
    assert final["checkpoint"] == "trials/3/model_best.pth"
    assert [message["epoch"] for message in said] == [1, 2, 3, 4]
    assert final["measurements"] == said
    assert final["seconds"] == 4.0


@pytest.mark.parametrize(
    ("decay", "outcome", "reason"),
    [(1e-6, "infeasible", "diverged: loss_ce is nan"), (2e-6, "infeasible", "out of memory: one image")],
)
def test_named_endings(tmp_path: Path, bowl: Any, decay: float, outcome: str, reason: str) -> None:
    final, said = run(tmp_path / "trials/0", decay=decay)
    assert final["outcome"] == outcome
    assert final["reason"].startswith(reason)
    assert len(said) == 1


def test_users_mistake_is_failed_with_its_text(tmp_path: Path, bowl: Any) -> None:
    final, _ = run(tmp_path / "trials/0", **{"train.optim.lr": 7.0})
    assert final["outcome"] == "failed"
    assert "`train.optim.lr` must be at most" in final["reason"]


def test_a_crash_without_a_name_passes_through(tmp_path: Path, bowl: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "trials/0", decay=3e-6)


def test_goes_on_from_its_own_checkpoint(tmp_path: Path, bowl: Any) -> None:
    out = tmp_path / "trials/0"
    run(out, epochs=2)
    final, said = run(out, epochs=5)
    assert [message["epoch"] for message in said] == [3, 4, 5]
    assert [message["epoch"] for message in final["measurements"]] == [1, 2, 3, 4, 5]


def test_torn_checkpoint_is_left_aside_and_said(tmp_path: Path, bowl: Any) -> None:
    out = tmp_path / "trials/0"
    run(out, epochs=2)
    (out / "dd_model_latest.pth").write_text("[0.1, 0.")
    final, said = run(out, epochs=3)
    assert final["outcome"] == "completed"
    assert "dd_model_latest.pth cannot be gone on from, beginning anew" in said[0]["adjusted"]
    assert [message["epoch"] for message in said[1:]] == [1, 2, 3]
    assert (out / "dd_model_latest.pth.unreadable").exists()


def test_torn_checkpoint_with_an_older_one_beside_it(tmp_path: Path, bowl: Any) -> None:
    out = tmp_path / "trials/0"
    run(out, epochs=2)
    older = out / "model_epoch_001_step_00002.pth"
    (out / "dd_model_latest.pth").rename(older)
    (out / "model_epoch_002_step_00003.pth").write_text("torn")
    (out / "dd_model_latest.pth").symlink_to("model_epoch_002_step_00003.pth")
    final, said = run(out, epochs=4)
    assert final["outcome"] == "completed"
    assert "going on from model_epoch_001_step_00002.pth" in said[0]["adjusted"]
    assert [message["epoch"] for message in said[1:]] == [3, 4]


@pytest.mark.parametrize(("decay", "full"), [(6e-6, True), (7e-6, None)])
def test_trouble_of_the_machine_is_not_the_configurations(
    tmp_path: Path, bowl: Any, decay: float, full: bool | None
) -> None:
    out = tmp_path / "trials/0"
    out.mkdir(parents=True)
    (tmp_path / "trials/full").touch()
    final, _ = run(out, decay=decay)
    assert final["outcome"] == "lost"
    assert final.get("disk_full") == full
    (tmp_path / "trials/full").unlink()
    final, said = run(out, decay=decay)
    assert final["outcome"] == "completed"
    assert [message["epoch"] for message in said] == [2, 3, 4]


def test_takes_over_once(tmp_path: Path, bowl: Any) -> None:
    run(tmp_path / "trials/0", epochs=3)
    out = tmp_path / "trials/1"
    run(out, epochs=1)
    order = {"serial": 1, "parent": str(tmp_path / "trials/0")}
    (out / ORDERED).write_text(json.dumps(order))
    _, said = run(out, epochs=5)
    assert [one["epoch"] for one in said[0]["taken_over"]] == [1, 2, 3]
    assert [message["epoch"] for message in said[1:]] == [4, 5]
    _, said = run(out, epochs=6)
    assert [message["epoch"] for message in said] == [6]
    (out / ORDERED).write_text(json.dumps({"serial": 2, "parent": str(tmp_path / "trials/9")}))
    (tmp_path / "trials/9").mkdir()
    (tmp_path / "trials/9/dd_model_latest.pth").write_text("torn")
    _, said = run(out, epochs=7)
    assert "no checkpoint of trial 9 could be taken over" in said[0]["adjusted"]
    assert [message["epoch"] for message in said[1:]] == [7]


def test_stacks_of_a_process_that_is_told_to(tmp_path: Path) -> None:
    with stack_dumps(tmp_path):
        os.kill(os.getpid(), DUMP)
    assert "test_stacks_of_a_process_that_is_told_to" in (tmp_path / STACK_FILE).read_text()
    (tmp_path / STACK_FILE).unlink()
    with stack_dumps(tmp_path):
        pass
    assert not (tmp_path / STACK_FILE).exists()


def test_folder_is_one_workers_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive(lock), pytest.raises(RunError, match="in use by the other"), exclusive(lock, holder="the other"):
        pass
    with exclusive(lock):
        pass
