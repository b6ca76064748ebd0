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
        self.write("STARTED", f"Starting Deformable DETR {name}.")
        try:
            yield
        except KeyboardInterrupt:
            self.write("FAILURE", "Interrupted", error_code="Interrupted")
            raise
        except BaseException as error:  # recorded and passed on
            self.write("FAILURE", f"{type(error).__name__}: {error}", error_code=type(error).__name__)
            raise
        self.write("SUCCESS", f"{name.capitalize()} finished successfully.")
