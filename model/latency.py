"""How long a network takes: repeated runs of anything callable, by the clock. Knows no network and no accuracy."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from model.whole import write_text

if TYPE_CHECKING:
    from rich.table import Table

FILE = "latency.json"
WARM_UP = 3
LEAST, MOST = 5, 100
"""Runs of one batch size that count."""
SECONDS = 5.0
"""Of one batch size: no further run is begun after them, once there are LEAST."""

Run = Callable[[], object]
"""One batch through the network; returns when the result is there, so a GPU has been waited for."""


class Row(NamedTuple):
    """What was seen at one batch size."""

    batch: int
    runs: int
    """How many stand behind the numbers."""
    median_ms: float
    """Of one batch."""
    p99_ms: float
    """The nearest rank: the smallest time that 99 of 100 runs keep. Of fewer than 100 runs that is the slowest."""
    images_per_second: float
    """Over all runs, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The network alone, without reading, resizing and post-processing that is not in it."""

    runner: str
    """Library and version."""
    device: str
    threads: int
    """Of one operator; 0: the library's own choice."""
    height: int
    """Of the images, pixels."""
    width: int
    rows: tuple[Row, ...]

    def write(self, folder: Path) -> None:
        """`latency.json`."""
        plain = {**asdict(self), "rows": [row._asdict() for row in self.rows]}
        write_text(json.dumps(plain, indent=2) + "\n", folder / FILE)

    def where(self) -> str:
        words = {0: ", its own choice of threads", 1: ", 1 thread"}.get(self.threads, f", {self.threads} threads")
        threads = words if self.device.startswith("CPU") else ""
        return f"{self.runner}, {self.device}{threads}, {self.width} x {self.height} pixels"

    def table(self) -> "Table":
        from rich.table import Table

        table = Table(title=f"Latency of the network: {self.where()}")
        for name in ("batch", "median ms", "p99 ms", "images/s", "runs"):
            table.add_column(name, justify="right")
        for row in self.rows:
            numbers = (f"{row.median_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.images_per_second:.1f}")
            table.add_row(str(row.batch), *numbers, str(row.runs))
        return table


def measure(
    make: Callable[[int], Run],
    batch_sizes: Sequence[int],
    *,
    seconds: float = SECONDS,
    least: int = LEAST,
    most: int = MOST,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Row, ...]:
    """A row for each batch size. `make(batch)` prepares that many images and returns the run that is timed; WARM_UP
    runs of each do not count. For each, `least` to `most` runs in about `seconds`."""
    return tuple(_row(make(batch), batch, seconds, least, most, clock) for batch in batch_sizes)


def _row(run: Run, batch: int, seconds: float, least: int, most: int, clock: Callable[[], float]) -> Row:
    for _ in range(WARM_UP):
        run()
    taken: list[float] = []
    while len(taken) < most and (len(taken) < least or sum(taken) < seconds):
        begun = clock()
        run()
        taken.append(clock() - begun)
    return Row(
        batch=batch,
        runs=len(taken),
        median_ms=1000 * statistics.median(taken),
        p99_ms=1000 * nearest_rank(taken, 0.99),
        images_per_second=batch * len(taken) / sum(taken),
    )


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def of_torch(model: torch.nn.Module, pixels: Tensor, mask: Tensor | None, batch_sizes: Sequence[int]) -> Latency:
    """The network on the device of its weights. pixels (B, 3, H, W): images that it will see again and again,
    normalised; mask (B, H, W): their padding, or None."""
    height, width = pixels.shape[-2:]
    return Latency(
        runner=f"PyTorch {torch.__version__}",
        device=device_name(next(model.parameters()).device),
        threads=torch.get_num_threads(),
        height=height,
        width=width,
        rows=measure(lambda batch: torch_run(model, pixels, mask, batch), batch_sizes),
    )


def torch_run(model: torch.nn.Module, pixels: Tensor, mask: Tensor | None, batch: int) -> Run:
    """A forward of `batch` images without gradients, as `of_torch` takes them."""
    device = next(model.parameters()).device
    images = repeated(pixels, batch).to(device)
    padding = None if mask is None else repeated(mask, batch).to(device)

    def run() -> None:
        with torch.inference_mode():
            model(images, padding)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def repeated(images: Tensor, count: int) -> Tensor:
    """`count` of `images` (B, ...), from the first on and round again."""
    return images[torch.arange(count) % len(images)]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
