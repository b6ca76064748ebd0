"""`ddetr compare`: trials of one run or several side by side, as MLflow has them. Knows what differs, and what it cost.

What MLflow has not heard yet it is told first, when it can be; else it is said that something is missing.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hpo import runs
from hpo.errors import RunError
from hpo.mlflow_read import Run, Trial, read_run
from hpo.mlflow_store import how_to_open, shown, tracking_uri
from hpo.screen import near, next_step, out, say

SIDE_BY_SIDE = 5
"""Trials up to which each has a column; more have a row each."""


def compare(arguments: argparse.Namespace) -> None:
    wanted = _wanted(arguments.compared)
    quiet = arguments.json or arguments.csv
    found, trials = dict[Path, Run](), list[Trial]()
    for folder, numbers in wanted.items():
        uri = tracking_uri(folder.parent)
        _tell(catch_up(uri, folder), quiet)
        found[folder] = read_run(uri, folder)
        trials += _picked(found[folder], numbers, folder)
    metrics = {run.metric for run in found.values()}
    if len(metrics) > 1:
        names = ", ".join(sorted(metric.name for metric in metrics))
        raise RunError(f"runs are compared by one metric, but these have {names}; compare them one by one.")
    sign = -1.0 if metrics.pop().goal == "maximize" else 1.0
    trials.sort(key=lambda one: (one.value is None, sign * (one.value or 0.0), one.run, one.number))
    if arguments.json:
        print(json.dumps(_document(found, trials), indent=2))
    elif arguments.csv:
        _write_csv(found, trials)
    else:
        _show(found, trials)
        _say_next(arguments, found, trials)


def catch_up(uri: str, folder: Path) -> str | None:
    """Sends what an ended process kept. What is still missing afterwards and how to mend it; None when nothing is."""
    from hpo.mlflow_runs import RefusedError, UnreachableError
    from hpo.outbox import waiting
    from hpo.tracking import QUEUE, send_kept

    if not waiting(folder / QUEUE):
        return None
    why = "another process of this run is at work and sends them"
    try:
        send_kept(uri, folder)
    except (UnreachableError, RefusedError) as error:
        why = f"{error}; start it, then compare again"
    left = waiting(folder / QUEUE)
    return f"MLflow at {shown(uri)} has not heard {left} events of {folder.name} yet ({why})" if left else None


def _tell(missing: str | None, quiet: bool) -> None:
    if missing is None:
        return
    if quiet:
        print(missing, file=sys.stderr)
    else:
        say(missing)


def _wanted(words: Iterable[str]) -> dict[Path, set[int]]:
    """Run folders and the numbers that were picked of them; none means all."""
    found: dict[Path, set[int]] = {}
    whole: set[Path] = set()
    for word in words:
        name, _, number = word.rstrip("/").rpartition("/")
        if number.isdecimal() and name and not Path(word, "spec.yaml").is_file():
            found.setdefault(runs.find_run(name), set()).add(int(number))
        else:
            folder = runs.find_run(word)
            found.setdefault(folder, set())
            whole.add(folder)
    return {folder: set() if folder in whole else numbers for folder, numbers in found.items()}


def _picked(run: Run, numbers: set[int], folder: Path) -> list[Trial]:
    missing = sorted(numbers - {trial.number for trial in run.trials})
    if missing:
        known = ", ".join(str(trial.number) for trial in run.trials)
        raise RunError(
            f"RUN/N must name a trial of the run, but {folder.name} has no trial {missing[0]}; it has {known}."
        )
    return [trial for trial in run.trials if not numbers or trial.number in numbers]


def differing(trials: Sequence[Trial]) -> list[str]:
    """Names of the parameters in which the trials are not all alike."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return [name for name in names if len({trial.params.get(name) for trial in trials}) > 1]


