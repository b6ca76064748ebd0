"""What a training measures of itself beside its metrics: pace, and the memory of the process."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from model import keeper
from model.keeper import Pace, measured
from model.metrics import Measurement


def test_pace_counts_from_the_first_step_that_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace()
    assert pace.images_per_second == 0.0
    for now, images in ((1.0, 0), (2.0, 0), (4.0, 8), (6.0, 8), (7.0, 4)):  # noqa: B007 - `monotonic` reads it
        pace.step(images)
    now = 100.0  # validation
    assert pace.images_per_second == pytest.approx(20 / 5)


def test_a_detector_does_not_inherit_the_peak_of_the_one_before() -> None:
    """In a process of its own: one that has run many tests fills memory that it holds already."""
    subprocess.run([sys.executable, "-c", INHERIT], check=True, timeout=250)


INHERIT = """
import mmap
from model.keeper import forget_peaks, peak_rss

forget_peaks()
before = peak_rss()
big = mmap.mmap(-1, 64 << 20)
big.write(bytes([1]) * (64 << 20))
with_it = peak_rss()
assert with_it - before > 48 << 20, (before, with_it)
big.close()
forget_peaks()
assert with_it - peak_rss() > 48 << 20, (with_it, peak_rss())
"""


def test_a_row_of_an_earlier_version_is_read() -> None:
    row = {"epoch": 2, "seconds": 3.0, "val_mAP50": 0.5}
    assert measured(row) == Measurement(epoch=2, values={"val_mAP50": 0.5}, seconds=3.0)
    now = {**row, "peak_gpu_bytes": 1, "peak_rss_bytes": 2, "images_per_second": 4.0}
    assert measured(now).values == {"val_mAP50": 0.5}
    assert measured(now).peak_memory_bytes == 1
