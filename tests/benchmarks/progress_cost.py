"""What showing progress costs: CPU per counted item, and CPU of redrawing the bar while the work goes on.

python tests/benchmarks/progress_cost.py
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from hpo.screen import Bars, NowAndThen
from model.progress import Listener, heard_by, track

ITEMS = 200_000
SECONDS = 10.0


def cpu(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


def count() -> None:
    for _ in track(range(ITEMS), "counting", ITEMS, "items"):
        pass


def wait() -> None:
    end = time.monotonic() + SECONDS
    for _ in track(iter(lambda: time.monotonic() < end, False), "waiting", 1000, "items"):
        time.sleep(0.1)


def main() -> None:
    bare = cpu(lambda: [None for _ in range(ITEMS)])
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    listeners: dict[str, Listener] = {"bars": Bars(terminal), "lines": NowAndThen(Console(file=io.StringIO()))}
    print(f"nobody listens: {1e6 * (cpu(count) - bare) / ITEMS:.2f} us CPU an item")
    for name, listener in listeners.items():
        with heard_by(listener):
            each = 1e6 * (cpu(count) - bare) / ITEMS
            print(f"{name}: {each:.2f} us CPU an item; {100 * cpu(wait) / SECONDS:.2f} % of a core for what is shown")


if __name__ == "__main__":
    main()
