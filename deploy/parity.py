"""Whether an exported graph says what PyTorch says. Knows two predictors and one batch of images; knows no metric."""

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from deploy.runtime import OnnxPredictor
from model.batch import normalise
from model.checkpoint import load_model
from model.data.transforms import Sample, resize
from model.errors import Kind
from model.evaluate import Predictor, torch_predictor
from model.network.detr import Prediction

TOLERANCE = 1e-4
"""Largest absolute difference allowed, of a logit and of a box coordinate (a fraction of the image)."""


class ParityError(RuntimeError):
    """An exported file does not say what its checkpoint says; it must not be used."""

    kind: ClassVar[Kind] = "run"


class Parity(NamedTuple):
    """Largest absolute differences over all images, queries and classes."""

    logits: float
    boxes: float


def compare(checkpoint: Path, onnx: Path, inputs: Tensor) -> Parity:
    """Runs both on `inputs` (B, 3, H, W), normalised RGB, as one batch and its first image alone. Raises ParityError
    when either difference is over TOLERANCE."""
    model, _ = load_model(checkpoint)
    return compare_predictors(torch_predictor(model), OnnxPredictor(onnx), inputs, name=onnx.name)


def compare_predictors(reference: Predictor, candidate: Predictor, inputs: Tensor, *, name: str) -> Parity:
    found = Parity(0.0, 0.0)
    for batch in (inputs, inputs[:1]) if len(inputs) > 1 else (inputs,):
        this = difference(reference(batch, None), candidate(batch, None))
        # A tolerance is checked per batch, so that a NaN cannot hide behind the larger of two numbers.
        if not (this.logits <= TOLERANCE and this.boxes <= TOLERANCE):
            raise ParityError(
                f"`{name}` must agree with PyTorch to {TOLERANCE:g}, but on a batch of {len(batch)} its logits differ "
                f"by up to {this.logits:.3g} and its boxes by up to {this.boxes:.3g}; do not use this file, and report "
                "the model and the versions of torch and onnxruntime."
            )
        found = Parity(max(found.logits, this.logits), max(found.boxes, this.boxes))
    return found


def difference(reference: Prediction, candidate: Prediction) -> Parity:
    logits, boxes = (float((a - b).abs().max()) for a, b in zip(reference, candidate, strict=True))
    return Parity(logits, boxes)


def photographs(height: int, width: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(3, 3, height, width) normalised: the two photographs that come with scikit-learn, and one of them mirrored, so
    that a comparison on real pixels needs no data set."""
    temple, flower = load_sample_images().images
    images = (temple, flower, np.ascontiguousarray(temple[:, ::-1]))
    nothing = np.empty((0, 4)), np.empty(0, dtype=np.int64)
    pixels = np.stack([resize(Sample(image, *nothing), height, width).image for image in images])
    sizes = torch.tensor([[height, width]] * len(images))
    normal, _ = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), sizes, mean, std)
    return normal
