"""Run or go on with a sweep: the driver between the study and Ray Tune. Tune executes and remembers nothing.

Everything needed to go on is in the run folder before a trial starts: `spec.yaml`, `space.json`, `sweep.json`,
`study.db`. Resuming is the same loop on the same study.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpo import guard, schedulers, searchers
from hpo.console import Console
from hpo.driver import Driver
from hpo.errors import RunError, SweepStoppedError
from hpo.ledger import Ledger, write_spec
from hpo.locks import exclusive
from hpo.result import SweepResult
from hpo.tracking import Tracker
from model.metrics import VAL_MAP50, Metric
from model.spec import ExperimentSpec
from schemas.structure import structure, unstructure

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec
    from search_spaces.space import SearchSpace

TRAIN = "model.train:train"
SWEEP_FILE = "sweep.json"


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
) -> SweepResult:
    """Searches `space` around `spec` in `run_dir`, an absolute folder without a sweep. `train` names "module:function".

    Raises RunError for a folder in use, SweepStoppedError when the first trials fail with one cause; KeyboardInterrupt
    passes through, and `resume_sweep` goes on after any of them.
    """
    run_dir = run_dir.resolve()
    if (run_dir / SWEEP_FILE).exists():
        raise RunError(f"a new sweep needs a folder without one, but {run_dir} holds {SWEEP_FILE}; use `ddetr resume`.")
    if sweep.searcher == "auto":
        sweep = dataclasses.replace(sweep, searcher="tpe")
    searchers.check(sweep.searcher)
    schedulers.check(sweep.scheduler)
    with exclusive(run_dir / ".lock", holder="another driver"):
        seed = sweep.seed if sweep.seed is not None else max(spec.train.seed, 0)
        ledger = Ledger.create(
            run_dir,
            spec,
            space,
            searcher=sweep.searcher,
            seed=seed,
            budget=sweep.trials,
            points=sweep.points,
            metric=metric,
        )
        _write_request(run_dir, spec, sweep, space, train)
        return _drive(ledger, spec, sweep, train, tracker, console)


def resume_sweep(run_dir: Path, *, tracker: Tracker | None = None, console: Console | None = None) -> SweepResult:
    """Goes on with the sweep in `run_dir` after any interruption; reads its result when it is finished."""
    from hpo.sweep_spec import SweepSpec
    from search_spaces.space import SearchSpace

    run_dir = run_dir.resolve()
    if not (run_dir / SWEEP_FILE).is_file():
        raise RunError(
            f"a sweep's folder must hold {SWEEP_FILE}, but {run_dir} does not; `ddetr runs` lists the sweeps."
        )
    with exclusive(run_dir / ".lock", holder="another driver"):
        request = json.loads((run_dir / SWEEP_FILE).read_text(encoding="utf-8"))
        sweep, problems = structure(SweepSpec, request["sweep"])
        assert not problems, problems
        spec = ExperimentSpec.from_dict(yaml.safe_load((run_dir / "spec.yaml").read_text(encoding="utf-8")))
        space = SearchSpace.from_dict(json.loads((run_dir / "space.json").read_text(encoding="utf-8")))
        ledger = Ledger.open(run_dir, spec, space, sweep.searcher)
        return _drive(ledger, spec, sweep, request["train"], tracker, console)


def _write_request(run_dir: Path, spec: ExperimentSpec, sweep: "SweepSpec", space: "SearchSpace", train: str) -> None:
    write_spec(spec.to_dict(), run_dir / "spec.yaml")
    _write_json(space.to_dict(), run_dir / "space.json")
    # Last: its presence says that the folder is complete.
    _write_json({"sweep": unstructure(sweep), "train": train}, run_dir / SWEEP_FILE)


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _drive(
    ledger: Ledger,
    spec: ExperimentSpec,
    sweep: "SweepSpec",
    train: str,
    tracker: Tracker | None,
    console: Console | None,
) -> SweepResult:
    guard.check()
    run_dir = ledger.run_dir
    console = console or Console()
    tracker = tracker or Tracker(run_dir.parent, run_dir.name, note=console.note)
    driver = Driver(ledger, spec, sweep, console, tracker)
    params = {"trials": ledger.budget, "epochs": spec.train.num_epochs, "searcher": sweep.searcher}
    tracker.begin({**params, "scheduler": sweep.scheduler, "metric": ledger.metric.name}, ledger.metric)
    result = ledger.result()
    tracker.catch_up(result)
    state = "failed"
    try:
        if not result.finished:
            with _ray(run_dir, sweep) as share:
                console.begin(result, epochs=spec.train.num_epochs, concurrent=share.concurrent)
                _execute(driver, share, train)
        state = "finished" if driver.diagnosis is None else "failed"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        console.close()
        result = ledger.result()
        tracker.end(result, state=state)
    if driver.diagnosis is not None:
        raise SweepStoppedError(driver.diagnosis)
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial gets, and how many run at a time."""

    cpus: int
    gpus: float
    concurrent: int


