"""The real training, which writes down with how many threads its steps and its data workers compute."""

import json
import os
from pathlib import Path
from typing import Any

from bowl import threads

from model import module
from model.data import dataset
from model.train import measure, take_over
from model.train import train as train_really

__all__ = ["measure", "take_over", "train"]


def train(spec: Any, out: Path, **settings: Any) -> Any:
    """Files `step-<pid>.json` and `worker-<pid>.json` in `out`."""
    step, item = module.Detector.optimizer_step, dataset.CocoDataset._item

    def counted_step(self: Any, *args: Any, **kwargs: Any) -> None:
        (out / f"step-{os.getpid()}.json").write_text(json.dumps(threads()))
        step(self, *args, **kwargs)

    def counted_item(self: Any, *args: Any) -> Any:
        (out / f"worker-{os.getpid()}.json").write_text(json.dumps(threads()))
        return item(self, *args)

    module.Detector.optimizer_step, dataset.CocoDataset._item = counted_step, counted_item  # type: ignore[method-assign]
    try:
        return train_really(spec, out, **settings)
    finally:
        module.Detector.optimizer_step, dataset.CocoDataset._item = step, item  # type: ignore[method-assign]
