"""How long work is shown: bars on a terminal, a line now and then elsewhere; and the next command to type."""

import argparse
import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from hpo import screen
from model.progress import Work, progress, track


def terminal() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=100, color_system=None, _environ={}), text


def test_bars_on_a_terminal_vanish_when_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    out, text = terminal()
    monkeypatch.setattr(screen, "out", out)
    monkeypatch.setattr("model.progress.EVERY_S", 0.0)
    with screen.working():
        for _ in track(range(3), "evaluating", 300, "images", size=lambda _: 100):
            pass
        logging.getLogger("model.evaluate").info("a [line] meanwhile")
    shown = text.getvalue()
    assert "evaluating" in shown
    assert "a [line] meanwhile\n" in shown
    assert re.search(r"\x1b\[2K", shown)  # the bar's line is cleared


def test_bars_end_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    out, text = terminal()
    monkeypatch.setattr(screen, "out", out)

    def broken() -> None:
        with screen.working():
            for _ in track(range(3), "evaluating"):
                raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert "\x1b[?25h" in text.getvalue()  # the cursor is back
    assert out._live_stack == []


def test_lines_elsewhere_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    listener = screen.NowAndThen(Console(file=text, width=200))
    work = Work("training", "steps", 1000.0)
    listener.begun(work)
    for second in range(1, 101):
        now[0] += 1.0
        listener.moved(work._replace(done=float(second * 4), note="epoch 1 of 3"))
    listener.over(work)
    assert text.getvalue().splitlines() == [
        "training: 120 of 1,000 steps, epoch 1 of 3, about 220 s left",
        "training: 240 of 1,000 steps, epoch 1 of 3, about 190 s left",
        "training: 360 of 1,000 steps, epoch 1 of 3, about 160 s left",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.working(), progress("exporting", 3) as counting:
        counting.advance(1, "tracing")
    assert capsys.readouterr() == ("", "")


def test_other_libraries_speak_from_warnings_up(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    with screen.working():
        logging.getLogger("pytorch_lightning.utilities.rank_zero").info("a tip")
        logging.getLogger("pytorch_lightning").warning("a warning")
        logging.getLogger("model.fit").info("ours")
    assert capsys.readouterr().out == "a warning\nours\n"
    assert logging.getLogger().handlers == before


def test_the_next_command_can_be_copied(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    person = argparse.Namespace(program="ddetr", json=False)
    screen.next_step(person, "evaluate", "--from", screen.near(tmp_path / "runs" / "my run"), "a=[1]")
    assert capsys.readouterr().out == "next: ddetr evaluate --from 'runs/my run' 'a=[1]'\n"
    screen.next_step(argparse.Namespace(program="deformable_detr"), "evaluate")
    screen.next_step(argparse.Namespace(program="ddetr", json=True), "evaluate")
    assert capsys.readouterr().out == ""
    assert screen.near("/usr/share/far/away") == "/usr/share/far/away"
