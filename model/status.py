"""`status.json`: one JSON object a line, for people and tools. An output only: no metric is ever read back from it.

The line format follows TAO's (date, time, status, verbosity, message, kpi); numbers are JSON numbers, and a run always
ends with SUCCESS or FAILURE.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

State = Literal["STARTED", "RUNNING", "SUCCESS", "FAILURE", "SKIPPED"]


class StatusLog:
    """Appends to `<folder>/status.json`; a disabled log (ranks above 0) writes nothing."""

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self.path = folder / "status.json"
        self._enabled = enabled

    def write(self, status: State, message: str, *, kpi: Mapping[str, float] | None = None, **payload: Any) -> None:
        if not self._enabled:
            return
        now = datetime.now()
        verbosity = "ERROR" if status == "FAILURE" else "INFO"
        line: dict[str, Any] = {
            **payload,
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": verbosity,
            "message": message,
        }
        if kpi:
            line["kpi"] = dict(kpi)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def action(self, name: str) -> Iterator[None]:
        """Brackets an action: STARTED before; after it SUCCESS, or FAILURE with the error, which goes on."""
        self._start(name)
        try:
            yield
        except BaseException as error:  # recorded and passed on
            self._fail(error)
            raise
        self.write("SUCCESS", f"{name.capitalize()} finished successfully.")

    def fail(self, name: str, error: BaseException) -> None:
        """An action ended with `error`, maybe before or after its bracket: its FAILURE is the last line, once."""
        told = self.path.read_text(encoding="utf-8").splitlines()[-1:] if self.path.is_file() else []
        if not told or json.loads(told[0]).get("message") != _message(error):
            self._start(name)
            self._fail(error)

    def _start(self, name: str) -> None:
        self.write("STARTED", f"Starting Deformable DETR {name}.")

    def _fail(self, error: BaseException) -> None:
        code = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        self.write("FAILURE", _message(error), error_code=code)


def _message(error: BaseException) -> str:
    return "Interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
