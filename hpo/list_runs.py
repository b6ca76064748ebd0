"""`ddetr runs`: what lies in a results folder, from the folders themselves. Knows no tracking server."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from hpo import runs
from hpo.errors import InUseError, RunError
from hpo.jobs import made
from hpo.locks import exclusive
from hpo.screen import near, next_step, out, say

if TYPE_CHECKING:
    from hpo.result import SweepResult

State = Literal["running", "finished", "interrupted", "not handed over", "broken"]
MEANING: dict[State, str] = {
    "interrupted": "`ddetr resume RUN` goes on",
    "not handed over": "the search ended and its winner was not exported: `ddetr resume RUN` does it",
    "broken": "its study cannot be read; the note says why",
}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run folder."""

    id: str
    kind: Literal["search", "plain", "actions"]
    state: State
    trials: int
    """That have ended."""
    budget: int
    metric: str
    best: float | None
    best_trial: int | None
    default: float | None
    started: float
    """Seconds since 1970."""
    note: str = ""
    jobs: Mapping[str, str] = field(default_factory=dict)
    """Id of each action's folder, `RUN/export`, with the status that its status.json ends with."""


def list_runs(arguments: argparse.Namespace) -> None:
    root: Path = arguments.folder
    if not root.is_dir():
        raise RunError(
            f"DIR must be a folder of runs, but there is no folder {root}; name the `results_dir` of your spec, or "
            "start one with `ddetr train`."
        )
    found = sorted(listed(root), key=lambda one: one.started, reverse=True)
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        say(f"no runs in {root}/")
        next_step(arguments, "train", "-e", "SPEC")
        return
    out.print(_table(root, found))
    for state in dict.fromkeys(one.state for one in found):
        if state in MEANING:
            say(f"{state}: {MEANING[state]}")
    first = next((one for one in found if one.kind != "actions"), None)
    if first is not None:
        words = ("resume",) if first.state in ("interrupted", "not handed over") else ("compare",)
        next_step(arguments, *words, near(root / first.id))


def listed(root: Path) -> Iterator[Listed]:
    """Folders below `root` that a run or an action began in, and `root` itself where it is a results_dir of actions; a
    folder of something else is passed over."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        jobs = {f"{folder.name}/{name}": status for name, status in made(folder).items()}
        if (folder / "study.db").is_file():
            yield replace(_search(folder), jobs=jobs)
        elif (folder / "spec.yaml").is_file() and (folder / "trials").is_dir():
            yield replace(_plain(folder), jobs=jobs)
        elif jobs:
            yield _actions(folder, jobs)
    if jobs := made(root):
        yield _actions(root, jobs)


def _actions(folder: Path, jobs: Mapping[str, str]) -> Listed:
    """What `deformable_detr` wrote to one results_dir."""
    begun = [(folder / Path(name).name).stat().st_mtime for name in jobs]
    return Listed(
        id=folder.name,
        kind="actions",
        state="finished" if all(status in ("SUCCESS", "FAILURE") for status in jobs.values()) else "running",
        trials=0,
        budget=0,
        metric="",
        best=None,
        best_trial=None,
        default=None,
        started=min(begun),
        jobs=jobs,
    )


def _search(folder: Path) -> Listed:
    from sqlalchemy.exc import SQLAlchemyError

    from hpo.result import read_result

    started = _started(folder)
    try:
        result = read_result(folder)
    except (SQLAlchemyError, KeyError) as error:
        note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return Listed(
            id=folder.name, kind="search", state="broken", trials=0, budget=0, metric="", best=None, best_trial=None,
            default=None, started=started, note=note[:120],
        )  # fmt: skip
    best, default = result.best, result.baseline
    score = None if best is None else result.score(best)
    return Listed(
        id=folder.name,
        kind="search",
        state=_state(folder, result),
        trials=sum(trial.outcome is not None for trial in result.trials),
        budget=result.budget,
        metric=result.metric.name,
        best=None if score is None else score.mean,
        best_trial=None if best is None else best.number,
        default=None if default is None else default.value(result.metric),
        started=started,
        note=result.ended or "",
    )


def _state(folder: Path, result: "SweepResult") -> State:
    if _is_held(folder / ".lock"):
        return "running"
    if not result.finished:
        return "interrupted"
    return "finished" if (folder / runs.HANDOFF).is_file() else "not handed over"


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with exclusive(lock):
            return False
    except InUseError:
        return True
    except OSError:  # somebody else's folder: nothing that can be told
        return False


def _plain(folder: Path) -> Listed:
    handoff, status = folder / runs.HANDOFF, folder / "trials" / "0" / "status.json"
    metric, value, state, note = "val_mAP50", None, "interrupted", ""
    if handoff.is_file():
        kept = json.loads(handoff.read_text(encoding="utf-8"))["metric"]
        metric, value, state = kept["name"], kept["value"], "finished"
    elif status.is_file() and not _ended(status):
        # Nothing holds a lock here: what is silent for long is over.
        state = "running" if time.time() - status.stat().st_mtime < 3600 else "interrupted"
    return Listed(
        id=folder.name,
        kind="plain",
        state=state,  # type: ignore[arg-type]
        trials=int(state == "finished"),
        budget=1,
        metric=metric,
        best=value,
        best_trial=0 if value is not None else None,
        default=value,
        started=_started(folder),
        note=note,
    )


def _ended(status: Path) -> bool:
    lines = status.read_text(encoding="utf-8").splitlines()
    return any('"FAILURE"' in line or '"SUCCESS"' in line for line in lines[-1:])


def _started(folder: Path) -> float:
    first = folder / "spec.yaml"
    return (first if first.exists() else folder).stat().st_mtime


def _table(root: Path, found: list[Listed]) -> Table:
    table = Table(title=f"Runs in {root}, newest first", title_justify="left")
    for name in ("run", "kind", "state", "trials", "best", "to default", "began", "note"):
        table.add_column(name, justify="right" if name in ("trials", "best", "to default") else "left", overflow="fold")
    for one in found:
        gain = (
            "" if one.best is None or one.default is None or one.kind == "plain" else f"{one.best - one.default:+.4f}"
        )
        best = "" if one.best is None else f"{one.metric} {one.best:.4f}"
        if one.best_trial is not None and one.kind == "search":
            best += f" (trial {one.best_trial})"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started))
        trials = f"{one.trials} of {one.budget}" if one.budget else ""
        jobs = (
            name.rpartition("/")[2] + ("" if status == "SUCCESS" else f" ({status})")
            for name, status in one.jobs.items()
        )
        note = "; ".join(filter(None, (one.note, ", ".join(jobs))))
        table.add_row(one.id, one.kind, one.state, trials, best, gain, began, note)
    return table
