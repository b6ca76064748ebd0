"""Runs the missing jobs of a benchmark in a few one-threaded processes; every result is a line on disk at once.

Knows names of jobs and JSON results; knows no training. Run the same command again and it goes on.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

NICE = 5


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Finished jobs by name. A line cut off by a kill is left out, and its job is run again."""
    done: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[row["job"]] = row
    return done


def run(
    work: Callable[..., Mapping[str, Any]], jobs: Sequence[tuple[str, tuple[Any, ...]]], path: Path, processes: int
) -> dict[str, dict[str, Any]]:
    """Calls `work(*arguments)` for every (name, arguments) that `path` does not hold yet, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = load(path)
    missing = [(name, arguments) for name, arguments in jobs if name not in done]
    if not missing:
        return done
    os.environ["OMP_NUM_THREADS"] = "1"  # before a worker imports torch
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_ready)
    with pool, path.open("a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        waiting = {pool.submit(work, *arguments): name for name, arguments in missing}
        for future in as_completed(waiting):
            row = {"job": waiting[future], "at": time.strftime("%H:%M:%S"), **future.result()}
            file.write(json.dumps(row) + "\n")
            file.flush()
            done[row["job"]] = row
            print(f"{row['at']} {row['job']} ({len(done)} of {len(jobs)})", flush=True)
    return done


def _ready() -> None:
    import torch

    os.nice(NICE)
    torch.set_num_threads(1)
