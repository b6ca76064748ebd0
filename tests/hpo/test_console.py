"""What is printed: lines into a file, a table on a terminal."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console as RichConsole

from hpo.console import Console
from hpo.result import Outcome, SweepResult, TrialRecord
from model.metrics import VAL_MAP50, Measurement

EMPTY = SweepResult(run_dir=Path("run"), metric=VAL_MAP50, trials=(), budget=2, space_hash="", seed=0)


def record(number: int, outcome: Outcome | None, *values: float, reason: str | None = None) -> TrialRecord:
    return TrialRecord(
        number=number,
        baseline=number == 0,
        outcome=outcome,
        reason=reason,
        sample={},
        params={},
        adjustments=(),
        measurements=tuple(at(epoch, value) for epoch, value in enumerate(values, start=1)),
        seconds=0.0,
        checkpoint=None,
    )


def at(epoch: int, value: float) -> Measurement:
    return Measurement(epoch=epoch, values={VAL_MAP50.name: value}, seconds=60.0 * epoch)


def show(console: Console) -> None:
    console.begin(EMPTY, epochs=2, concurrent=1)
    console.started(record(0, None))
    console.measured(0, at(1, 0.25))
    console.measured(0, at(2, 0.5))
    console.ended(record(0, Outcome.COMPLETED, 0.25, 0.5))
    console.started(replace(record(1, None), params={"train.optim.lr": 0.00012345}))
    console.measured(1, at(1, 0.75))
    console.ended(record(1, Outcome.INFEASIBLE, 0.75, reason="out of memory: [one] image"))
    console.close()


def test_a_line_for_each_event_without_a_terminal() -> None:
    text = io.StringIO()
    show(Console(RichConsole(file=text, force_terminal=False, width=200, highlight=False)))
    assert text.getvalue().splitlines() == [
        "trial 0 starts: the default",
        "trial 0 epoch 1/2  val_mAP50 0.2500  (best of all 0.2500, +0.0000 to the default)  about 3:00 to go",
        "trial 0 epoch 2/2  val_mAP50 0.5000  (best of all 0.5000, +0.0000 to the default)  about 2:00 to go",
        "trial 0 completed, val_mAP50 0.5000, +0.0000 to the default",
        "trial 1 starts: train.optim.lr=0.000123",
        "trial 1 epoch 1/2  val_mAP50 0.7500  (best of all 0.7500, +0.2500 to the default)  about 1:00 to go",
        "trial 1 infeasible, val_mAP50 0.7500, +0.2500 to the default: out of memory: [one] image",
    ]


def test_a_table_on_a_terminal() -> None:
    text = io.StringIO()
    show(Console(RichConsole(file=text, force_terminal=True, width=120, height=30, color_system=None)))
    last = text.getvalue()[text.getvalue().rindex("2 of 2 trials") :]
    assert "default" in last
    assert "completed" in last
    assert "2/2" in last
    assert "+0.2500" in last
    assert "trial 0 starts" not in text.getvalue()


def test_table_keeps_the_default_and_the_newest() -> None:
    text = io.StringIO()
    console = Console(RichConsole(file=text, force_terminal=True, width=120, height=15, color_system=None))
    console.begin(EMPTY, epochs=2, concurrent=1)
    for number in range(40):
        console.started(record(number, None))
    console.close()
    last = text.getvalue()[text.getvalue().rindex("0 of 2 trials") :]
    assert "default" in last
    assert " 39 " in last
    assert " 20 " not in last


def test_resumed_sweep_shows_what_is_known() -> None:
    text = io.StringIO()
    console = Console(RichConsole(file=text, force_terminal=False, width=200))
    known = record(0, Outcome.COMPLETED, 0.25, 0.5)
    console.begin(replace(EMPTY, trials=(known,)), epochs=2, concurrent=1)
    console.started(record(1, None, 0.1))
    console.measured(1, at(2, 0.4))
    assert text.getvalue().splitlines() == [
        "trial 1 goes on after epoch 1",
        "trial 1 epoch 2/2  val_mAP50 0.4000  (best of all 0.5000, +0.0000 to the default)  about 0:00 to go",
    ]
