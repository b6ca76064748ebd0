"""Standard output with `--json`: events and nothing else, whoever writes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from hpo import events


def test_strict_json_whatever_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"loss": math.nan, "best": math.inf, 3: (1, Path("a/b"))}
    with events.on_stdout():
        events.emit("measured", trial=1, epoch=1, seconds=1.0, values=values, best=None, to_default=None)
    row = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert row["values"] == {"loss": None, "best": "inf", "3": [1, "a/b"]}


def test_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    events.emit("note", text="nobody reads along")
    assert not events.wanted()
    assert capsys.readouterr() == ("", "")


def test_an_event_has_its_fields_and_no_others() -> None:
    with pytest.raises(AssertionError):
        events.emit("note", words="x")


def test_child_processes_and_libraries_write_elsewhere() -> None:
    """By file descriptor, too: a shell writes to it, and after the block all is as before."""
    code = """
import os, subprocess
from hpo import events
with events.on_stdout():
    subprocess.run(["echo", "a child"], check=True)
    os.write(1, b"a library\\n")
    print("python")
    events.emit("note", text="an event")
print("after")
subprocess.run(["echo", "a later child"], check=True)
"""
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    first, *rest = found.stdout.splitlines()
    assert json.loads(first)["text"] == "an event"
    assert sorted(rest) == ["a later child", "after"]
    assert sorted(found.stderr.splitlines()) == ["a child", "a library", "python"]
