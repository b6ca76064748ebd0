"""How an MLflow server or database is reached: quiet connections, our experiment, pages of runs.

Knows neither runs nor sweeps. A password in an address is never shown and never written.
"""

import logging
import math
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hpo.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ddetr"
DATABASE = "mlflow.db"


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a database in the results folder `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / DATABASE}"


def shown(uri: str) -> str:
    """The address without user and password, for logs and files."""
    try:
        parts = urlparse(uri)
    except ValueError:
        return uri
    return uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def how_to_open(uri: str) -> str:
    """What to type or open to see the runs. The server that it starts is reached from this machine alone."""
    if database_of(uri) is None:
        return f"open {shown(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def without_secrets(text: str, uri: str) -> str:
    """What a library said of the address `uri`, which it quotes as it was given."""
    secret, at, _ = urlparse(uri).netloc.rpartition("@")
    return text.replace(secret + at, "") if at else text


def database_of(uri: str) -> Path | None:
    """The file of a local database; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if urlparse(uri).scheme == "sqlite" else None


def connect(uri: str) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The queue tries again itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for every trial
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    database = database_of(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not database.exists():
            _make(database)
        with database.open("rb"):
            pass  # MLflow tries for minutes to open what cannot be opened
    return MlflowClient(uri)


def _make(database: Path) -> None:
    """Whole or not at all: MLflow builds its tables in many steps, and takes up none that a killed process left."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = database.with_name(f".{database.name}.partial")
    with exclusive(database.with_name(f".{database.name}.lock"), wait_s=math.inf):
        if database.exists():
            return
        for stale in (partial, partial.with_name(f"{partial.name}-journal")):
            stale.unlink(missing_ok=True)
        artifacts = (database.parent / "mlartifacts").as_uri()
        store = SqlAlchemyStore(f"sqlite:///{partial}", artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        os.replace(partial, database)


def experiment_of(client: "MlflowClient", root: Path, uri: str) -> str:
    """The id of our experiment, made where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server decides where artifacts go; for a local database the default would be the current folder.
    local = None if urlparse(uri).scheme in ("http", "https") else (root / "mlartifacts").as_uri()
    # So that the page opens on its training runs, not on its view for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(EXPERIMENT, artifact_location=local, tags=kind))


def search_runs(client: "MlflowClient", experiment: str, query: str) -> Iterable[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def quoted(text: str) -> str:
    return text.replace("'", "\\'")
