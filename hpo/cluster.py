"""The Ray that a sweep runs on: one of our own on this machine, or a cluster that is there already.

Knows nodes, what a trial gets of them, and what must hold on each before money is spent; knows no trial and no study.
"""

import fcntl
import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import secrets
import shutil
import socket
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hpo import guard
from hpo.errors import ClusterError, ShadowedPackageError
from hpo.tracking import tracking_uri

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec
    from model.spec import ExperimentSpec

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own records are not read
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nor its snapshots
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an exception here, as everywhere in Python
    # Under `ray job submit` the job has a working directory already, and Ray refuses a second one without this.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}
"""Set before ray is imported, unless the user set them."""
OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it listens on every network; Ray has no other switch for loopback
    "RAY_AUTH_MODE": "token",
}
"""As QUIET, for a Ray of our own."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where a user names the token. Without them Ray makes one for good in the home, for others to read where they may."""
WORKER_ENV = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "60"}
"""How long a stopped training may take to leave a worker that is to be used again."""
CALL_S = 10.0
ANSWER_S = 180.0
"""How long a node may take to start a worker and look around."""
APPEAR_S = 10.0
"""How long a file may take to be seen on another node of a network file system."""


@dataclass(frozen=True, kw_only=True)
class Node:
    id: str
    name: str
    cpus: int
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial gets, and how many run at a time."""

    cpus: int
    gpus: float
    concurrent: int


def prepare(address: str | None) -> None:
    """Sets Ray's variables, before it is imported. `address` None: for one of our own, with a token of its own.

    A program that imported Ray before has chosen for itself who may speak to it: this half of a process cannot ask for
    a token that its other half does not show.
    """
    ours = address is None and ("ray" not in sys.modules or os.environ.get("RAY_AUTH_MODE") == "token")
    for name, value in (QUIET | OWN if ours else QUIET).items():
        os.environ.setdefault(name, value)
    if ours and not any(name in os.environ for name in TOKENS):
        os.environ[TOKENS[0]] = secrets.token_hex(32)


@contextmanager
def workers(
    run_dir: Path, spec: "ExperimentSpec", sweep: "SweepSpec", note: Callable[[str], None] = print
) -> Iterator[Share]:
    """A Ray to run trials on: the one this process has already, the cluster that RAY_ADDRESS names, or one of our own.

    Raises ClusterError when the cluster cannot be reached or a node is not ready, ValueError when no trial fits.
    """
    address = os.environ.get("RAY_ADDRESS") or None
    address = None if address == "local" else address
    prepare(address)
    import ray

    scratch = run_dir / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)  # of a driver that was killed
    begun = not ray.is_initialized()
    if begun:
        logging.getLogger("ray").setLevel(logging.ERROR)
        _init(address, scratch / "empty")
    try:
        there = nodes()
        if (begun and address is not None) or len(there) > 1:
            note(f"Ray cluster: {', '.join(map(_described, there))}")
            for line in preflight(there, run_dir, spec):
                note(line)
        stage(there, spec, note)
        found = share(there, sweep, gpus_wanted=spec.train.num_gpus, grows=address is not None)
        if not _slots(there, found.cpus, found.gpus):
            note(f"no node has {found.cpus} CPU and {found.gpus:g} GPU yet: trials wait for the cluster to grow")
        yield found
    finally:
        if begun:
            ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _init(address: str | None, empty: Path) -> None:
    import ray

    if address is not None and address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS must be a cluster that this machine is a node of, but is the client address {address}; start "
            "the command on the head node with --ray-address auto, or with `ray job submit`."
        )
    arguments = options(address, empty)
    try:
        _call(address)
        ray.init(**arguments)
    except Exception as error:  # a node that does not start in time is Ray's bare Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address is None:
            raise ClusterError(
                f"Ray must start on this machine, but does not ({first}); free its memory and cores and try again, and "
                "if it stays so look at the logs in the newest folder of /tmp/ray."
            ) from error
        raise ClusterError(
            f"RAY_ADDRESS must be a Ray cluster that this machine is a node of, but {address} is not ({first}); start "
            "the command on one of its nodes, or leave RAY_ADDRESS unset to use this machine alone."
        ) from error


def _call(address: str | None) -> None:
    """Raises OSError when nobody is at `address`; Ray itself would try for many minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CALL_S).close()


