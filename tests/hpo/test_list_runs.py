"""`ddetr runs`: what each folder says of itself, whatever its state."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.cli import main
from hpo.files import write_json
from hpo.jobs import find_job
from hpo.ledger import Ledger
from hpo.locks import exclusive
from hpo.result import Outcome
from model.metrics import VAL_MAP50, Measurement
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace


def search(run: Path, spec: ExperimentSpec, space: SearchSpace, values: list[float], budget: int = 2) -> Ledger:
    run.mkdir(parents=True)
    (run / "spec.yaml").touch()
    given: dict[str, Any] = {"searcher": "random", "seed": 1, "budget": budget, "points": (), "metric": VAL_MAP50}
    ledger = Ledger.create(run, spec, space, **given)
    for value in values:
        number = ledger.next()
        assert number is not None
        ledger.record(number, Measurement(epoch=1, values={VAL_MAP50.name: value}, seconds=1.0))
        ledger.finish(number, Outcome.COMPLETED, seconds=1.0)
    if len(values) == budget:
        ledger.end(f"{budget} of {budget} trials", [])
    return ledger


def rows(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["runs", str(root), "--json"]) == 0
    return {row["id"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_state(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    search(tmp_path / "done", spec, space, [0.3, 0.5])
    write_json({"metric": {"name": VAL_MAP50.name, "value": 0.5}}, tmp_path / "done" / "handoff.json")
    search(tmp_path / "stopped", spec, space, [0.3])
    search(tmp_path / "kept", spec, space, [0.4, 0.2])
    search(tmp_path / "busy", spec, space, [])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study.db").write_bytes(b"no database" * 100)
    plain = tmp_path / "plain"
    (plain / "trials" / "0").mkdir(parents=True)
    (plain / "spec.yaml").touch()
    write_json({"metric": {"name": VAL_MAP50.name, "value": 0.6}}, plain / "handoff.json")
    (tmp_path / "mlartifacts").mkdir()
    with exclusive(tmp_path / "busy" / ".lock"):
        found = rows(tmp_path, capsys)
    assert {name: row["state"] for name, row in found.items()} == {
        "done": "finished", "stopped": "interrupted", "kept": "not handed over", "busy": "running", "torn": "broken",
        "plain": "finished",
    }  # fmt: skip
    assert (found["done"]["best"], found["done"]["best_trial"], found["done"]["default"]) == (0.5, 1, 0.3)
    assert (found["stopped"]["trials"], found["stopped"]["budget"]) == (1, 2)
    assert (found["plain"]["kind"], found["plain"]["best"]) == ("plain", 0.6)
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for part in ("val_mAP50 0.5000 (trial 1)", "+0.2000", "2 of 2", "`ddetr resume RUN` goes on", "next: ddetr "):
        assert part in shown


def test_jobs_are_listed_by_the_ids_that_a_later_one_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "runs" / "plain"
    (plain / "trials" / "0").mkdir(parents=True)
    (plain / "spec.yaml").touch()
    write_json({"metric": {"name": VAL_MAP50.name, "value": 0.6}}, plain / "handoff.json")
    for folder, status in ((plain / "export", "SUCCESS"), (tmp_path / "runs" / "tao" / "train", "FAILURE")):
        folder.mkdir(parents=True)
        (folder / "model.onnx").touch()
        (folder / "status.json").write_text(json.dumps({"status": "STARTED"}) + "\n" + json.dumps({"status": status}))
    monkeypatch.chdir(tmp_path)
    found = rows(Path("runs"), capsys)
    assert {name: row["jobs"] for name, row in found.items()} == {
        "plain": {"plain/export": "SUCCESS"}, "tao": {"tao/train": "FAILURE"},
    }  # fmt: skip
    assert {name: row["kind"] for name, row in found.items()} == {"plain": "plain", "tao": "actions"}
    for row in found.values():
        for name in row["jobs"]:
            assert find_job(name).files[0] == (tmp_path / "runs" / name / "model.onnx")
    assert list(rows(Path("runs/tao"), capsys)["tao"]["jobs"]) == ["train"]
    assert main(["runs"]) == 0
    assert "train (FAILURE)" in capsys.readouterr().out


def test_no_folder_and_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no runs in" in shown
    assert "next: ddetr train" in shown


def test_it_needs_no_tracking_and_no_training(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    search(tmp_path / "done", spec, space, [0.3, 0.5])
    code = (
        f"import sys; from hpo.cli import main; code = main(['runs', {str(tmp_path)!r}]); "
        "print(code, [name for name in ('mlflow', 'ray', 'torch') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
