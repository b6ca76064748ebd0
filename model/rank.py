"""A training in several processes: start the first rank, follow it, name how it ended. `python -m model.rank` is one.

The first rank is a process of its own, and Lightning starts the others by its command line. So the ranks are the same
whatever called `train`: a command, a search's worker, a test; neither is started again by accident. What ranks need is
a folder of plain values that lives as long as they do.
"""

import dataclasses
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from model import errors, launch, threads
from model.checkpoint import public_dict
from model.fit import Fitted, Job, fit
from model.interrupt import interruptible
from model.keeper import OnEpoch
from model.memory import is_out_of_memory
from model.metrics import Measurement
from model.progress import Progress, progress
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.whole import write_text

log = logging.getLogger(__name__)

JOB, RESULT = "job.json", "result.json"
GRACE_S = 5.0
"""How long ranks may take to end when asked."""


def fit_in_ranks(job: Job, status: StatusLog, on_epoch: OnEpoch | None) -> Fitted:
    """As `fit`, in `job.place.processes` processes on this node."""
    with tempfile.TemporaryDirectory(prefix="ddetr-ranks-") as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(_plain(job)), encoding="utf-8")
        ours, theirs = Pipe()
        try:
            process = _start(folder, theirs, job)
            theirs.close()
            try:
                with progress("training", job.spec.train.num_epochs, "epochs") as counting:
                    _follow(process, ours, on_epoch, counting)
            finally:
                _end(process)
        finally:
            ours.close()
        if process.returncode or not (folder / RESULT).exists():
            raise _error_of(folder, process.returncode)
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return Fitted(history=result["history"], classes={int(key): name for key, name in result["classes"].items()})


def _start(folder: Path, link: Connection, job: Job) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).parent.parent)
    own = max(1, job.cpus // job.place.processes)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "model.rank", str(folder), str(link.fileno())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **threads.environment(own)},
        pass_fds=[link.fileno()],
        start_new_session=True,  # all ranks and their data workers are one group, and end as one
    )


def _follow(process: "subprocess.Popen[bytes]", link: Connection, on_epoch: OnEpoch | None, counting: Progress) -> None:
    """Passes measurements to `on_epoch` until the first rank ends; the rank waits meanwhile, as in one process."""
    while process.poll() is None:
        try:
            if not link.poll(0.2):
                continue
            message = json.loads(link.recv_bytes())
        except (EOFError, OSError):
            process.wait()
            return
        measurement = Measurement(**message)
        counting.reach(measurement.epoch)
        if on_epoch is not None:
            on_epoch(measurement)
        link.send_bytes(b"go on")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends what is left of the group, by force where it does not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _error_of(folder: Path, code: int) -> Exception:
    """The most telling error of all ranks: of memory, then one with a name, then the first that came."""
    found = []
    for path in folder.glob("error-*.json"):
        said = json.loads(path.read_text(encoding="utf-8"))
        found.append((not said["memory"], not hasattr(errors, said["type"]), path.stat().st_mtime_ns, said))
    if not found:
        return errors.WorkerDied(f"the training's processes ended with code {code} and said nothing; see their output.")
    said = min(found, key=lambda one: one[:3])[3]
    if said["memory"]:
        return torch.OutOfMemoryError(said["text"])
    if "problems" in said:
        return errors.SpecError(said["problems"])
    named = getattr(errors, said["type"], None)
    if named is not None:
        error: Exception = named(said["text"])
        return error
    return errors.RankError(f"{said['type']} in one of the training's processes: {said['text']}")


def main(folder: Path, descriptor: int) -> None:
    """One rank."""
    local = int(os.environ.get("LOCAL_RANK") or 0)  # Lightning sets it for those that it starts
    first = launch.is_first()
    _log_as(first)
    job = _job(json.loads((folder / JOB).read_text(encoding="utf-8")))
    status = StatusLog(job.out, enabled=first)
    try:
        with interruptible():
            fitted = fit(job, status, _teller(descriptor) if local == 0 else None)
    except Exception as error:
        _write_error(folder / f"error-{local}.json", error)
        if hasattr(errors, type(error).__name__) or is_out_of_memory(error):
            sys.exit(1)  # the process that follows tells it, once
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    if local == 0:
        result = {"history": fitted.history, "classes": dict(fitted.classes)}
        (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _teller(descriptor: int) -> OnEpoch:
    """Sends a measurement to the process that follows, and waits for its answer. When that process is gone, so is this
    one's whole group: nobody would take the result."""
    link = Connection(descriptor)
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                answers.put(link.recv_bytes())
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True, name="follower").start()

    def on_epoch(measurement: Measurement) -> None:
        link.send_bytes(json.dumps(dataclasses.asdict(measurement)).encode())
        answers.get()

    return on_epoch


def _log_as(first: bool) -> None:
    logging.basicConfig(level=logging.WARNING if first else logging.ERROR, format="%(message)s", stream=sys.stdout)
    logging.getLogger("model").setLevel(logging.INFO if first else logging.ERROR)
    for chatty in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated")  # torch before 2.13 has no other


def _write_error(path: Path, error: Exception) -> None:
    said: dict[str, Any] = {
        "type": type(error).__name__,
        "text": str(error),
        "memory": is_out_of_memory(error),
    }
    if isinstance(error, errors.SpecError):
        said["problems"] = error.problems
    write_text(json.dumps(said), path)


def _plain(job: Job) -> dict[str, Any]:
    return {
        "spec": public_dict(job.spec),
        "out": str(job.out.absolute()),
        "cpus": job.cpus,
        "resume": None if job.resume is None else str(job.resume.absolute()),
        "place": dataclasses.asdict(job.place),
        "per_forward": job.per_forward,
    }


def _job(plain: dict[str, Any]) -> Job:
    place = launch.Place(**{**plain["place"], "gpu_ids": tuple(plain["place"]["gpu_ids"])})
    return Job(
        spec=ExperimentSpec.from_dict(plain["spec"]),
        out=Path(plain["out"]),
        cpus=plain["cpus"],
        resume=None if plain["resume"] is None else Path(plain["resume"]),
        place=place,
        per_forward=plain["per_forward"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
