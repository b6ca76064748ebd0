"""Latency by a clock of our own: what is counted, when it ends, and what the numbers mean."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import latency
from model.latency import Latency, Row, measure, nearest_rank, of_torch, repeated


class Clock:
    """Stands still but for what a run takes."""

    def __init__(self, takes: Iterator[float]) -> None:
        self.now, self.runs, self._takes = 0.0, 0, takes

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self.runs += 1
        self.now += next(self._takes)


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def rows(takes: Iterator[float], batch: int = 1, **bounds: float) -> tuple[Row, Clock]:
    clock = Clock(takes)
    (row,) = measure(lambda _: clock.run, [batch], clock=clock, **bounds)  # type: ignore[arg-type]
    return row, clock


def test_warm_up_does_not_count() -> None:
    row, clock = rows(iter([60.0] * latency.WARM_UP + [0.5, 0.25, 0.75, 0.5, 1.0]), batch=4, seconds=3.0)
    assert row == Row(4, 5, 500.0, 1000.0, pytest.approx(4 * 5 / 3.0))
    assert clock.runs == latency.WARM_UP + 5


@pytest.mark.parametrize(
    ("takes", "runs"),
    [(60.0, latency.LEAST), (latency.SECONDS / 8, 8), (1e-5, latency.MOST)],
    ids=["slow: as few as may be", "until the time is over", "fast: as many as may be"],
)
def test_bounds_of_runs(takes: float, runs: int) -> None:
    row, _ = rows(always(takes))
    assert row.runs == runs
    assert row.median_ms == pytest.approx(1000 * takes)


def test_a_run_is_made_for_each_batch_size() -> None:
    made: list[int] = []

    def make(batch: int) -> Callable[[], None]:
        made.append(batch)
        return lambda: None

    found = measure(make, [1, 8, 2], clock=iter(x / 8 for x in range(10**6)).__next__)
    assert made == [row.batch for row in found] == [1, 8, 2]
    assert [row.images_per_second for row in found] == [8.0, 64.0, 16.0]


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (5, 5), (99, 99), (100, 99), (101, 100), (200, 198)])
def test_the_99th_percentile_is_the_nearest_rank(count: int, rank: int) -> None:
    assert nearest_rank([float(value) for value in range(count, 0, -1)], 0.99) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_nearest_rank_is_the_smallest_value_that_covers_the_share(values: list[float], share: float) -> None:
    found = nearest_rank(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_images_go_round() -> None:
    assert repeated(torch.tensor([[1], [2], [3]]), 5).flatten().tolist() == [1, 2, 3, 1, 2]
    assert repeated(torch.tensor([[1], [2], [3]]), 2).flatten().tolist() == [1, 2]


class Seen(torch.nn.Module):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.given: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        answer = pixels * self.weight
        self.given.append((tuple(pixels.shape), mask is not None, answer.requires_grad))
        return answer


def test_a_torch_network_sees_the_images_that_were_scored() -> None:
    model, pixels = Seen(), torch.rand(2, 3, 8, 6)
    found = of_torch(model, pixels, torch.zeros(2, 8, 6, dtype=torch.bool), [3])
    assert set(model.given) == {((3, 3, 8, 6), True, False)}
    assert (found.height, found.width, found.threads) == (8, 6, torch.get_num_threads())
    assert torch.__version__ in found.runner
    assert of_torch(model, pixels, None, []).rows == ()


def test_a_report_is_json_and_a_table(tmp_path: Path) -> None:
    rows = (Row(1, 5, 1.5, 2.5, 666.0), Row(8, 200, 9.0, 9.5, 888.0))
    report = Latency(runner="PyTorch 1", device="CPU, 2 cores", threads=2, height=48, width=64, rows=rows)
    report.write(tmp_path)
    found = json.loads((tmp_path / "latency.json").read_text())
    assert found["rows"][1] == {"batch": 8, "runs": 200, "median_ms": 9.0, "p99_ms": 9.5, "images_per_second": 888.0}
    assert (found["runner"], found["device"], found["threads"]) == ("PyTorch 1", "CPU, 2 cores", 2)
    table = report.table()
    assert [len(list(column.cells)) for column in table.columns] == [2] * 5
    assert "PyTorch 1, CPU, 2 cores, 2 threads, 64 x 48 pixels" in str(table.title)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no GPU here")
def test_a_gpu_is_waited_for() -> None:
    """A product of large matrices is queued in microseconds; what is timed is its end."""
    side = 8192
    model = torch.nn.Linear(side, side, bias=False).cuda()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found = of_torch(Flat(model), torch.rand(1, 3, side // 3 + 1, side), None, [1])
    images = torch.rand(3 * (side // 3 + 1), side, device="cuda")
    begin.record()
    with torch.inference_mode():
        model(images)
    end.record()
    torch.cuda.synchronize()
    assert found.device == torch.cuda.get_device_name()
    assert found.rows[0].median_ms > 0.3 * begin.elapsed_time(end)


class Flat(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.model(pixels.flatten(0, 2))
