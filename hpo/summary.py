"""A sweep in a page of Markdown, for whoever opens its run in MLflow: verdict, trials, what was spent, what to type.

Knows the result alone, so it is the same while the sweep runs and after it ended.
"""

import re
import shlex

from hpo.result import Outcome, SweepResult, TrialRecord

ROWS = 25
"""Trials in the table at most."""


def summary(result: SweepResult) -> str:
    ended = [trial for trial in result.trials if trial.outcome is not None]
    state = f"ended: {result.ended}" if result.ended else f"{len(ended)} of {result.budget} trials are over"
    verdict = result.verdict() if result.ended or result.best else "No trial has completed yet."
    lines = [
        f"**{_plain(verdict)}**",
        "",
        f"The search {state}." if result.ended else f"Running or waiting: {state}.",
        "",
    ]
    lines += _table(result)
    lines += ["", "### Spent", *(f"- {_plain(line)}" for line in _spent(result)), "", "### Next", *_next(result)]
    return "\n".join(lines)


def progress(result: SweepResult) -> list[tuple[int, dict[str, float]]]:
    """(finished trials, metrics of the sweep) after each trial that ended, in that order: the same whenever it is
    asked."""
    ended = sorted((one for one in result.trials if one.outcome is not None), key=_place)
    found, best = list[tuple[int, dict[str, float]]](), dict[bool, float]()  # of completed trials, and of the others
    gpu_seconds = 0.0
    for step, trial in enumerate(ended, start=1):
        value, completed = trial.value(result.metric), trial.outcome is Outcome.COMPLETED
        if value is not None and (completed not in best or result.metric.better(value, best[completed])):
            best[completed] = value
        gpu_seconds = max(gpu_seconds, trial.sweep_gpu_seconds)
        metrics = {"gpu_hours": gpu_seconds / 3600}
        if best:
            metrics[f"best_{result.metric.name}"] = best.get(True, best.get(False, 0.0))
        found.append((step, metrics))
    return found


def _place(trial: TrialRecord) -> tuple[float, int]:
    return (float("inf") if trial.end is None else trial.end, trial.number)


def _table(result: SweepResult) -> list[str]:
    rows = result.table()
    if not rows:
        return ["No trial has begun."]
    names = [name for name in rows[0] if name != "note"]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(_plain(row[name]) for name in names)} |" for row in rows[:ROWS]]
    if len(rows) > ROWS:
        lines += ["", f"{len(rows) - ROWS} more trials: {_typed(f'ddetr compare {shlex.quote(result.run_dir.name)}')}"]
    return lines


def _spent(result: SweepResult) -> list[str]:
    epochs = sum(trial.epochs for trial in (*result.trials, *result.repeats))
    found = [f"{epochs} epochs, {result.seconds / 3600:.2g} hours by the wall"]
    if result.gpu_seconds:
        found.append(f"{result.gpu_seconds / 3600:.2g} GPU hours")
    return [*found, *result.spent]


def _next(result: SweepResult) -> list[str]:
    run = shlex.quote(str(result.run_dir))
    if not result.ended:
        return [
            f"- {_typed(f'ddetr stop {run}')} ends it early and keeps the best",
            f"- {_typed(f'ddetr resume {run}')} goes on after a stop",
        ]
    return [
        f"- {_typed(f'ddetr compare {run}')}: trials side by side",
        f"- {_typed(f'ddetr evaluate --from {run}')}: the winner on the test data",
        f"- {_typed(f'ddetr export --from {run}')}: the winner as ONNX",
        f"- {_typed(f'ddetr resume {run} --add-trials 10')}: search on",
    ]


def _typed(command: str) -> str:
    """A command as code that no sign in a run's name ends."""
    fence = "`" * (1 + max(map(len, re.findall("`+", command)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{' '.join(command.split())}{pad}{fence}"


def _plain(text: str) -> str:
    """Text of data and errors, without what Markdown or a table would take for its own."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
