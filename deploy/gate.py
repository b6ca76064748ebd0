"""Whether a finished engine detects what its ONNX file detects, on a machine that can run it. Knows two graphs and two
photographs; knows no truth and no metric.

Some TensorRT versions compute GridSample wrongly without a word (NVIDIA/TensorRT issue 4813: three of four detections
lost), so that no engine gets its name on a GPU without this.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from deploy.calibration import CalibrationImages
from deploy.drift import detections
from deploy.parity import ParityError
from deploy.runtime import GraphPredictor, OnnxPredictor, Outputs
from deploy.sidecar import OnnxSidecar

TOLERANCE: Mapping[str, float] = {"FP32": 0.002, "FP16": 0.01, "INT8": 0.05}
"""Largest `distance` allowed between two ways to compute one graph: sums come in another order, and short types round
them. What is to be found is far larger."""
MOST = 8
"""Images of the largest batch that is tried."""


def compare(engine: GraphPredictor, onnx: Path, described: OnnxSidecar, precision: str) -> str:
    """A sentence on how far `engine` is from `onnx` in ONNX Runtime, in its smallest and its largest batch. Raises
    ParityError where that is too far."""
    reference, farthest = OnnxPredictor(onnx), 0.0
    low, high = engine.batch_range
    for count in sorted({low, min(high or MOST, MOST)}):
        pixels = _batch(described, count)
        this = distance(reference.run(pixels), engine.run(pixels), engine.size)
        if not this <= TOLERANCE[precision]:
            raise ParityError(
                f"an engine must detect what `{onnx}` detects to {TOLERANCE[precision]:g} (mean distance of "
                f"detections), but on a batch of {count} photographs it is {this:.3g} away, and was not written. "
                "Export with export.attention=gather: some TensorRT versions compute GridSample wrongly."
            )
        farthest = max(farthest, this)
    return f"compared with ONNX Runtime on photographs, mean distance of detections {farthest:.1e}"


def distance(expected: Outputs, found: Outputs, size: tuple[int, int]) -> float:
    """Mean over the detections of `expected`, weighed with the square of their scores, of the largest difference of a
    score or of a box coordinate (both in 0..1) from the nearest detection of `found`. Infinite where that holds what is
    no number. size: height and width of the graphs' input."""
    (ours, certain), (theirs, _) = (
        detections({name: value.cpu().float().numpy() for name, value in outputs.items()}, size)
        for outputs in (expected, found)
    )
    if not np.isfinite(theirs).all():
        return float("inf")
    nearest = np.stack([cdist(one, other, "chebyshev").min(1) for one, other in zip(ours, theirs, strict=True)])
    return float(np.average(nearest, weights=certain**2))


def photographs(described: OnnxSidecar) -> CalibrationImages:
    """The two photographs that come with scikit-learn, as input of the graph that is described."""
    folder = files("sklearn.datasets.images")
    paths = [Path(str(folder.joinpath(name))) for name in ("china.jpg", "flower.jpg")]
    return CalibrationImages(paths, described, batch_size=len(paths))


def _batch(described: OnnxSidecar, count: int) -> Tensor:
    pixels = np.concatenate(list(photographs(described)))
    return torch.from_numpy(pixels[np.arange(count) % len(pixels)])
