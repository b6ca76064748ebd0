"""How a store of MLflow is reached: addresses without secrets, and a database that a killed process was making."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.mlflow_store import connect, how_to_open, shown, without_secrets


@pytest.mark.parametrize(
    ("uri", "without"),
    [
        ("http://me:pass@host:5000/x", "http://host:5000/x"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
    ],
)
def test_no_password_is_shown(uri: str, without: str) -> None:
    assert shown(uri) == without
    assert without_secrets(f"refused: {uri}/api", uri) == f"refused: {without}/api"
    assert "pass" not in how_to_open(uri)


def test_a_database_that_a_killed_process_was_making_is_made_anew(tmp_path: Path) -> None:
    """MLflow takes up no half-made one: it would be of no use to any run of the folder."""
    code = f"""
import os, signal, sqlalchemy, sys
from sqlalchemy.engine import Engine
count = 0
@sqlalchemy.event.listens_for(Engine, "after_cursor_execute")
def one(connection, cursor, statement, *more):
    global count
    count += statement.lstrip().upper().startswith("CREATE TABLE")
    if count == 30:
        os.kill(os.getpid(), signal.SIGKILL)
from hpo.mlflow_store import connect
connect("sqlite:///{tmp_path / "mlflow.db"}").search_experiments()
"""
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"], "it was killed in the making"
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.create_experiment("ours")
    assert not list(tmp_path.glob("*.partial"))
    assert not os.path.exists(tmp_path / "mlruns")