def rows(found: Iterable[Run], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each trial: what it is, what it reached, what it cost, and what differs."""
    defaults = {run.name: _default(run) for run in found}
    metric = next(iter(found)).metric.name
    names = differing(trials)
    table = []
    for trial in trials:
        default = defaults[trial.run]
        gain = None if trial.value is None or default is None else trial.value - default
        row: dict[str, Any] = {"run": trial.run, "trial": trial.number, "default": trial.baseline}
        row |= {"outcome": trial.state, metric: trial.value, "to default": gain}
        row |= {"epochs": trial.epochs, "seconds": trial.seconds, "GPU hours": trial.gpu_hours}
        row |= {name: trial.params.get(name) for name in names}
        row |= {"seed": trial.seed, "configuration": trial.config_hash, "note": trial.note}
        table.append(row)
    return table


def _default(run: Run) -> float | None:
    return next((trial.value for trial in run.trials if trial.baseline and trial.repeats is None), None)


def _document(found: Mapping[Path, Run], trials: Sequence[Trial]) -> dict[str, Any]:
    about = [
        {"run": run.name, "folder": str(folder), "kind": "plain" if run.plain else "search", "state": run.state}
        for folder, run in found.items()
    ]
    goal = next(iter(found.values())).metric
    return {
        "metric": {"name": goal.name, "goal": goal.goal},
        "runs": about,
        "parameters": differing(trials),
        "trials": rows(list(found.values()), trials),
    }


def _write_csv(found: Mapping[Path, Run], trials: Sequence[Trial]) -> None:
    table = rows(list(found.values()), trials)
    writer = csv.DictWriter(sys.stdout, list(table[0]) if table else ["run", "trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)


def _show(found: Mapping[Path, Run], trials: Sequence[Trial]) -> None:
    for run in found.values():
        ended = sum(trial.state not in ("running", "interrupted") for trial in run.trials)
        kind = "plain training" if run.plain else f"search, {ended} of {len(run.trials)} trials ended"
        say(f"{run.name}: {kind}, {run.state}")
    if not trials:
        say("no trial has begun")
        return
    shown_rows = [_texts(row, len(found) > 1) for row in rows(list(found.values()), trials)]
    used = [name for name in shown_rows[0] if any(row[name] for row in shown_rows)]
    alike = len(trials) > 1 and not differing(trials)
    table = Table(title="Trials, best first", title_justify="left")
    if len(trials) <= SIDE_BY_SIDE:
        table.add_column("")
        for row in shown_rows:
            table.add_column(row["trial"], justify="right", overflow="fold")
        for name in used:
            if name != "trial":
                table.add_row(name, *(row[name] for row in shown_rows))
    else:
        for name in used:
            table.add_column(name, justify="left" if name in ("run", "outcome", "note") else "right", overflow="fold")
        for row in shown_rows:
            table.add_row(*(row[name] for name in used))
    out.print(table)
    if alike:
        say("their searched parameters are the same")
    for folder in dict.fromkeys(folder.parent for folder in found):
        say(f"charts: {how_to_open(tracking_uri(folder))}")


def _texts(row: Mapping[str, Any], several: bool) -> dict[str, str]:
    """A row for people: numbers rounded, columns that say nothing empty."""
    texts = {
        name: _short(name, value) for name, value in row.items() if name not in ("default", "configuration", "seed")
    }
    texts["trial"] += " (default)" if row["default"] else ""
    if not several:
        texts.pop("run")
    return texts


def _short(name: str, value: Any) -> str:
    from rich.markup import escape

    if value is None or (name == "GPU hours" and not value):
        return ""
    if name == "to default":
        return f"{value:+.4f}"
    if name == "seconds":
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}" if name == "GPU hours" else f"{value:.4f}"
    try:
        number = float(value)
    except ValueError:
        return escape(str(value))
    return f"{number:.4g}" if "." in str(value) or "e" in str(value) else str(value)


def _say_next(arguments: argparse.Namespace, found: Mapping[Path, Run], trials: Sequence[Trial]) -> None:
    best = next((trial for trial in trials if trial.value is not None), None)
    folder = next(iter(found))
    if best is None:
        next_step(arguments, "resume", near(folder))
        return
    folder = next(each for each, run in found.items() if run.name == best.run)
    next_step(arguments, "evaluate", "--from", f"{near(folder)}/{best.number}")
