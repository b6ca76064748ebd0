"""What a worker does for one trial: train a written spec, report each epoch, name how it ended.

Knows its own folder and the training function; knows no searcher, no study and no other trial. A worker is reused for
the next trial, so nothing may be left behind.
"""

import dataclasses
import gc
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import guard
from hpo.locks import exclusive

if TYPE_CHECKING:
    from model.metrics import Measurement

MESSAGE = "message"
"""The one key of everything a worker reports: JSON text, so that no layer in between renames a metric."""
FINAL = "final"
LATEST = "dd_model_latest.pth"
ERROR_FILE = "error.txt"
Say = Callable[[Mapping[str, Any]], None]


def run_trial(config: dict[str, Any]) -> None:
    """The Ray Tune function. `config`: number, run_dir, train ("module:function"), cpus."""
    from ray import tune

    out = Path(config["run_dir"]) / "trials" / str(config["number"])
    (out / ERROR_FILE).unlink(missing_ok=True)
    try:
        guard.check()
        limit_threads(config["cpus"])
        # A worker whose driver was killed may live a moment longer: two must never write one folder.
        with exclusive(out / ".lock", wait_s=60.0, holder="the worker of an earlier session"):
            final = execute(out, config["train"], config["cpus"], lambda message: tune.report(_packed(message)))
            tune.report(_packed({FINAL: final}))
    except Exception:
        (out / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        clean_up()


def execute(out: Path, train: str, cpus: int, say: Say) -> dict[str, Any]:
    """Trains the spec in `out`. Returns how it ended: outcome, reason, adjustments, seconds, checkpoint, measurements.

    A crash that has no name here is the configuration's own, and passes through.
    """
    import yaml

    from model.errors import CheckpointError, DataError, NonFiniteLoss, OutOfMemory, SpecError
    from model.spec import ExperimentSpec

    started = time.monotonic()

    def ended(outcome: str, reason: str) -> dict[str, Any]:
        seconds = round(time.monotonic() - started, 3)
        return {"outcome": outcome, "reason": reason, "adjustments": [], "seconds": seconds, "measurements": []}

    def on_epoch(measurement: "Measurement") -> None:
        say(dataclasses.asdict(measurement))

    latest = out / LATEST
    try:
        spec = _on_own_gpus(ExperimentSpec.from_dict(yaml.safe_load((out / "spec.yaml").read_text(encoding="utf-8"))))
        resume = latest if latest.exists() else None
        result = _function(train)(spec, out, on_epoch=on_epoch, cpus=cpus, resume=resume)
    except NonFiniteLoss as error:
        return ended("infeasible", f"diverged: {error}")
    except OutOfMemory as error:
        return ended("infeasible", f"out of memory: {error}")
    except (SpecError, DataError, CheckpointError) as error:
        return ended("failed", str(error))
    measurements = [dataclasses.asdict(one) for one in result.measurements]
    return {
        "outcome": "completed",
        "reason": None,
        "adjustments": list(result.adjustments),
        "seconds": measurements[-1]["seconds"] if measurements else round(time.monotonic() - started, 3),
        "checkpoint": str(Path(os.path.relpath(result.best, out.parent.parent))),
        # Also epochs whose report was lost with an earlier driver.
        "measurements": measurements,
    }


def limit_threads(cpus: int) -> None:
    """Trials times threads must not exceed the cores: two trials of two threads on two cores run four times slower."""
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    import torch

    torch.set_num_threads(cpus)


def clean_up() -> None:
    """Frees what the trial held; its network is garbage in cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_own_gpus(spec: Any) -> Any:
    """Ray shows a worker its own GPUs only, numbered from 0, so the user's ids do not hold here."""
    import torch

    visible = torch.cuda.device_count()
    if visible == 0:
        return spec
    ids = tuple(range(min(visible, spec.train.num_gpus)))
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, gpu_ids=ids))


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _packed(message: Mapping[str, Any]) -> dict[str, str]:
    return {MESSAGE: json.dumps(message)}
