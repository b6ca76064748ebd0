"""What a trained detector costs: weights, bytes, time. Knows no accuracy and no search."""

from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_model
from model.latency import measure as measure_runs
from model.latency import torch_run
from model.spec import AugmentationSpec

FORWARDS = 9


def measure(checkpoint: Path, names: Sequence[str], *, cpus: int | None = None) -> dict[str, float]:
    """The costs in `names` of the detector in a file: `parameters` (weights of the network), `size` (megabytes of the
    file), `latency` (milliseconds of one image through the network on this machine's GPU, or `cpus` threads)."""
    found = {}
    if "size" in names:
        found["size"] = checkpoint.stat().st_size / 1e6
    if {"parameters", "latency"} & set(names):
        model, kept = load_model(checkpoint)
        if "parameters" in names:
            found["parameters"] = float(sum(parameter.numel() for parameter in model.parameters()))
        if "latency" in names:
            found["latency"] = latency(model, image_size(kept.spec.dataset.augmentation), cpus=cpus)
    return found


def image_size(sizes: AugmentationSpec) -> tuple[int, int]:
    """Height and width of a picture of 3 : 4 as it is resized for evaluation."""
    height = min(sizes.test_random_resize, sizes.random_resize_max_size)
    return height, min(round(height * 4 / 3), sizes.random_resize_max_size)


def latency(model: torch.nn.Module, size: tuple[int, int], *, cpus: int | None = None) -> float:
    """Median of milliseconds of a forward of one image of height and width `size`, after some that do not count."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    pixels = torch.zeros(1, 3, *size)
    threads = torch.get_num_threads()
    torch.set_num_threads(cpus or threads)
    try:
        (row,) = measure_runs(lambda batch: torch_run(model, pixels, None, batch), [1], least=FORWARDS, most=FORWARDS)
    finally:
        torch.set_num_threads(threads)
    return row.median_ms
