"""What the doctor looks at beside the training: the MLflow store or server, and Ray with a worker on every node."""

import base64
import importlib.metadata
import json
import os
import shutil
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from hpo.errors import ClusterError
from hpo.files import existing
from hpo.mlflow_store import shown, tracking_uri
from model.findings import Finding, of_error

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec
    from model.spec import ExperimentSpec

PATIENCE_S = 5.0
LATER = "training goes on without it, and what was not told is sent later"


def tracking(root: Path) -> Iterator[Finding]:
    """Whether the store that runs below `root` will write to can be read and written. Leaves nothing in it."""
    uri = tracking_uri(root)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        yield _server(uri)
    elif scheme == "sqlite":
        yield _database(Path(uri.removeprefix("sqlite:///")))
    else:
        yield Finding(
            "tracking", "note", f"MLflow at {shown(uri)} is not looked at: only http, https and sqlite are",
            f"try `MLFLOW_TRACKING_URI={shown(uri)} mlflow experiments search` yourself",
        )  # fmt: skip


def _database(path: Path) -> Finding:
    version = importlib.metadata.version("mlflow")
    try:
        if path.exists():
            with sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=PATIENCE_S) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("SELECT count(*) FROM sqlite_master")
                database.rollback()
            database.close()
        else:
            with tempfile.TemporaryFile(dir=existing(path.parent)):
                pass
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return Finding(
            "tracking", "warning", f"the MLflow database {path} cannot be written ({why}); {LATER}",
            "move the file away if it is damaged, free it if another process holds it, or set MLFLOW_TRACKING_URI",
        )  # fmt: skip
    state = "can be read and written" if path.exists() else "will be made by the first run"
    return Finding("tracking", "ok", f"MLflow {version}: {path} {state}")


def _server(uri: str) -> Finding:
    version, at = importlib.metadata.version("mlflow"), shown(uri)
    try:
        theirs = _get(uri, "version")
        experiments = json.loads(_get(uri, "api/2.0/mlflow/experiments/search?max_results=1"))
    except urllib.error.HTTPError as error:
        change = "start or correct the server"
        if error.code in (401, 403):
            change = (
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one who may"
            )
        return Finding("tracking", "warning", f"MLflow at {at} answers {error.code} {error.reason}; {LATER}", change)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        return Finding(
            "tracking", "warning", f"MLflow at {at} does not answer as it should ({why}); {LATER}",
            "start the server or correct MLFLOW_TRACKING_URI; unset it to use a database in the results folder",
        )  # fmt: skip
    if theirs.split(".")[0] != version.split(".")[0]:
        return Finding(
            "tracking", "warning", f"MLflow at {at} is {theirs}, but {version} is installed here",
            "bring both to the same major version",
        )  # fmt: skip
    seen = "" if experiments.get("experiments") else ", empty so far"
    return Finding(
        "tracking", "ok", f"MLflow {version}: the server at {at} ({theirs}{seen}) answers; nothing was written"
    )


def _get(uri: str, path: str) -> str:
    parts = urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or parts.username
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or parts.password or ""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{path}", "", "")))
    if user:
        coded = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        request.add_header("Authorization", f"Basic {coded}")
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return str(answer.read(1 << 20).decode("utf-8", "replace")).strip()


def ray(spec: "ExperimentSpec", sweep: "SweepSpec", root: Path) -> Iterator[Finding]:
    """Starts a Ray of our own or reaches the one that RAY_ADDRESS names; looks around from a worker on each node."""
    from hpo import cluster

    version = importlib.metadata.version("ray")
    address = os.environ.get("RAY_ADDRESS")
    told: list[str] = []
    try:
        # A cluster's nodes must see the folder, so it lies where the results will.
        scratch = Path(tempfile.mkdtemp(prefix=".ddetr-doctor-", dir=existing(root) if address else None))
    except OSError as error:
        yield Finding(
            "disk", "problem", f"Ray is not tried: no folder can be made in {existing(root)} ({error.strerror})",
            "set results_dir to storage that every node mounts and may write",
        )  # fmt: skip
        return
    try:
        with cluster.workers(scratch, spec, sweep, note=told.append) as share:
            there = cluster.nodes()
            if not address:  # otherwise it has looked around already
                told += cluster.preflight(there, scratch, spec)
    except ClusterError as error:
        head, *lines = str(error).splitlines()
        yield from (of_error("cluster", line.strip()) for line in lines or [head])
        return
    except ValueError as error:
        yield of_error("spec", error)
        return
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    where = f"the cluster at {address}" if address else "started here"
    nodes = ", ".join(f"{node.name} ({node.cpus} CPU, {node.gpus:g} GPU)" for node in there)
    yield Finding(
        "cluster", "ok", f"Ray {version}, {where}: {nodes}, and a worker on each finds code and storage; "
        f"{share.concurrent} trials at a time",
    )  # fmt: skip
    for line in told:
        if not line.startswith("Ray cluster: "):
            yield of_error("cluster", line, "warning")
