"""Train one detector from one spec into one folder. Knows nothing of searches: `on_epoch` is told, and may stop it.

The folder holds `experiment.yaml`, `status.json`, `model_epoch_XXX_step_YYYYY.pth` (epoch from 0), the link
`dd_model_latest.pth`, and with a validation source `model_best.pth` (weights of the best epoch, no optimizer).
"""

import dataclasses
import gc
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from model import launch
from model.adopt import check_resume
from model.checkpoint import description, public_dict, read_raw
from model.cost import measure
from model.errors import OutOfMemory, SpecError
from model.fit import Fitted, Job, fit
from model.interrupt import interruptible
from model.keeper import BEST, LATEST, OnEpoch, measured
from model.memory import is_out_of_memory
from model.metrics import VAL_MAP50, Measurement
from model.optim import late_drops
from model.rank import fit_in_ranks
from model.spec import ExperimentSpec
from model.status import StatusLog
from model.takeover import take_over
from model.whole import write_text

__all__ = ["BEST", "LATEST", "TrainResult", "measure", "take_over", "train"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    last: Path
    best: Path
    """The best epoch's checkpoint by val_mAP50; the last one where nothing was validated."""
    measurements: tuple[Measurement, ...]
    """One for each validated epoch, those before a resume included."""
    classes: Mapping[int, str]
    adjustments: tuple[str, ...] = ()
    """What was changed on the way so that the training could go on: images in memory at once."""

    @property
    def best_measurement(self) -> Measurement | None:
        if not self.measurements:
            return None
        return max(self.measurements, key=lambda one: (one.values[VAL_MAP50.name], -one.epoch))


def train(
    spec: ExperimentSpec,
    out: Path,
    *,
    on_epoch: OnEpoch | None = None,
    on_adjust: Callable[[str], None] | None = None,
    cpus: int | None = None,
    resume: Path | None = None,
    cpu_processes: int | None = None,
) -> TrainResult:
    """Trains `spec` into `out`. `cpus` bounds the data workers; `resume` goes on from a checkpoint of this very run;
    `on_adjust` is told of each of the result's adjustments when it is made.
    `cpu_processes` asks for that many processes on a machine without a GPU, which otherwise gets one.

    Raises SpecError, DataError or CheckpointError for what the user wrote, NonFiniteLoss when training diverges,
    OutOfMemory when not even one image fits, Interrupted (a KeyboardInterrupt) after SIGTERM or Ctrl-C.
    """
    status = StatusLog(out, enabled=launch.is_first())
    with status.action("train"), interruptible():
        problems = spec.problems()
        if problems:
            raise SpecError(problems)
        if spec.train.resume_training_checkpoint_path and resume is None:
            resume = Path(spec.train.resume_training_checkpoint_path)
        if resume is not None:
            status.write("RUNNING", f"Resuming training from checkpoint: {resume}")
            check_resume(resume, spec)
        spec = _with_seed(spec, resume)
        where = launch.place(spec.train, cpu_processes=cpu_processes)
        if launch.is_first():
            _prepare(out, spec, resume)
            _warn(spec, status)
        job = Job(spec=spec, out=out, cpus=cpus or os.cpu_count() or 1, resume=resume, place=where)
        return _until_it_fits(job, status, on_epoch, on_adjust)


def _until_it_fits(
    job: Job, status: StatusLog, on_epoch: OnEpoch | None, on_adjust: Callable[[str], None] | None
) -> TrainResult:
    """Out of memory, the training goes on from its last checkpoint with half the images at once."""
    run = fit if job.place.world == 1 or launch.is_started_by_others() else fit_in_ranks
    adjustments: list[str] = []
    latest = job.out / LATEST
    status.write("STARTED", "Starting Training Loop.")
    while True:
        before = _stamp(latest)
        try:
            fitted = run(job, status, on_epoch)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            refused = str(error)
        gc.collect()  # the network of the attempt, which hangs together in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = job.batch.smaller()
        if smaller is None:
            raise OutOfMemory(f"CUDA out of memory: reduce batch_size (one image at once does not fit: {refused})")
        adjustments.append(f"images at once {job.batch.per_forward} -> {smaller.per_forward} (out of memory)")
        note = f"Out of memory: going on with {smaller.per_forward} images at once instead of {job.batch.per_forward}."
        log.warning("%s", note)
        if on_adjust is not None:
            on_adjust(adjustments[-1])
        status.write("RUNNING", note, adjustment={"per_forward": [job.batch.per_forward, smaller.per_forward]})
        job = dataclasses.replace(job, per_forward=smaller.per_forward)
        if _stamp(latest) != before:
            job = dataclasses.replace(job, resume=latest)
    status.write("RUNNING", "Training loop complete.")
    return _result(job.out, fitted, tuple(adjustments))


def _result(out: Path, fitted: Fitted, adjustments: tuple[str, ...]) -> TrainResult:
    measurements = tuple(measured(row) for row in fitted.history if VAL_MAP50.name in row)
    last, best = (out / LATEST).resolve(), out / BEST
    return TrainResult(
        last=last,
        best=best if measurements and best.exists() else last,
        measurements=measurements,
        classes=fitted.classes,
        adjustments=adjustments,
    )


def _with_seed(spec: ExperimentSpec, resume: Path | None) -> ExperimentSpec:
    """A seed below 0 becomes one that nobody chose, and is recorded as such; a resumed run keeps the one it had."""
    if spec.train.seed >= 0:
        return spec
    seed = secrets.randbits(31)
    if resume is not None:
        seed = description(read_raw(resume), resume)["spec"]["train"]["seed"]
    log.info("seed %d (train.seed is %d: not fixed)", seed, spec.train.seed)
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, seed=seed))


def _prepare(out: Path, spec: ExperimentSpec, resume: Path | None) -> None:
    write_text(yaml.safe_dump(public_dict(spec), sort_keys=False), out / "experiment.yaml")
    for partial in out.glob(".*.pth.partial"):
        partial.unlink()  # a killed process was writing it
    if resume is None:
        (out / LATEST).unlink(missing_ok=True)  # an earlier run's: never gone on from by this one


def _warn(spec: ExperimentSpec, status: StatusLog) -> None:
    warning = late_drops(spec.train.optim, spec.train.num_epochs)
    if warning is not None:
        log.warning("%s", warning)
        status.write("RUNNING", warning)


def _stamp(link: Path) -> tuple[int, int] | None:
    """Changes whenever the link is set anew."""
    if not link.is_symlink():
        return None
    found = link.lstat()
    return found.st_ino, found.st_mtime_ns