def options(address: str | None, empty: Path) -> dict[str, Any]:
    """Arguments of `ray.init` for a quiet Ray whose workers import our packages; `address` None starts one of our own.

    Ray puts the driver's working directory first on a worker's path, where a user's model.py would hide our model. An
    `empty` working directory of its own is the only thing that keeps it off (measured).
    """
    empty.mkdir(parents=True, exist_ok=True)
    return {
        # "local", for otherwise Ray joins whatever it finds on the machine.
        **({"address": "local", "include_dashboard": False} if address is None else {"address": address}),
        "log_to_driver": False,
        "configure_logging": False,
        "runtime_env": {"working_dir": str(empty), "env_vars": {**WORKER_ENV, "PYTHONPATH": _worker_path()}},
    }


def _worker_path() -> str:
    """PYTHONPATH for workers. With a working directory Ray no longer hands on the driver's path, so a checkout that is
    not installed is named here; it stands before anything a user put there."""
    home = Path(__file__).resolve().parent.parent
    checkout = "" if home == Path(sysconfig.get_path("purelib")).resolve() else str(home)
    return os.pathsep.join(part for part in (checkout, os.environ.get("PYTHONPATH")) if part)


def nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    alive = [each for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
    names = [each["NodeManagerHostname"] for each in alive]
    found = []
    for each, name in zip(alive, names, strict=True):
        known = each["NodeID"]
        found.append(
            Node(
                id=known,
                name=name if names.count(name) == 1 else f"{name}/{known[:6]}",
                cpus=int(each["Resources"].get("CPU", 0)),
                gpus=float(each["Resources"].get("GPU", 0)),
            )
        )
    return found


def _described(node: Node) -> str:
    return f"{node.name} ({node.cpus} CPU" + (f", {node.gpus:g} GPU)" if node.gpus else ")")


def share(there: Sequence[Node], sweep: "SweepSpec", *, gpus_wanted: int = 1, grows: bool = False) -> Share:
    """Divides the nodes among trials; a trial lies on one node. Threads times trials stay within the cores, and a GPU
    is not shared unless the sweep says so. `grows`: whether more nodes may come when a trial waits for them."""
    most_gpus = max((node.gpus for node in there), default=0.0)
    most_cpus = max((node.cpus for node in there), default=0)
    waits = grows and sweep.concurrent is not None
    gpus = sweep.gpus_per_trial
    if gpus is None:
        gpus = float(gpus_wanted) if most_gpus else 0.0
    if gpus > most_gpus and not waits:
        name = "automl.gpus_per_trial" if sweep.gpus_per_trial is not None else "train.num_gpus"
        raise ValueError(
            f"`{name}` must be at most the GPUs there are on one node ({most_gpus:g}), but is {gpus:g}; lower it"
            + (", or set automl.concurrent as well if the cluster grows." if grows else ".")
        )
    if gpus >= 1 and gpus != int(gpus):
        raise ValueError(f"`automl.gpus_per_trial` must be whole from 1 on, but is {gpus:g}; round it.")
    if sweep.cpus_per_trial is not None and sweep.cpus_per_trial > most_cpus and not waits:
        raise ValueError(
            f"`automl.cpus_per_trial` must be at most the cores there are on one node ({most_cpus}), but is "
            f"{sweep.cpus_per_trial}; lower it."
        )
    most = _slots(there, sweep.cpus_per_trial or 1, gpus)
    wanted = min(sweep.concurrent or most, most)
    cpus = sweep.cpus_per_trial or 1
    if sweep.cpus_per_trial is None and (gpus or sweep.concurrent):
        cpus = next((n for n in range(most_cpus, 0, -1) if _slots(there, n, gpus) >= max(1, wanted)), 1)
    concurrent = sweep.concurrent if waits and sweep.concurrent else wanted
    return Share(cpus=cpus, gpus=gpus, concurrent=max(1, concurrent))


def _slots(there: Sequence[Node], cpus: int, gpus: float) -> int:
    """How many trials fit at a time."""
    return sum(min(node.cpus // cpus, _parts(node.gpus, gpus) if gpus else node.cpus) for node in there)


def _parts(whole: float, part: float) -> int:
    """Fractions of a GPU do not lie across two."""
    if part >= 1:
        return int(whole // part)
    return int(whole) * math.floor(1 / part + 1e-9)


def preflight(there: Sequence[Node], run_dir: Path, spec: "ExperimentSpec") -> list[str]:
    """Looks around from a worker on every node that may run trials. Returns warnings, one line each; raises
    ClusterError with a line for each thing that would make trials fail there."""
    import ray

    scratch, token = run_dir / ".ray", secrets.token_hex(8)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / token).write_text(token, encoding="utf-8")
    needs = {
        "scratch": str(scratch),
        "token": token,
        "code": code_digest(),
        "versions": _versions(),
        "paths": _paths(spec),
        "remote": _remote(spec),
        "tracking": tracking_uri(run_dir.parent),
    }
    asked = _ask(there, look_around, lambda node: {**needs, "node": node.id, "gpus": node.gpus})
    errors, warnings = [], []
    for node, answer in asked.items():
        try:
            found = ray.get(answer, timeout=ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            errors.append(f"node {node.name}: {_why_silent(error)}")
            continue
        errors += [f"node {node.name}: {text}" for text in found["errors"]]
        warnings += [f"node {node.name}: {text}" for text in found["warnings"]]
        if not found["errors"] and not _appears(scratch / node.id, token):
            errors.append(f"node {node.name}: {_not_shared(scratch.parent)}")
    if errors:
        raise ClusterError("the cluster is not ready:\n  " + "\n  ".join(errors))
    return warnings


def stage(there: Sequence[Node], spec: "ExperimentSpec", note: Callable[[str], None]) -> None:
    """Lets every node that may run trials download what lies in S3, so that no trial waits for it and looks stuck.
    Raises ClusterError with a line for each node that cannot; what it has by then it goes on from next time."""
    import ray

    sources = {key: path for key, path in _sources(spec).items() if "://" in path}
    if not sources:
        return
    if len(there) > 1:
        note("Ray cluster: each node downloads what it has not yet of the data in S3")
    errors = []
    for node, answer in _ask(there, stage_here, lambda node: sources).items():
        try:
            errors += [f"node {node.name}: {text}" for text in ray.get(answer)]
        except ray.exceptions.RayError as error:
            errors.append(f"node {node.name}: its worker ended ({str(error).splitlines()[-1]}); see its Ray logs.")
    if errors:
        raise ClusterError("the data is not on every node:\n  " + "\n  ".join(errors))


def stage_here(sources: Mapping[str, str]) -> list[str]:
    """On a node, in a worker: what could not be downloaded, each with its fix. sources: by spec key."""
    from model.data.sources import annotation_files, local
    from model.errors import DataError

    errors = []
    for key, path in sources.items():
        try:
            if key.endswith("json_file"):
                annotation_files(path)
            else:
                local(path)
        except DataError as error:
            errors.append(f"`{key}`: {error}")
    return errors


def _ask(there: Sequence[Node], work: Callable[[Any], Any], told: Callable[[Node], Any]) -> dict[Node, Any]:
    """Ray's promises of what `work` says on each node that may run trials."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    call: Any = ray.remote(work)
    asked = {}
    for node in there:
        if node.cpus or node.gpus:
            strategy = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
            asked[node] = call.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(told(node))
    return asked


def look_around(needs: Mapping[str, Any]) -> dict[str, list[str]]:
    """On a node, in a worker: what is missing there, each with its fix."""
    errors = [*_code_problems(needs), *_storage_problems(needs), *_data_problems(needs["paths"])]
    errors += _remote_problems(needs["remote"])
    warnings = []
    uri = needs["tracking"]
    if urlparse(uri).scheme in ("http", "https") and not _answers(uri):
        warnings.append(f"MLflow at {uri} does not answer there; only the driver writes to it, so trials go on.")
    if needs["gpus"] and not _sees_gpus():
        warnings.append(
            f"Ray counts {needs['gpus']:g} GPUs there, but torch sees none, and trials would train on the CPU; install "
            "the driver and a CUDA build of torch."
        )
    return {"errors": errors, "warnings": warnings}


def _code_problems(needs: Mapping[str, Any]) -> list[str]:
    try:
        guard.check()
    except ShadowedPackageError as error:
        return [str(error)]
    found = []
    if code_digest() != needs["code"]:
        found.append(
            f"our packages in {Path(__file__).resolve().parent.parent} differ from the driver's; install the same "
            "version of ddetr-automl on every node."
        )
    here = _versions()
    for name, version in needs["versions"].items():
        if here.get(name) != version:
            found.append(
                f"{name} is {here.get(name)} there and {version} on the driver; install the same on every node."
            )
    return found


def _storage_problems(needs: Mapping[str, Any]) -> list[str]:
    scratch, token = Path(needs["scratch"]), needs["token"]
    run_dir = scratch.parent
    if not _appears(scratch / token, token):
        return [_not_shared(run_dir)]
    try:
        with (scratch / needs["node"]).open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(token)
    except OSError as error:
        return [
            f"{run_dir} cannot be written and locked there ({error}); give the worker the right to, and mount the "
            "storage with file locks."
        ]
    return []


def _not_shared(run_dir: Path) -> str:
    return (
        f"{run_dir} is not the folder that the driver writes; set results_dir to storage that every node mounts at the "
        "same path."
    )


def _appears(path: Path, token: str) -> bool:
    deadline = time.monotonic() + APPEAR_S
    while True:
        try:
            if path.read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _paths(spec: "ExperimentSpec") -> dict[str, tuple[str, int | None]]:
    """What trials read: spec key to the path and, for a file, its size here."""
    named: dict[str, str | None] = {
        "model.pretrained_backbone_path": spec.model.pretrained_backbone_path,
        "train.pretrained_model_path": spec.train.pretrained_model_path,
    }
    return {
        key: (path, Path(path).stat().st_size if Path(path).is_file() else None)
        for key, path in (named | _sources(spec)).items()
        if path and "://" not in path and Path(path).exists()
    }


def _sources(spec: "ExperimentSpec") -> dict[str, str]:
    """The data that trials read: spec key to path or address."""
    return {
        f"dataset.{split}_data_sources[{place}].{key}": path
        for split in ("train", "val")
        for place, source in enumerate(getattr(spec.dataset, f"{split}_data_sources") or ())
        for key in ("image_dir", "json_file")
        if (path := getattr(source, key))
    }


def _remote(spec: "ExperimentSpec") -> dict[str, tuple[str, str]]:
    """Of the data in S3: spec key to address and what it holds, as this process was told."""
    from model.data import remote

    return {key: (path, remote.find(path).digest) for key, path in _sources(spec).items() if "://" in path}


def _remote_problems(sources: Mapping[str, tuple[str, str]]) -> list[str]:
    from model.data import remote
    from model.errors import DataError

    found = []
    for key, (uri, digest) in sources.items():
        try:
            if remote.find(uri, again=True).digest != digest:
                found.append(
                    f"`{key}` {uri} holds something else there than on the driver; set AWS_ENDPOINT_URL to the same "
                    "store, and start again if the data has changed."
                )
        except DataError as error:
            found.append(f"`{key}`: {error}")
    return found


def _data_problems(paths: Mapping[str, tuple[str, int | None]]) -> list[str]:
    found = []
    for key, (path, size) in paths.items():
        if not os.access(path, os.R_OK):
            found.append(f"`{key}` {path} cannot be read there; put it where every node has it at the same path.")
        elif size is not None and Path(path).stat().st_size != size:
            found.append(f"`{key}` {path} is another file there than on the driver; copy it again.")
    return found


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _sees_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 0


def _why_silent(error: Exception) -> str:
    text = str(error)
    if "ModuleNotFoundError" in text or "No module named" in text:
        return (
            "our packages cannot be imported there; install ddetr-automl on every node, or keep the checkout on "
            "storage that every node mounts at the same path."
        )
    named = [line for line in text.splitlines() if line.strip()]
    return (
        f"no worker answers within {ANSWER_S:.0f} s ({named[-1] if named else type(error).__name__}); see its Ray logs."
    )


def code_digest() -> str:
    """Of all files of our packages, as installed here."""
    home, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for package in guard.PACKAGES:
        for path in sorted((home / package).rglob("*")):
            if path.suffix in (".py", ".json", ".yaml"):
                digest.update(f"{path.relative_to(home)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("torch", "pytorch-lightning")}
    return {"Python": ".".join(platform.python_version_tuple()[:2]), **installed}
