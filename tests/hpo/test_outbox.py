"""The queue on disk against a list: whatever happens to process and disk, what was not heard is there, in order."""

import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.outbox import Outbox, waiting


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just("heard"), st.just("reopen"), st.integers(0, 30)), max_size=40))
def test_as_a_list(tmp_path_factory: pytest.TempPathFactory, steps: list[str | int]) -> None:
    """An integer puts an event, and is also how many bytes of a torn line the process leaves when it dies next."""
    path = tmp_path_factory.mktemp("queue") / "events.jsonl"
    box, expected, count = Outbox(path), [], 0
    for step in steps:
        if step == "heard":
            if expected:
                assert box.first() == expected.pop(0)
                box.heard()
        elif step == "reopen":
            box.close()
            with path.open("a") as file:  # killed in mid-write
                file.write('{"event": "of a writer that died"}'[: count % 30])
            box = Outbox(path)
        else:
            count += int(step)
            event = {"number": count, "text": "line\nbreak"}
            box.put(event)
            expected.append(event)
        assert len(box) == len(expected)
    box.close()
    box = Outbox(path)
    box.seal()
    for event in expected:
        assert box.first() == event
        box.heard()
    assert box.first() is None
    assert path.read_bytes() == b""
    box.close()


def test_bounded(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "q", limit=3)
    for number in range(5):
        box.put({"number": number})
    assert (len(box), box.dropped) == (3, 2)
    assert box.first() == {"number": 0}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "q")
    box.put({"number": 1})
    other = Outbox(tmp_path / "q")
    assert not other.held
    assert len(other) == 0
    other.put({"number": 2})
    assert other.first() == {"number": 2}
    box.close()
    assert Outbox(tmp_path / "q").first() == {"number": 1}


def test_full_disk_keeps_the_queue_in_memory(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: a write ends short, as with ENOSPC."""
    box = Outbox(tmp_path / "q")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for number in range(20):
            box.put({"number": number})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    for number in range(20):
        assert box.first() == {"number": number}
        box.heard()
    box.put({"number": 20})
    assert (tmp_path / "q").read_text() == '{"number": 20}\n'


def test_who_closed_it_says_no_more(tmp_path: Path) -> None:
    """A thread that hangs in a request when its run ends must not go on beside whoever opens the file next."""
    box = Outbox(tmp_path / "events.jsonl")
    box.put({"event": 1})
    box.put({"event": 2})
    assert box.first() == {"event": 1}
    box.close()
    box.heard()
    box.seal()
    assert box.first() is None
    again = Outbox(tmp_path / "events.jsonl")
    assert again.first() == {"event": 1}
    assert len(again) == 2 == waiting(tmp_path / "events.jsonl")
