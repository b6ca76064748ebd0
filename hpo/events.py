"""What `--json` prints: one JSON object a line for each event of EVENTS, and nothing else on standard output.

Every object has `event` and `time` (seconds since 1970), and exactly the fields listed here; a value that there is not
is null. What is written for people goes to standard error meanwhile. Knows no command.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

EVENTS: Mapping[str, Mapping[str, str]] = {
    "review": {
        "search": "whether it searches",
        "because": "why, in words",
        "parameters": "dotted names of what is searched",
        "trials": "configurations to try",
        "epochs": "of one trial",
        "seconds": "estimated, by the wall, if no trial is stopped early",
        "ready": "whether nothing speaks against starting",
    },
    "run": {"folder": "where everything is written"},
    "note": {"text": "anything else worth telling"},
    "started": {
        "trial": "its number; a trial whose worker was lost starts again",
        "baseline": "whether it is the default configuration",
        "repeats": "the trial that it runs again with another seed",
        "epochs": "that it has already",
        "params": "values of the searched keys, by dotted name",
    },
    "measured": {
        "trial": "its number",
        "epoch": "from 1",
        "seconds": "of its training so far",
        "values": "every measurement of the epoch, by name",
        "best": "the trial's best value of the metric so far",
        "to_default": "that against the default's",
    },
    "adjusted": {"trial": "its number", "text": "what was changed so that it could go on"},
    "ended": {
        "trial": "its number",
        "outcome": "completed, pruned, infeasible, failed or lost",
        "reason": "why, where it is not plain",
        "epochs": "trained",
        "seconds": "of training",
        "value": "the metric at the best epoch",
        "to_default": "that against the default's",
        "checkpoint": "of the best epoch",
    },
    "finished": {
        "verdict": "what came out, in a sentence",
        "reason": "why it is over",
        "trial": "the winner's number",
        "value": "the winner's metric",
        "default": "the default's",
        "checkpoint": "the winner's",
    },
    "handed_over": {
        "handoff": "handoff.json, which describes the winner",
        "files": "by form: PyTorch, ONNX and engine of each precision",
        "map50": "by form, where measured, and by the images that it was measured on: val, test",
        "failures": "the precisions that lose more than they may, a sentence each",
    },
}

_stream: ContextVar[TextIO | None] = ContextVar("events", default=None)


def wanted() -> bool:
    """Whether a program reads along."""
    return _stream.get() is not None


def emit(event: str, **fields: Any) -> None:
    """Writes one event; nothing without `--json`."""
    assert fields.keys() == EVENTS[event].keys(), (event, sorted(fields))
    stream = _stream.get()
    if stream is not None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **_plain(fields)}, allow_nan=False)
        stream.write(line + "\n")
        stream.flush()


@contextlib.contextmanager
def on_stdout() -> Iterator[None]:
    """Within, events go to standard output, and what anybody else writes there goes to standard error: Python code,
    libraries and child processes."""
    with _diverted() as stream:
        token = _stream.set(stream)
        try:
            yield
        finally:
            _stream.reset(token)


@contextlib.contextmanager
def _diverted() -> Iterator[TextIO]:
    ours = sys.stdout
    ours.flush()
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as undo:
        try:
            plain = ours.fileno() == 1 and sys.stderr.fileno() == 2
        except (OSError, ValueError, AttributeError):  # a program's own streams, which children do not see
            plain = False
        if plain:
            kept = os.dup(1)
            stream = undo.enter_context(os.fdopen(kept, "w", encoding="utf-8"))
            undo.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        yield stream if plain else ours


def _plain(value: Any) -> Any:
    """JSON knows neither paths nor infinities: they become text, and what is not a number null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value
