"""What a worker does for one trial: train a written spec, report each epoch, name how it ended.

Knows its own folder and the training function; knows no searcher, no study and no other trial. A worker is reused for
the next trial, so nothing may be left behind.
"""

import dataclasses
import faulthandler
import gc
import importlib
import json
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import guard
from hpo.errors import InUseError, UnfitWorkerError
from hpo.faults import is_disk_full, is_infrastructure
from hpo.files import write_json
from hpo.locks import exclusive

if TYPE_CHECKING:
    from model.metrics import Measurement
    from model.spec import ExperimentSpec

MESSAGE = "message"
"""The one key of everything a worker reports: JSON text, so that no layer in between renames a metric."""
BEGUN, ADJUSTED, TAKEN_OVER, FINAL = "begun", "adjusted", "taken_over", "final"
"""Keys of messages that are no epoch: process and node; a change made to go on; the parent's epochs; how it ended."""
LATEST = "dd_model_latest.pth"
NUMBERED = "model_epoch_*.pth"
ERROR_FILE = "error.txt"
STACK_FILE = "stack.txt"
ORDERED, TAKEN = "take_over.json", "taken_over.json"
"""Whose checkpoint the driver wants taken over, and the serial of the order that was carried out last."""
DUMP = signal.SIGUSR2
"""Makes a worker write the stacks of all its threads, whatever they are stuck in."""
Say = Callable[[Mapping[str, Any]], None]


