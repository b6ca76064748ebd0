"""What is shown of a sweep: lines into a file, a table on a terminal, events to a program."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from hpo import events, screen
from hpo.cluster import Share
from hpo.console import Console, Events, Lines, for_output
from hpo.live_table import LiveTable
from hpo.result import Outcome, SweepResult
from model.metrics import VAL_MAP50
from tests.hpo.trials import at, trial

EMPTY = SweepResult(run_dir=Path("run"), metric=VAL_MAP50, trials=(), budget=2, space_hash="", seed=0)
ONE = Share(cpus=2, gpus=0, concurrent=1)


def show(console: Console) -> None:
    console.begin(EMPTY, epochs=3, share=ONE)
    console.started(trial(0, outcome=None))
    console.placed(0, "here")
    for epoch, value in enumerate((0.25, 0.375, 0.5), start=1):
        console.measured(0, at(epoch, value))
    console.ended(trial(0, 0.25, 0.375, 0.5))
    console.started(trial(1, outcome=None, params={"train.optim.lr": 0.00012345}))
    console.placed(1, "here")
    console.measured(1, at(1, 0.625))
    console.adjusted(1, "images at once 8 -> 4 (out of memory)")
    console.measured(1, at(2, 0.75))
    console.ended(trial(1, 0.625, 0.75, outcome=Outcome.INFEASIBLE, reason="out of memory: [one] image"))
    console.close()


def test_a_line_for_each_event_without_a_terminal() -> None:
    text = io.StringIO()
    show(Lines(RichConsole(file=text, force_terminal=False, width=200, highlight=False)))
    assert text.getvalue().splitlines() == [
        "trial 0 starts: the default",
        "trial 0 epoch 1/3  val_mAP50 0.2500  (best of all 0.2500, +0.0000 to the default)  3:45 to 7:30 to go",
        "trial 0 epoch 2/3  val_mAP50 0.3750  (best of all 0.3750, +0.0000 to the default)  3:00 to 6:00 to go",
        "trial 0 epoch 3/3  val_mAP50 0.5000  (best of all 0.5000, +0.0000 to the default)  2:15 to 4:30 to go",
        "trial 0 completed, val_mAP50 0.5000, +0.0000 to the default",
        "trial 1 starts: train.optim.lr=0.000123",
        "trial 1 epoch 1/3  val_mAP50 0.6250  (best of all 0.6250, +0.1250 to the default)  1:30 to 3:00 to go",
        "trial 1: images at once 8 -> 4 (out of memory)",
        "trial 1 epoch 2/3  val_mAP50 0.7500  (best of all 0.7500, +0.2500 to the default)  about 1:00 to go",
        "trial 1 infeasible, val_mAP50 0.7500, +0.2500 to the default: out of memory: [one] image",
    ]


def terminal(width: int = 120, height: int = 30, **more: Any) -> tuple[RichConsole, io.StringIO]:
    text = io.StringIO()
    more = {"color_system": None, **more}
    return RichConsole(file=text, force_terminal=True, width=width, height=height, **more), text


def last_table(text: io.StringIO) -> str:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    return plain[[found.start() for found in re.finditer(r"\d of 2 trials", plain)][-1] :].rstrip()


def test_a_table_on_a_terminal() -> None:
    out, text = terminal()
    show(LiveTable(out))
    last = last_table(text)
    assert last.startswith("2 of 2 trials, val_mAP50, 0:0")
    rows = {line.split()[0]: line.split() for line in last.splitlines()}
    assert rows["default"] == ["default", "completed", "3/3", "0.5000", "0.5000", "3:00"]
    assert " ".join(rows["1"]) == "1 infeasible 2/3 0.7500 0.7500 +0.2500 2:00 out of memory: [one] image"
    assert "trial 0 starts" not in text.getvalue()


def test_what_a_running_trial_has_and_where_when_there_are_several_machines() -> None:
    out, text = terminal()
    console = LiveTable(out)
    console.begin(EMPTY, epochs=3, share=Share(cpus=4, gpus=0.5, concurrent=2))
    console.started(trial(0, outcome=None))
    console.placed(0, "red")
    console.note("one machine so far")
    console.started(trial(1, outcome=None))
    console.placed(1, "blue")
    console.adjusted(1, "images at once 8 -> 4")
    console.close()
    assert "0.5 GPU" in text.getvalue()
    assert "red" not in text.getvalue()[: text.getvalue().index("one machine so far")]
    last = last_table(text)
    assert "0.5 GPU red" in last
    assert "0.5 GPU blue; images at once 8 -> 4" in last
    assert "time to go: after the first epoch" in last


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    out, text = terminal(width=width)
    show(LiveTable(out))
    lines = last_table(text).splitlines()
    assert max(map(len, lines)) <= width
    for value in ("default", "infeasible", "+0.2500", "3:00"):
        assert value in "\n".join(lines)


def test_table_keeps_the_default_and_the_newest() -> None:
    out, text = terminal(height=15)
    console = LiveTable(out)
    console.begin(EMPTY, epochs=2, share=ONE)
    for number in range(40):
        console.started(trial(number, outcome=None))
    console.close()
    last = last_table(text)
    assert "default" in last
    assert " 39 " in last
    assert " 20 " not in last
    assert len(last.splitlines()) == 14  # the cursor's line is the last


def test_no_color_leaves_the_table_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    out, text = terminal(color_system="standard", _environ={})
    show(LiveTable(out))
    assert colours.search(text.getvalue())
    out, text = terminal(color_system="standard", _environ={"NO_COLOR": "1"})
    show(LiveTable(out))
    assert not colours.search(text.getvalue())


def test_resumed_sweep_shows_what_is_known() -> None:
    text = io.StringIO()
    console = Lines(RichConsole(file=text, force_terminal=False, width=200))
    known = trial(0, 0.25, 0.5)
    console.begin(replace(EMPTY, trials=(known,)), epochs=2, share=ONE)
    console.started(trial(1, 0.1, outcome=None))
    console.measured(1, at(2, 0.4))
    assert text.getvalue().splitlines() == [
        "trial 1 goes on after epoch 1",
        "trial 1 epoch 2/2  val_mAP50 0.4000  (best of all 0.5000, +0.0000 to the default)",
    ]


def test_events_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with events.on_stdout():
        console = for_output()
        assert isinstance(console, Events)
        console.note("before it begins")
        show(console)
        print("for a person")
    said = capsys.readouterr()
    assert said.err == "for a person\n"
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["event"] for row in rows] == [
        "note", "started", "measured", "measured", "measured", "ended", "started", "measured", "adjusted", "measured",
        "ended",
    ]  # fmt: skip
    for row in rows:
        assert row.keys() == {"event", "time", *events.EVENTS[row["event"]]}
    assert rows[6]["params"] == {"train.optim.lr": 0.00012345}
    assert (rows[9]["trial"], rows[9]["epoch"], rows[9]["best"], rows[9]["to_default"]) == (1, 2, 0.75, 0.25)
    assert (rows[10]["outcome"], rows[10]["reason"]) == ("infeasible", "out of memory: [one] image")


def test_the_console_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(for_output(), Lines)
    monkeypatch.setattr(screen, "out", terminal()[0])
    assert isinstance(for_output(), LiveTable)
    monkeypatch.setattr(screen, "out", terminal(_environ={"TERM": "dumb"})[0])
    assert isinstance(for_output(), Lines)
