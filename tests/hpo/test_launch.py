"""The question before a search; stopping and extending one, with the stand-in training."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo import launch
from hpo.cli import main
from hpo.result import SweepResult, read_result

HERE = Path(__file__).resolve().parent


class Terminal:
    """Standard input and output as a person has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: str | None = ""
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", self._input)

    def _input(self, question: str) -> str:
        self.asked.append(question)
        if self.answer is None:
            raise EOFError
        return self.answer


@pytest.mark.parametrize(
    ("answer", "when_ready", "when_not"),
    [("", True, False), ("y", True, True), (" Yes ", True, True), ("n", False, False), ("what", False, False),
     (None, False, False)],
)  # fmt: skip
def test_the_question_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, when_ready: bool, when_not: bool
) -> None:
    terminal = Terminal(monkeypatch)
    terminal.answer = answer
    asking = argparse.Namespace(yes=False, json=False)
    assert launch._agreed(asking, ready=True) is when_ready
    assert launch._agreed(asking, ready=False) is when_not
    assert terminal.asked == ["start? [Y/n] ", "start all the same? [y/N] "]
    assert launch._agreed(argparse.Namespace(yes=True, json=False), ready=False)
    assert len(terminal.asked) == 2


def test_no_question_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert launch._agreed(argparse.Namespace(yes=False, json=False), ready=True)
    assert terminal.asked == []


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[SweepResult]:
    """What a search ended with: the stand-in's checkpoints cannot be exported."""
    found: list[SweepResult] = []
    monkeypatch.setattr(launch, "finish_sweep", lambda run, spec, result: found.append(result))
    return found


def begin(tmp_path: Path, budget: int) -> "tuple[subprocess.Popen[bytes], Path]":
    """A driver of its own, under way with its third trial."""
    run = tmp_path / "results" / "run"
    path = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
    env = {**os.environ, "PYTHONPATH": path, "BOWL_EPOCH_S": "0.2"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), str(run), str(budget)], env=env, stdout=log, stderr=log
        )
    until(lambda: (run / "trials/2/epochs.jsonl").exists() or driver.poll() is not None)
    assert driver.poll() is None, (tmp_path / "log").read_text()
    return driver, run


def until(holds: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_stop_waits_for_the_driver_and_keeps_the_best(
    tmp_path: Path, bowl: Any, handed_over: list[SweepResult], capsys: pytest.CaptureFixture[str]
) -> None:
    driver, run = begin(tmp_path, budget=200)
    assert main(["stop", str(run)]) == 0
    text = capsys.readouterr().out
    assert "told the driver" in text
    result = read_result(run)
    assert result.finished
    assert result.best is not None
    assert result.verdict() in text
    assert 3 <= len(result.trials) < 200
    assert handed_over == []  # its own command does that
    driver.wait(60)

    assert main(["stop", str(run)]) == 2
    assert "is not finished, but" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dead_search_is_stopped_here_and_extended(
    local_ray: None, tmp_path: Path, bowl: Any, handed_over: list[SweepResult], capsys: pytest.CaptureFixture[str]
) -> None:
    driver, run = begin(tmp_path, budget=200)
    driver.kill()
    driver.wait()
    assert main(["stop", str(run)]) == 0
    assert "no driver was at work" in capsys.readouterr().out
    assert [result.finished for result in handed_over] == [True]
    before = len(read_result(run).trials)

    assert main(["resume", str(run), "--add-trials", "2", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    events = [row["event"] for row in said]
    assert events[0] == "run"
    assert {"started", "measured", "ended"} <= set(events)
    new = [row for row in said if row["event"] == "started" and row["trial"] >= before]
    assert len({row["trial"] for row in new}) >= 2
    assert handed_over[1].finished
    assert len(handed_over[1].trials) >= before + 2

    assert main(["resume", str(run), "--add-trials", "none"]) == 2
    assert "`--add-trials` must be a whole number" in capsys.readouterr().err


def test_only_a_search_is_stopped_or_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("stop", "resume"):
        assert main([command, str(tmp_path)]) == 2
        assert f"`ddetr {command}` takes a search" in capsys.readouterr().err