def run_trial(config: dict[str, Any]) -> None:
    """The Ray Tune function. `config`: number, run_dir, train ("module:function"), cpus, gpus, costs (names)."""
    import ray
    from ray import tune

    from model import threads

    out = Path(config["run_dir"]) / "trials" / str(config["number"])
    (out / ERROR_FILE).unlink(missing_ok=True)

    def say(message: Mapping[str, Any]) -> None:
        tune.report({MESSAGE: json.dumps(message)})

    try:
        guard.check()
        threads.limit(config["cpus"])
        # A worker whose driver was killed may live a moment longer: two must never write one folder.
        with exclusive(out / ".lock", wait_s=60.0, holder="the worker of an earlier session"), stack_dumps(out):
            node = ray.get_runtime_context().get_node_id()
            say({BEGUN: {"pid": os.getpid(), "node": node, "host": platform.node()}})
            final = execute(out, config["train"], config["cpus"], say, costs=config["costs"], gpus=config["gpus"])
            say({FINAL: final})
        if final["outcome"] == "lost":
            raise UnfitWorkerError(final["reason"])
    except InUseError as error:
        # A node that went away holds the folder as long as its worker lives, or its storage believes so: tried again.
        raise UnfitWorkerError(str(error)) from error
    except Exception:
        (out / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        clean_up()


def execute(
    out: Path, train: str, cpus: int, say: Say, *, costs: Sequence[str] = (), gpus: float | None = None
) -> dict[str, Any]:
    """Trains the spec in `out`, on as many GPUs as the trial has; `gpus` None: as the spec says. Returns how it ended:
    outcome, reason, adjustments, seconds, checkpoint, costs, measurements.

    A crash that has no name here is the configuration's own, and passes through.
    """
    import yaml

    from model.errors import CheckpointError, DataError, NonFiniteLoss, OutOfMemory, SpecError
    from model.spec import ExperimentSpec

    started = time.monotonic()

    def ended(outcome: str, reason: str, **more: Any) -> dict[str, Any]:
        seconds = round(time.monotonic() - started, 3)
        return {"outcome": outcome, "reason": reason, "seconds": seconds, "measurements": [], **more}

    try:
        spec = ExperimentSpec.from_dict(yaml.safe_load((out / "spec.yaml").read_text(encoding="utf-8")))
        spec = _on_own_gpus(spec, spec.train.num_gpus if gpus is None else gpus)
        _take_over(out, train, say)
        result = _train(spec, out, train, cpus, say)
        measurements = [dataclasses.asdict(one) for one in result.measurements]
        return {
            "outcome": "completed",
            "reason": None,
            "adjustments": list(result.adjustments),
            "seconds": measurements[-1]["seconds"] if measurements else round(time.monotonic() - started, 3),
            "checkpoint": str(Path(os.path.relpath(result.best, out.parent.parent))),
            "costs": _beside(train, "measure")(result.best, costs, cpus=cpus) if costs else {},
            # Also epochs whose report was lost with an earlier driver.
            "measurements": measurements,
        }
    except NonFiniteLoss as error:
        return ended("infeasible", f"diverged: {error}")
    except OutOfMemory as error:
        return ended("infeasible", f"out of memory: {error}")
    except Exception as error:
        if is_disk_full(error):
            return ended("lost", f"{type(error).__name__}: {error}", disk_full=True)
        if is_infrastructure(error):
            return ended("lost", f"{type(error).__name__}: {error}")
        if isinstance(error, SpecError | DataError | CheckpointError):
            return ended("failed", str(error))
        raise


def _train(spec: "ExperimentSpec", out: Path, train: str, cpus: int, say: Say) -> Any:
    """Goes on from the newest checkpoint of the folder that can be read, or begins."""
    from model.errors import CheckpointError

    def on_epoch(measurement: "Measurement") -> None:
        say(dataclasses.asdict(measurement))

    def on_adjust(text: str) -> None:
        say({ADJUSTED: text})

    latest = out / LATEST
    newest_first = sorted(out.glob(NUMBERED), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = [latest, *(path for path in newest_first if path != latest.resolve())] if latest.exists() else newest_first
    for place, resume in enumerate(found):
        try:
            return _function(train)(spec, out, on_epoch=on_epoch, on_adjust=on_adjust, cpus=cpus, resume=resume)
        except CheckpointError as error:
            after = f"going on from {found[place + 1].name}" if place + 1 < len(found) else "beginning anew"
            on_adjust(f"{resume.name} cannot be gone on from, {after} ({error})")
            target = resume.resolve()
            os.replace(target, target.with_name(f"{target.name}.unreadable"))
    return _function(train)(spec, out, on_epoch=on_epoch, on_adjust=on_adjust, cpus=cpus, resume=None)


def _take_over(out: Path, train: str, say: Say) -> None:
    """Carries out the driver's last order to go on from another trial's checkpoint. Done twice it does no harm, so the
    driver is told before the order is ticked off."""
    from model.errors import CheckpointError

    order, taken = out / ORDERED, out / TAKEN
    if not order.exists():
        return
    wanted = json.loads(order.read_text(encoding="utf-8"))
    if taken.exists() and json.loads(taken.read_text(encoding="utf-8"))["serial"] >= wanted["serial"]:
        return
    try:
        past = _beside(train, "take_over")(Path(wanted["parent"]), out)
        say({TAKEN_OVER: [dataclasses.asdict(one) for one in past]})
    except CheckpointError as error:
        say({ADJUSTED: f"no checkpoint of trial {Path(wanted['parent']).name} could be taken over ({error})"})
    write_json({"serial": wanted["serial"]}, taken)


@contextmanager
def stack_dumps(out: Path) -> Iterator[None]:
    """Within the block the signal DUMP adds the stacks of all threads to STACK_FILE."""
    path = out / STACK_FILE
    with path.open("a", encoding="utf-8") as file:
        faulthandler.register(DUMP, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(DUMP)
    if path.stat().st_size == 0:
        path.unlink()


def clean_up() -> None:
    """Frees what the trial held; its network is garbage in cycles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_own_gpus(spec: "ExperimentSpec", gpus: float) -> "ExperimentSpec":
    """Ray shows a worker its own GPUs only, numbered from 0, so neither the user's ids nor their number hold here."""
    import torch

    visible = torch.cuda.device_count()
    if visible == 0:
        return spec
    count = min(visible, max(1, int(gpus)))
    own = dataclasses.replace(spec.train, num_gpus=count, gpu_ids=tuple(range(count)))
    return dataclasses.replace(spec, train=own)


def _beside(train: str, name: str) -> Callable[..., Any]:
    """Another function of the module that the training function is in."""
    return _function(f"{train.partition(':')[0]}:{name}")


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
