"""CPU seconds of whole trainings, start to end, by this checkout and by another one, in turns: what a trial costs.

A trial of the quickstart (its spec and data, without the search), or with `--more` of any other keys. Each is a process
of its own on one thread; counted is what it and its children took, imports and validation included. Its loss after each
epoch is printed too.

    git worktree add /tmp/before REVISION
    python tests/benchmarks/trial_seconds.py --against /tmp/before --rounds 3 [--epochs 2] [--more model.nheads=8 ...]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Taken(NamedTuple):
    """One training."""

    seconds: float
    """User and system, of the CPU."""
    losses: list[str]
    """Training loss of each epoch."""
    map50: str
    """val_mAP50 of the last."""


def training(checkout: Path, words: list[str]) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        # The first entry of the path is the folder it runs in, where the data are.
        program = f"import sys; sys.path[0] = {str(checkout)!r}; from hpo.cli import direct; direct()"
        spec = ROOT / "experiments" / "quickstart.yaml"
        command = [sys.executable, "-c", program, "train", "-e", str(spec), f"results_dir={folder}", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert child.stdout is not None
        told = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {status}:\n{told}")
    # epoch 1 of 2: lr 0.0002, val_mAP50 0.01788, ..., train_loss 8.22
    found = re.findall(r"val_mAP50 ([\d.]+).*train_loss ([\d.]+)", told)
    return Taken(usage.ru_utime + usage.ru_stime, [loss for _, loss in found], found[-1][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--more", nargs="*", default=[], help="key=value of the spec")
    asked = parser.parse_args()
    checkouts = {"this checkout": ROOT, str(asked.against): asked.against.resolve()}
    taken: dict[str, list[Taken]] = {name: [] for name in checkouts}
    for number in range(asked.rounds):
        for name, checkout in checkouts.items():
            last = training(checkout, [f"train.seed={number + 1}", f"train.num_epochs={asked.epochs}", *asked.more])
            taken[name].append(last)
            told = f"{last.seconds:.1f} CPU s, training loss {' '.join(last.losses)}, val_mAP50 {last.map50}"
            print(f"{name}, seed {number + 1}: {told}", flush=True)
    ours, theirs = taken.values()
    ratios = [that.seconds / this.seconds for this, that in zip(ours, theirs, strict=True)]
    print(f"the other's over this one's, pair by pair: median {statistics.median(ratios):.2f}, {ratios}")


if __name__ == "__main__":
    main()
