"""The launch review: what a run will do and what it will cost, before anything is started.

Counts, draws and measures, and prints; decides nothing and leaves nothing behind.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from hpo.files import existing
from hpo.screen import out, say
from hpo.show_space import range_text, short
from hpo.spec import Request
from model.spec import ExperimentSpec
from schemas import packaged
from search_spaces.lookup import look_up
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from hpo.cluster import Share
    from hpo.sweep_spec import SweepSpec
    from model.data.coco import CocoIndex
    from model.probe import Cost

SHOWN = 5
"""Configurations shown at most, the default among them."""
CLASSES = 10
"""Rows of classes shown at most."""
BATCH = "dataset.batch_size"


class Estimate(NamedTuple):
    """What a search costs when no trial is stopped early."""

    seconds: float
    """By the wall, up to `automl.hours`."""
    gpu_hours: float
    trials: float
    """Full trials that the limits of time and epochs leave room for."""


class Disk(NamedTuple):
    needed: int
    """Bytes of checkpoints, before those of all but the best are deleted."""
    free: int

    @property
    def enough(self) -> bool:
        return self.needed < self.free


class Review(NamedTuple):
    space: SearchSpace
    """As the memory of the machine bounds it."""
    ready: bool
    """Whether nothing speaks against starting."""
    trials: int
    epochs: int
    """Of each."""
    seconds: float | None = None
    """By the wall, when no trial is stopped early; None where it was not measured."""


def review_search(request: Request, space: SearchSpace, splits: "Mapping[str, CocoIndex]", root: Path) -> Review:
    """Prints the review of a search that will write below `root`. Raises the error that every trial would end in."""
    from hpo.epochs import rescaled_space, scale

    spec, adjustments = scale(request.spec, request.sweep.epochs)
    print_data(splits)
    for text in adjustments:
        say(f"adjusted for {spec.train.num_epochs} epochs a trial: {text}")
    space = rescaled_space(space, spec.train.num_epochs)
    sweep = _named(request.sweep, space)
    first = first_configurations(spec, sweep, space, root)
    share = _resources(spec, sweep)
    cost = None if share is None else _measured(spec, share, _batches_to_try(space, request))
    if cost is not None and cost.most_per_forward is not None:
        space = request.space({**request.facts, "most_per_forward": cost.most_per_forward})
        say(f"{cost.most_per_forward} images at once fit the memory: {BATCH} {_searched(space, request, BATCH)}")
        space = rescaled_space(space, spec.train.num_epochs)
        first = first_configurations(spec, sweep, space, root)
    _print_configurations(first, sweep.trials)
    if cost is None or share is None:
        return Review(space, True, sweep.trials, spec.train.num_epochs)
    expected = estimate(cost, spec, sweep, share)
    _print_time(expected, cost, spec, sweep, share)
    disk = Disk(checkpoint_bytes(cost.weights, spec, sweep.trials, share.concurrent), _free(root))
    _print_disk(disk, root, sweep.trials)
    return Review(space, disk.enough, sweep.trials, spec.train.num_epochs, expected.seconds)


def review_plain(spec: ExperimentSpec, splits: "Mapping[str, CocoIndex]", root: Path) -> None:
    """Prints the review of one training."""
    from hpo.cluster import Share

    print_data(splits)
    cost = _measured(spec, Share(cpus=os.cpu_count() or 1, gpus=_gpus(), concurrent=1), None)
    if cost is None:
        return
    say(_epoch_text(cost, spec))
    say(f"time: about {clock(spec.train.num_epochs * _epoch_seconds(cost, spec))} for {spec.train.num_epochs} epochs")
    _print_disk(Disk(checkpoint_bytes(cost.weights, spec, 1, 1), _free(root)), root, 1)


def print_data(splits: "Mapping[str, CocoIndex]") -> None:
    """Images and boxes of each split, and boxes of each class; classes that training never sees are named."""
    import numpy as np

    from model.data.remarks import remarks

    table = Table(title="data", title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    counts = {name: np.bincount(index.annotations.labels) for name, index in splits.items()}
    table.add_row("images", *(f"{len(index.images):,}" for index in splits.values()))
    table.add_row("boxes", *(f"{len(index.annotations.labels):,}" for index in splits.values()), end_section=True)
    classes = splits["train"].categories
    shown = list(classes)[:CLASSES]
    for key in shown:
        table.add_row(Text(f"{classes[key]} ({key})"), *(f"{_count(found, key):,}" for found in counts.values()))
    if len(classes) > len(shown):
        table.add_row(f"and {len(classes) - len(shown)} more classes")
    out.print(table)
    unseen = [f"{classes[key]} ({key})" for key in classes if not _count(counts["train"], key)]
    if unseen:
        say(f"no training box is of {_some(unseen)}: nothing is learnt of {'it' if len(unseen) == 1 else 'them'}")
    if found := remarks(splits):
        say(f"look closer with `ddetr doctor`: {'; '.join(found)}")


def first_configurations(
    spec: ExperimentSpec, sweep: "SweepSpec", space: SearchSpace, root: Path
) -> list[tuple[str, Mapping[str, Any]]]:
    """(where from, values) of the trials that the search will begin with, in order. ValueError for points that cannot
    be tried. They are those of the real thing: a study of its own, in a folder that is deleted, is asked for them."""
    from hpo import seeding
    from hpo.ledger import Ledger
    from model.metrics import VAL_MAP50

    seeds = seeding.seeds_of(sweep, spec, space, root).points
    names = ["your spec", *(f"point {place}" for place in range(1, len(sweep.points) + 1))]
    names += [f"seed {place}" for place in range(1, len(seeds) + 1)]
    with tempfile.TemporaryDirectory(prefix="ddetr-review-") as name:
        ledger = Ledger.create(
            Path(name),
            spec,
            space,
            searcher=sweep.searcher,
            seed=sweep.seed_for(spec.train.seed),
            budget=sweep.trials,
            points=[*sweep.points, *seeds],
            metric=VAL_MAP50,
        )
        found: list[tuple[str, Mapping[str, Any]]] = []
        while len(found) < SHOWN and (number := ledger.next()) is not None:
            origin = names[len(found)] if len(found) < len(names) else "drawn"
            found.append((origin, ledger.record_of(number).params))
    return found


def estimate(cost: "Cost", spec: ExperimentSpec, sweep: "SweepSpec", share: "Share") -> Estimate:
    """The time of full trials, `share.concurrent` at a time, up to the limits that the block sets."""
    epochs = spec.train.num_epochs
    trial_s = epochs * _epoch_seconds(cost, spec)
    trials = float(sweep.trials)
    if sweep.total_epochs is not None:
        trials = min(trials, sweep.total_epochs / epochs)
    if sweep.hours is not None:
        trials = min(trials, 3600 * sweep.hours * share.concurrent / trial_s)
    if sweep.gpu_hours is not None and share.gpus:
        trials = min(trials, 3600 * sweep.gpu_hours / (trial_s * share.gpus))
    rounds = math.ceil(trials / share.concurrent) if trials == int(trials) else trials / share.concurrent
    seconds = (rounds + math.ceil(sweep.confirm / share.concurrent)) * trial_s
    if sweep.hours is not None:
        seconds = min(seconds, 3600 * sweep.hours)
    return Estimate(seconds, (trials + sweep.confirm) * trial_s * share.gpus / 3600, trials)


def checkpoint_bytes(weights: int, spec: ExperimentSpec, trials: int, concurrent: int) -> int:
    """Of all trials at once, as they are until a winner is handed over: weights and the state of the optimizer (two
    numbers a weight with AdamW, one with SGD) in float32 for each kept epoch, weights alone for the best one. While a
    file is written the one that it replaces is still there."""
    train = spec.train
    whole = 4 * weights * (3 if train.optim.optimizer == "AdamW" else 2)
    kept = train.keep_checkpoints
    if kept < 0:
        kept = max(1, train.num_epochs // train.checkpoint_interval)
    return trials * (4 * weights + kept * whole) + concurrent * whole


def clock(seconds: float) -> str:
    """Seconds in words of two units at most."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{round(hours / 24)} days"


