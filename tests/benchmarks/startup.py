"""How soon each command says something, and how long the short ones take altogether.

    python tests/benchmarks/startup.py [--runs 5] [--run RUN]

Wall seconds from the start of the process to its first byte (least and median) and, of commands that end by themselves,
to its end; CPU seconds beside them, because other work on the machine shows in the wall's only. Commands that go on to
train or to export are ended at their first line. RUN is a finished run for those that need one; needs data/digits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DDETR = str(Path(sys.executable).parent / "ddetr")
SPEC = ("-e", "experiments/quickstart.yaml")


class Taken(NamedTuple):
    first: float
    first_line: str
    whole: float
    cpu: float


def taken(words: tuple[str, ...], *, ends: bool) -> Taken:
    began = time.perf_counter()
    process = subprocess.Popen([DDETR, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    line = os.read(process.stdout.fileno(), 4096)
    first = time.perf_counter() - began
    if not ends:
        process.kill()
    process.stdout.read()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    shown = (line.decode(errors="replace").strip().splitlines() or [""])[0]
    return Taken(first, shown[:50], time.perf_counter() - began, used.ru_utime + used.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--run", help="a finished run")
    given = parser.parse_args()
    commands: list[tuple[tuple[str, ...], bool]] = [
        (("--help",), True),
        (("--version",), True),
        (("trian",), True),
        (("completion", "bash"), True),
        (("space", *SPEC), True),
        (("explain", "lr", *SPEC), True),
        (("train", *SPEC, "--dry-run"), False),
        (("doctor", *SPEC), False),
        (("make-data", "digits", "--out", "/dev/null/x"), False),
    ]
    if given.run:
        commands += [
            (("evaluate", "--from", given.run, *SPEC), False),
            (("inference", "--from", given.run), False),
            (("export", "--from", given.run), False),
            (("gen_trt_engine", "--from", given.run), False),
            (("resume", given.run), False),
        ]
    print(f"{'command':16s} {'first output':>20s} {'whole':>8s} {'CPU':>6s}  (seconds; least, median; least; least)")
    for words, ends in commands:
        found = [taken(words, ends=ends) for _ in range(given.runs)]
        first = [each.first for each in found]
        whole = f"{min(each.whole for each in found):8.2f}" if ends else " " * 8
        cpu = min(each.cpu for each in found)
        took = f"{min(first):9.2f} {statistics.median(first):10.2f} {whole} {cpu:6.2f}"
        print(f"{words[0]:16s} {took}  {found[0].first_line}")


if __name__ == "__main__":
    main()
