"""Run or go on with a sweep: the driver between the study and Ray Tune. Tune executes and remembers nothing.

Everything needed to go on is in the run folder before a trial starts: `spec.yaml`, `space.json`, `sweep.json`,
`study.db`. Resuming is the same loop on the same study.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpo import algorithms, datasets, guard, schedulers, searchers, seeding
from hpo.budget import Budget
from hpo.cluster import Share, workers
from hpo.console import Console, for_output
from hpo.driver import STOP_FILE, Driver
from hpo.epochs import rescaled_space, scale
from hpo.errors import InUseError, RunError, SweepStoppedError
from hpo.files import write_json, write_spec
from hpo.ledger import Ledger
from hpo.locks import exclusive
from hpo.reporting.live import reported
from hpo.result import SweepResult
from hpo.runs import SWEEP
from hpo.stall import Stall
from hpo.sweep_spec import OBJECTIVES
from hpo.tracking import About, Tracker
from model.interrupt import interruptible
from model.metrics import VAL_MAP50, Metric
from model.spec import ExperimentSpec
from schemas.structure import structure, unstructure

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec
    from search_spaces.space import SearchSpace

TRAIN = "model.train:train"


def run_sweep(
    run_dir: Path,
    spec: ExperimentSpec,
    sweep: "SweepSpec",
    space: "SearchSpace",
    *,
    tracker: Tracker | None = None,
    console: Console | None = None,
    train: str = TRAIN,
    metric: Metric = VAL_MAP50,
    clock: Callable[[], float] = time.monotonic,
    stall: Stall | None = None,
) -> SweepResult:
    """Searches `space` around `spec` in `run_dir`, an absolute folder without a sweep. `train` names "module:function";
    `clock` and `stall`: by what time passes, and when a trial counts as stuck.

    Raises RunError for a folder in use, ValueError for settings that cannot be, SweepStoppedError when the first trials
    fail with one cause, DiskFullError; KeyboardInterrupt passes through, and `resume_sweep` goes on after any of them.
    """
    run_dir = run_dir.resolve()
    if (run_dir / SWEEP).exists():
        raise RunError(f"a new sweep needs a folder without one, but {run_dir} holds {SWEEP}; use `ddetr resume`.")
    console = console or for_output()
    spec, adjustments = scale(spec, sweep.epochs)
    space = rescaled_space(space, spec.train.num_epochs)
    if sweep.algorithm is not None:
        searcher, scheduler = algorithms.resolve(sweep.algorithm)
        sweep = dataclasses.replace(sweep, searcher=searcher, scheduler=scheduler)
    searcher, because = searchers.resolve(sweep.searcher, space, sweep.trials, objectives=len(sweep.objectives))
    if searcher != sweep.searcher:
        console.note(f"searcher {searcher}: {because}")
        sweep = dataclasses.replace(sweep, searcher=searcher)
    schedulers.check(sweep.scheduler, objectives=len(sweep.objectives), space=space)
    _check_epochs(spec, sweep)
    for text in adjustments:
        console.note(f"adjusted for {spec.train.num_epochs} epochs a trial: {text}")
    seeds = seeding.seeds_of(sweep, spec, space, run_dir.parent)
    for line in seeds.lines:
        console.note(line)
    with exclusive(run_dir / ".lock", holder="another driver"):
        ledger = Ledger.create(
            run_dir,
            spec,
            space,
            searcher=sweep.searcher,
            seed=sweep.seed_for(spec.train.seed),
            budget=sweep.trials,
            points=[*sweep.points, *seeds.points],
            metric=metric,
            goals={name: OBJECTIVES[name] for name in sweep.objectives[1:]},
        )
        _write_request(run_dir, spec, sweep, space, train)
        return _drive(ledger, spec, sweep, train, tracker, console, clock, stall)


def resume_sweep(
    run_dir: Path,
    *,
    add_trials: int = 0,
    tracker: Tracker | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    stall: Stall | None = None,
) -> SweepResult:
    """Goes on with the sweep in `run_dir` after any interruption, or with `add_trials` more of them; reads its result
    when it is finished."""
    run_dir = run_dir.resolve()
    with _opened(run_dir) as (ledger, spec, sweep, train):
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        if add_trials > 0:
            _extend(ledger, spec, sweep, add_trials)
        return _drive(ledger, spec, sweep, train, tracker, console or for_output(), clock, stall)


def _extend(ledger: Ledger, spec: ExperimentSpec, sweep: "SweepSpec", trials: int) -> None:
    """Makes room for more trials. RunError where another budget would not let one begin."""
    budget, spent = Budget.of(sweep, ledger.metric, len(ledger.curves) + trials), ledger.spent
    limit = budget.over(spent) or budget.full(spent, epochs=spec.train.num_epochs)
    if limit is not None:
        raise RunError(
            f"more trials need a budget that is not used up, but it is ({limit.text}); start a new search with "
            f"automl.seed_from={ledger.run_dir}."
        )
    ledger.extend(trials)


def stop_sweep(run_dir: Path) -> bool:
    """Ends the sweep in `run_dir` early: what runs is stopped and keeps its best epoch. True when the driver that is at
    work was told to, False when there was none and the sweep is ended now."""
    run_dir = run_dir.resolve()
    if (run_dir / SWEEP).is_file():
        (run_dir / STOP_FILE).touch()
    try:
        with _opened(run_dir) as (ledger, spec, sweep, train):
            _drive(ledger, spec, sweep, train, None, for_output(), time.monotonic, None)
            (run_dir / STOP_FILE).unlink()
            return False
    except InUseError:
        return True


@contextmanager
def _opened(run_dir: Path) -> Iterator[tuple[Ledger, ExperimentSpec, "SweepSpec", str]]:
    """The book of a sweep, its spec, its settings and its training function, held against other drivers."""
    from hpo.sweep_spec import SweepSpec
    from search_spaces.space import SearchSpace

    if not (run_dir / SWEEP).is_file():
        raise RunError(f"a sweep's folder must hold {SWEEP}, but {run_dir} does not; `ddetr runs` lists the sweeps.")
    with exclusive(run_dir / ".lock", holder="another driver"):
        request = json.loads((run_dir / SWEEP).read_text(encoding="utf-8"))
        sweep, problems = structure(SweepSpec, request["sweep"])
        assert not problems, problems
        spec = ExperimentSpec.from_dict(yaml.safe_load((run_dir / "spec.yaml").read_text(encoding="utf-8")))
        space = SearchSpace.from_dict(json.loads((run_dir / "space.json").read_text(encoding="utf-8")))
        yield Ledger.open(run_dir, spec, space, sweep.searcher), spec, sweep, request["train"]


def _check_epochs(spec: ExperimentSpec, sweep: "SweepSpec") -> None:
    if sweep.total_epochs is not None and sweep.total_epochs < spec.train.num_epochs:
        raise ValueError(
            f"`automl.total_epochs` must be at least the epochs of one trial, but is {sweep.total_epochs} with "
            f"{spec.train.num_epochs} a trial; raise it, or lower automl.epochs."
        )


def _write_request(run_dir: Path, spec: ExperimentSpec, sweep: "SweepSpec", space: "SearchSpace", train: str) -> None:
    write_spec(spec.to_dict(), run_dir / "spec.yaml")
    write_json(space.to_dict(), run_dir / "space.json")
    # Last: its presence says that the folder is complete.
    write_json({"sweep": unstructure(sweep), "train": train}, run_dir / SWEEP)


def _drive(
    ledger: Ledger,
    spec: ExperimentSpec,
    sweep: "SweepSpec",
    train: str,
    tracker: Tracker | None,
    console: Console,
    clock: Callable[[], float],
    stall: Stall | None,
) -> SweepResult:
    guard.check()
    run_dir = ledger.run_dir
    tracker = tracker or Tracker(run_dir.parent, run_dir.name, note=console.note)
    driver = Driver(ledger, spec, sweep, console, tracker, clock=clock, stall=stall)
    tracker.describe(About(metric=ledger.metric, spec=spec.to_dict(), datasets=datasets.known(run_dir, spec)))
    tracker.begin(_settings(ledger, spec, sweep))
    result = ledger.result()
    tracker.catch_up(result)
    state = "failed"
    try:
        driver.look()
        if not driver.done:
            with interruptible(), reported(run_dir, console.note), workers(run_dir, spec, sweep, console.note) as share:
                driver.gpus = share.gpus
                _check_gpus(share, sweep)
                left = None if sweep.hours is None else max(0.0, 3600 * sweep.hours - ledger.seconds)
                console.begin(result, epochs=spec.train.num_epochs, share=share, seconds=left)
                _execute(driver, share, train)
        state = "finished" if driver.diagnosis is None else "failed"
    except KeyboardInterrupt:
        state = "interrupted"
        console.note(f"interrupted; `ddetr resume {run_dir}` goes on")
        raise
    finally:
        console.close()
        result = ledger.result()
        tracker.end(result, state=state)
    if driver.diagnosis is not None:
        raise SweepStoppedError(driver.diagnosis)
    return result


def _settings(ledger: Ledger, spec: ExperimentSpec, sweep: "SweepSpec") -> dict[str, Any]:
    """What a sweep is compared with others by: its budget, those limits that are set, and how it searches."""
    limits = {name: getattr(sweep, name) for name in ("total_epochs", "hours", "gpu_hours", "target", "patience")}
    return {
        "trials": ledger.budget,
        "epochs": spec.train.num_epochs,
        **{name: limit for name, limit in limits.items() if limit is not None},
        "confirm": sweep.confirm,
        "algorithm": sweep.algorithm or f"{sweep.searcher} + {sweep.scheduler}",
        "searcher": sweep.searcher,
        "scheduler": sweep.scheduler,
        "metric": ledger.metric.name,
        "objectives": ", ".join([ledger.metric.name, *ledger.goals]),
        "space": ledger.space_hash,
        "seed": ledger.seed,
        "train.seed": spec.train.seed,
    }


def _check_gpus(there: Share, sweep: "SweepSpec") -> None:
    if sweep.gpu_hours is not None and not there.gpus:
        raise ValueError(
            f"`automl.gpu_hours` counts the GPUs of trials, but they have none here (gpu_hours={sweep.gpu_hours:g}); "
            "use automl.hours."
        )


def _execute(driver: Driver, portion: Share, train: str) -> None:
    """Runs trials until the driver says that it is done."""
    from ray import tune
    from ray.tune.execution import class_cache

    from hpo.adapters import Halting, Searching
    from hpo.trial import run_trial

    # Tune hands credentials to every trial in words that Ray writes to its logs; a worker has those of its machine.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in os.environ if name.startswith("AWS_")}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by our console, once
    run_dir, costs = driver.ledger.run_dir, list(driver.ledger.goals)
    resources = {"CPU": float(portion.cpus), "GPU": portion.gpus}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, resources),
        param_space={
            "run_dir": str(run_dir),
            "train": train,
            "cpus": portion.cpus,
            "gpus": portion.gpus,
            "costs": costs,
        },
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the searcher says when it is finished
            search_alg=Searching(driver),
            scheduler=Halting(driver),
            max_concurrent_trials=portion.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(run_dir / ".ray"), verbose=0, log_to_file=False),
    )
    with driver.carrying():
        try:
            tuner.fit()
        except RuntimeError as error:
            # Ray sums its trials up at the end, and stumbles over one that was asked for and never started. The study,
            # which is read in its place, knows it.
            if "trial_dir_name" not in str(error):
                raise
    if driver.broken is not None:
        raise driver.broken
    driver.keep_time()
