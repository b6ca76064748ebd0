"""The real training, with the times of its first step and its end beside its files. Workers import it by name."""

import json
import time
from pathlib import Path
from typing import Any

from model import module
from model.train import measure, take_over
from model.train import train as train_really

__all__ = ["measure", "take_over", "train"]


def train(spec: Any, out: Path, **settings: Any) -> Any:
    times: dict[str, float] = {}
    real = module.Detector.optimizer_step

    def timed(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        times.setdefault("first_step", time.time())

    module.Detector.optimizer_step = timed  # type: ignore[method-assign]
    try:
        return train_really(spec, out, **settings)
    finally:
        module.Detector.optimizer_step = real  # type: ignore[method-assign]
        (out / "times.json").write_text(json.dumps({**times, "end": time.time()}))
