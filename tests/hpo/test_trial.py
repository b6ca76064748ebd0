"""The worker's half of a trial, without Ray: every ending by its name, and going on from the folder's checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import RunError
from hpo.ledger import write_spec
from hpo.locks import exclusive
from hpo.trial import execute
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


def test_folder_is_one_workers_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive(lock), pytest.raises(RunError, match="in use by the other"), exclusive(lock, holder="the other"):
        pass
    with exclusive(lock):
        pass
