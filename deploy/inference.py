"""Detections of images without annotations by an exported file. Knows its input size; `model` draws and labels."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy import sidecar
from deploy.evaluate import named_onnx, spec_for
from deploy.runtime import OnnxPredictor
from model.inference import class_names, find_pictures, infer
from model.spec import ExperimentSpec
from model.status import StatusLog


def inference_action(given: Mapping[str, Any], out: Path) -> int:
    """The `inference` action where `inference.checkpoint` is an ONNX file. Returns the number of images."""
    status = StatusLog(out)
    with status.action("inference"):
        onnx = named_onnx(given, "inference")
        described = sidecar.require_onnx(onnx)
        spec = _unpadded(spec_for(onnx, described, given, "inference"), described.size)
        names = class_names(spec, described.as_checkpoint(onnx).classes)
        return infer(OnnxPredictor(onnx), find_pictures(spec), names, spec, out)


def _unpadded(spec: ExperimentSpec, size: tuple[int, int]) -> ExperimentSpec:
    """Every image exactly as large as the graph wants it, and nothing around it."""
    height, width = size
    aug = replace(spec.dataset.augmentation, fixed_padding=False, pad_size_divisor=None)
    return replace(
        spec,
        dataset=replace(spec.dataset, augmentation=aug),
        inference=replace(spec.inference, input_height=height, input_width=width),
    )
