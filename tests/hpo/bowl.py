"""A stand-in for training: the same interface, no network. Workers import it by name (`bowl:train`)."""

import errno
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from model.errors import CheckpointError, NonFiniteLoss, OutOfMemory, WorkerDied
from model.metrics import VAL_MAP50, Measurement


class Result(NamedTuple):
    """What the sweep reads of a training's result."""

    last: Path
    best: Path
    measurements: tuple[Measurement, ...]
    adjustments: tuple[str, ...] = ()


EPOCH_S = float(os.environ.get("BOWL_EPOCH_S", "0.0"))


NAN, MEMORY, CRASH, DEATH, HANG, DISK, DATA = range(1, 8)
MISFORTUNES = {kind * 1e-6 * 1e6: kind for kind in (NAN, MEMORY, CRASH, DEATH, HANG, DISK, DATA)}


def bowl(lr: float, epoch: int) -> float:
    """Best at lr 1e-3, rising with epochs."""
    return (1.0 - 0.2 * (math.log10(lr) + 3.0) ** 2) * (1.0 - 0.5**epoch)


def train(spec, out: Path, *, on_epoch=None, on_adjust=None, cpus=None, resume=None) -> Result:
    """Each call adds a line to `calls.jsonl`, each epoch one to `epochs.jsonl`; the checkpoint is the history."""
    latest, best = out / "dd_model_latest.pth", out / "model_best.pth"
    history = _read(resume) if resume else []
    said = {"pid": os.getpid(), "resumed": len(history), "cpus": cpus, "time": time.time(), "threads": threads()}
    with (out / "calls.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")
    lr = spec.train.optim.lr
    measurements = [
        Measurement(epoch=i + 1, values={VAL_MAP50.name: v, "val_loss": 1.0 - v}, seconds=i + 1.0)
        for i, v in enumerate(history)
    ]
    for epoch in range(len(history) + 1, spec.train.num_epochs + 1):
        time.sleep(EPOCH_S + spec.train.optim.warmup_steps / 1000)  # another key without a use here
        _keep_pace(out, epoch)
        _misfortune(spec, out, epoch)
        value = bowl(lr, epoch)
        history.append(value)
        latest.write_text(json.dumps(history))
        best.write_text(json.dumps(max(history)))
        with (out / "epochs.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, "pid": os.getpid()}) + "\n")
        one = Measurement(epoch=epoch, values={VAL_MAP50.name: value, "val_loss": 1.0 - value}, seconds=float(epoch))
        measurements.append(one)
        if on_epoch is not None:
            on_epoch(one)
    return Result(last=latest, best=best, measurements=tuple(measurements))


def threads() -> dict[str, int]:
    """Of each library that has a pool of its own here, and what those that come later will find."""
    import torch
    from threadpoolctl import threadpool_info

    found = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    told = {name: int(os.environ[name]) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS") if name in os.environ}
    return {"torch": torch.get_num_threads(), **told, **found}


def measure(checkpoint: Path, names, *, cpus=None) -> dict[str, float]:
    """A checkpoint has as many parameters as epochs behind it."""
    return {name: float(len(_read(checkpoint.with_name("dd_model_latest.pth")))) for name in names}


def take_over(parent: Path, out: Path) -> list[Measurement]:
    history = _read(parent / "dd_model_latest.pth")
    (out / "dd_model_latest.pth").write_text(json.dumps(history))
    (out / "model_best.pth").write_text(json.dumps(max(history)))
    return [
        Measurement(epoch=i + 1, values={VAL_MAP50.name: v, "val_loss": 1.0 - v}, seconds=i + 1.0)
        for i, v in enumerate(history)
    ]


def _read(checkpoint: Path) -> list[float]:
    try:
        return list(json.loads(checkpoint.read_text()))
    except ValueError:
        raise CheckpointError(f"{checkpoint} is torn") from None


def _keep_pace(out: Path, epoch: int) -> None:
    """Waits, half a minute at most, where a file `pace` beside the trials says so: number -> another's number and how
    many epochs that one must have, counted from this one's next."""
    pace = out.parent / "pace"
    if not pace.exists() or out.name not in (asked := json.loads(pace.read_text())):
        return
    other, lead = asked[out.name]
    path = out.parent / str(other) / "epochs.jsonl"
    for _ in range(300):
        if path.exists() and len(path.read_text().splitlines()) >= epoch + lead:
            return
        time.sleep(0.1)


def _misfortune(spec, out: Path, epoch: int) -> None:
    """What goes wrong is chosen by the weight decay, a key the stand-in has no other use for. Troubles of the machine
    come once, a full disk as long as there is a file `full` beside the trials."""
    kind = MISFORTUNES.get(spec.train.optim.weight_decay * 1e6)
    if epoch != 2 or kind is None:
        return
    if kind == NAN:
        raise NonFiniteLoss("loss_ce is nan at image 7")
    if kind == MEMORY:
        raise OutOfMemory("one image of 9000 pixels does not fit")
    if kind == CRASH:
        raise ZeroDivisionError(f"crash number {out.name}")
    if kind == DISK and (out.parent / "full").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    if kind in (DEATH, HANG, DATA) and not (out / "died").exists():
        (out / "died").touch()
        if kind == DATA:
            raise WorkerDied("a data process went away")
        if kind == HANG:
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGKILL)
