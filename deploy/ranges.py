"""The ranges of tensors for INT8, from calibration images, and the file that keeps them. Knows which graph and which
images a file was made from, and takes it for no other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto
from scipy.stats import entropy

from deploy.calibration import CalibrationImages
from deploy.tensors import extents, read
from model.errors import Kind
from model.progress import progress, track
from model.whole import in_place

METHODS = ("minmax", "entropy", "percentile")
BINS = 2048
PERCENTILE = 99.99
"""Of the absolute values."""
LEVELS = 128
"""Of an int8, of one sign."""
STEP = 16
"""Bins between two cuts that entropy compares."""
FORMAT_VERSION = 1


class StaleCalibration(ValueError):  # noqa: N818 - named for what happened
    """A calibration cache that belongs to something else, or is damaged."""

    kind: ClassVar[Kind] = "run"


def cached(
    model: ModelProto,
    names: Sequence[str],
    images: CalibrationImages,
    method: str,
    cache: Path | None,
    model_sha256: str,
) -> dict[str, float]:
    """As `measured`, from the file `cache` where it exists, else written there. Raises StaleCalibration where that file
    was made from another graph, other images or by another method."""
    belongs = {"model_sha256": model_sha256, "data_sha256": images.digest, "images": images.count, "method": method}
    if cache is not None and cache.exists():
        return _read(cache, belongs, names)
    found = measured(model, names, images, method)
    if cache is not None:
        with in_place(cache) as (partial,):
            content = {"format_version": FORMAT_VERSION, **belongs, "ranges": found}
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return found


def measured(model: ModelProto, names: Sequence[str], images: CalibrationImages, method: str) -> dict[str, float]:
    """The absolute value at which each tensor is cut. minmax: its largest; percentile: that of PERCENTILE of all
    values; entropy: where cutting and rounding change its distribution least (Migacz 2017, "8-bit Inference with
    TensorRT")."""
    if method not in METHODS:
        raise ValueError(
            f"`gen_trt_engine.tensorrt.calibration.method` must be one of {', '.join(METHODS)}, but is `{method}`."
        )
    single = images.one_by_one()  # how images are batched changes nothing but the memory they take
    seen = extents(model, names, track(single, "calibrating", images.count, "images"))
    largest = {name: each.largest for name, each in seen.items()}
    if method == "minmax":
        return largest
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    with progress("counting values", images.count * len(names), "tensors") as counting:
        for name, (values,) in read([model], {name: seen[name].elements for name in names}, single):
            place = np.minimum(np.abs(values) * (BINS / (largest[name] or 1.0)), BINS - 1).astype(np.int64)
            counts[name] += np.bincount(place.ravel(), minlength=BINS)
            counting.advance()
    cut = _percentile if method == "percentile" else _entropy
    return {name: largest[name] * cut(counts[name]) / BINS for name in names}


def _percentile(counts: np.ndarray) -> int:
    """How many of the bins hold PERCENTILE of all."""
    share = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(share, PERCENTILE / 100)) + 1


def _entropy(counts: np.ndarray) -> int:
    """How many of the bins to keep so that the rounded distribution tells most of the whole one."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]  # zeros of a ReLU say nothing of where to cut
    best, least = BINS, np.inf
    for kept in range(LEVELS, BINS + 1, STEP):
        true = counts[:kept].copy()
        level = np.arange(kept) * LEVELS // kept
        filled = true > 0
        sums = np.bincount(level, true, LEVELS)
        shares = np.bincount(level, filled, LEVELS)
        coarse = np.where(filled, (sums / np.maximum(shares, 1))[level], 0.0)
        true[-1] += counts[kept:].sum()
        if not coarse.sum():
            continue
        distance = float(entropy(true, coarse))
        if distance < least:
            best, least = kept, distance
    return best


def _read(cache: Path, belongs: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    remedy = "delete it to calibrate again, or name another file in gen_trt_engine.tensorrt.calibration.cal_cache_file"
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
        known = {name: float(found["ranges"][name]) for name in names}
        stated = {key: found[key] for key in ("format_version", *belongs)}
    except (ValueError, TypeError, KeyError) as error:
        raise StaleCalibration(
            f"a calibration cache must be a whole file of this version, but `{cache}` is not "
            f"({type(error).__name__}: {error}); {remedy}."
        ) from None
    for key, now in {"format_version": FORMAT_VERSION, **belongs}.items():
        if stated[key] != now:
            raise StaleCalibration(
                f"a calibration cache must come from the same model, images and method, but `{cache}` has {key} "
                f"{stated[key]} and this is {now}; {remedy}."
            )
    return known