def share(cpus: int, gpus: float, sweep: "SweepSpec", gpus_wanted: int = 1) -> Share:
    """Divides the machines' `cpus` and `gpus`: threads times trials stay within the cores, a GPU is not shared unless
    the sweep says so."""
    each_gpu = sweep.gpus_per_trial if sweep.gpus_per_trial is not None else float(min(gpus_wanted, gpus))
    if each_gpu > gpus:
        raise ValueError(f"`automl.gpus_per_trial` must be at most the GPUs there are ({gpus:g}), but is {each_gpu:g}.")
    each_cpu = sweep.cpus_per_trial
    if each_cpu is not None and each_cpu > cpus:
        raise ValueError(f"`automl.cpus_per_trial` must be at most the cores there are ({cpus}), but is {each_cpu}.")
    most = int(gpus / each_gpu) if each_gpu else cpus // (each_cpu or 1)
    if each_cpu is not None:
        most = min(most, cpus // each_cpu)
    concurrent = max(1, min(most, cpus, sweep.concurrent or most))
    default = cpus // concurrent if each_gpu or sweep.concurrent else 1
    return Share(cpus=each_cpu or max(1, default), gpus=each_gpu, concurrent=concurrent)


QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own records are not read
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nor its snapshots
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an exception here, as everywhere in Python
}
"""Set before ray is imported, unless the user set them."""
WORKER_ENV = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "60"}
"""How long a stopped training may take to leave a worker that is to be used again."""


@contextmanager
def _ray(run_dir: Path, sweep: "SweepSpec") -> Iterator[Share]:
    """A Ray to run on: the one this process has already, or a local one of our own."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    shutil.rmtree(run_dir / ".ray", ignore_errors=True)  # of a driver that was killed
    own = not ray.is_initialized()
    if own:
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(**ray_options(run_dir / ".ray" / "empty"))
    try:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield share(int(there.get("CPU", 1)), float(there.get("GPU", 0)), sweep)
    finally:
        if own:
            ray.shutdown()
        shutil.rmtree(run_dir / ".ray", ignore_errors=True)


def ray_options(empty: Path) -> dict[str, Any]:
    """Arguments of `ray.init` for a quiet local Ray whose workers import our packages.

    Ray puts the driver's working directory first on a worker's path, where a user's model.py would hide our model. An
    `empty` working directory of its own is the only thing that keeps it off (measured).
    """
    empty.mkdir(parents=True, exist_ok=True)
    return {
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        "runtime_env": {"working_dir": str(empty), "env_vars": {**WORKER_ENV, "PYTHONPATH": _worker_path()}},
    }


def _worker_path() -> str:
    """PYTHONPATH for workers. With a working directory Ray no longer hands on the driver's path, so a checkout that is
    not installed is named here; it stands before anything a user put there."""
    home = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH")) if part)


def _execute(driver: Driver, portion: Share, train: str) -> None:
    """Runs trials until the driver says that it is done."""
    from ray import tune

    from hpo.adapters import Halting, Searching
    from hpo.trial import run_trial

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by our console, once
    run_dir = driver.ledger.run_dir
    resources = {"CPU": float(portion.cpus), "GPU": portion.gpus}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, resources),
        param_space={"run_dir": str(run_dir), "train": train, "cpus": portion.cpus},
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
    tuner.fit()
