"""Detections of images without annotations by an exported file. Knows its input size; `model` draws and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.evaluate import EXPORTED, named_file, open_exported
from model.inference import class_names, find_pictures, infer, infer_checkpoint
from model.status import StatusLog


def inference_action(given: Mapping[str, Any], out: Path) -> int:
    """The `inference` action, whatever the file that is named. Returns the number of images."""
    status = StatusLog(out)
    with status.action("inference"):
        path = named_file(given, "inference")
        if path.suffix not in EXPORTED:
            return infer_checkpoint(path, given, out)
        opened = open_exported(path, given, "inference")
        names = class_names(opened.spec, opened.classes)
        return infer(opened.detector(), find_pictures(opened.spec), names, opened.spec, out)