def size(count: int) -> str:
    """Bytes in words."""
    for unit, power in (("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count / 1000:.0f} kB"


def _resources(spec: ExperimentSpec, sweep: "SweepSpec") -> "Share | None":
    """What each trial gets here, told; None where a cluster decides."""
    from hpo.cluster import Node, share

    if os.environ.get("RAY_ADDRESS"):
        say(f"resources: those of the Ray cluster at {os.environ['RAY_ADDRESS']}; time and disk are not estimated")
        return None
    cores, gpus = cpu_cores(), _gpus()
    here = share([Node(id="", name="", cpus=cores, gpus=gpus)], sweep, gpus_wanted=spec.train.num_gpus)
    each = f"{here.cpus} CPU core{'s' if here.cpus > 1 else ''}" + (f", {here.gpus:g} GPU" if here.gpus else "")
    workers = max(0, min(spec.dataset.workers, here.cpus - 1))
    there = f"{cores} CPU cores, {f'{gpus} GPUs' if gpus else 'no GPU'}"
    say(
        f"resources: {there}; {here.concurrent} trials at a time, each with {each}, as many threads and {workers} data "
        "workers"
    )
    return here


def cpu_cores() -> int:
    """The cores that this process may use: by affinity, and by the quota of a container (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _named(sweep: "SweepSpec", space: SearchSpace) -> "SweepSpec":
    """With the searcher and the scheduler that will be used, told."""
    from hpo import algorithms, schedulers, searchers

    if sweep.algorithm is not None:
        asked, scheduler = algorithms.resolve(sweep.algorithm)
        sweep = replace(sweep, searcher=asked, scheduler=scheduler)
    searcher, because = searchers.resolve(sweep.searcher, space, sweep.trials, objectives=len(sweep.objectives))
    schedulers.check(sweep.scheduler, objectives=len(sweep.objectives), space=space)
    say(f"searcher {searcher} ({because}), scheduler {sweep.scheduler}")
    return replace(sweep, searcher=searcher)


def _batches_to_try(space: SearchSpace, request: Request) -> int | None:
    """How many images at once are worth a try: none unless the batch is searched."""
    if BATCH not in space.targets:
        return None
    images = request.data.images if request.data is not None else request.spec.dataset.batch_size
    return min(images, 4 * request.spec.dataset.batch_size)


def _searched(space: SearchSpace, request: Request, name: str) -> str:
    entry = look_up(name, packaged.schema("train"), space, request.spec.to_dict())
    ranges = ", ".join(range_text(parameter) for parameter in entry.parameters)
    choices = next((rule.choices for rule in space.rules if rule.target == name), ())
    return f"is searched in {_value(choices) or ranges}" if entry.searched else f"is not searched: {entry.because}"


def _measured(spec: ExperimentSpec, share: "Share", most: int | None) -> "Cost | None":
    """The measured cost of one training, or None, with the reason told."""
    from model.probe import ProbeError, measure

    say("measuring a few steps of training and validation")
    try:
        cost = measure(spec, cpus=share.cpus, gpu_share=min(1.0, share.gpus or 1.0), most=most)
    except ProbeError as error:
        say(f"not measured, so time and disk are not estimated: {error}")
        return None
    asked = min(spec.train.per_forward or spec.dataset.batch_size, spec.dataset.batch_size)
    if cost.per_forward < asked:
        say(f"memory: {asked} images at once do not fit, {cost.per_forward} do; each step is taken in parts")
    return cost


def _epoch_seconds(cost: "Cost", spec: ExperimentSpec) -> float:
    return cost.epoch_seconds(spec.train.validation_interval)


def _epoch_text(cost: "Cost", spec: ExperimentSpec) -> str:
    parts = [f"{cost.steps} steps of {spec.dataset.batch_size} images, {cost.step_seconds:.2g} s each"]
    if cost.val_batches:
        every = "" if spec.train.validation_interval == 1 else f", every {spec.train.validation_interval} epochs"
        parts.append(f"{cost.val_batches} validation batches, {cost.val_seconds:.2g} s each{every}")
    memory = f", {size(cost.peak_bytes)} of its memory" if cost.peak_bytes else ""
    where = f"on {cost.device}, alone{memory}" + (", from one image" if cost.rough else "")
    return f"one epoch: {clock(_epoch_seconds(cost, spec))} ({'; '.join(parts)}; {where}; {cost.weights:,} weights)"


def _print_time(expected: Estimate, cost: "Cost", spec: ExperimentSpec, sweep: "SweepSpec", share: "Share") -> None:
    say(_epoch_text(cost, spec))
    confirmed = f" and {sweep.confirm} more to confirm" if sweep.confirm else ""
    gpu = f" and {expected.gpu_hours:.2g} GPU hours" if expected.gpu_hours else ""
    trials = f"{sweep.trials} trials of {spec.train.num_epochs} epochs{confirmed}, {share.concurrent} at a time"
    early = "; trials that are stopped early make it less" if sweep.scheduler != "none" else ""
    if expected.trials < sweep.trials:
        early = f"; the limits in `automl` leave room for about {expected.trials:.2g} full ones" + early
    say(f"time: at most about {clock(expected.seconds)}{gpu} for {trials}{early}")


def _print_disk(disk: Disk, root: Path, trials: int) -> None:
    what = f"{trials} trials' checkpoints" if trials > 1 else "checkpoints"
    say(f"disk: up to {size(disk.needed)} of {what} in {root}, {size(disk.free)} free")
    if not disk.enough:
        say(
            "that is more than there is: free some, set results_dir to another disk, or lower automl.trials or "
            "train.keep_checkpoints"
        )


def _free(root: Path) -> int:
    """Free bytes where `root` is, or will be."""
    return shutil.disk_usage(existing(root)).free


def _print_configurations(found: Sequence[tuple[str, Mapping[str, Any]]], trials: int) -> None:
    table = Table(title=f"the first of {trials} configurations", title_justify="left")
    table.add_column("")
    for number, (origin, _) in enumerate(found):
        table.add_column(f"{number}: {origin}", justify="right")
    for name in found[0][1] if found else ():
        table.add_row(Text(name), *(Text(_value(params[name])) for _, params in found))
    out.print(table)


def _value(value: Any) -> str:
    return ", ".join(map(short, value)) if isinstance(value, list | tuple) else short(value)


def _count(counts: Any, key: int) -> int:
    return int(counts[key]) if key < len(counts) else 0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
