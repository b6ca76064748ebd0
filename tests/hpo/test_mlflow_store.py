"""How a store of MLflow is reached: addresses without secrets, and a database that a killed process was making."""

import ipaddress
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
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


def asked(port: int, host: str) -> int:
    """The status of an answer to a request by that name of the server; 0 without one."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1")
    request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def listening(port: int) -> set[str]:
    """The addresses on which somebody listens at a port, from Linux's own tables."""
    found = set()
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, number = row.split()[1].partition(":")
            if int(number, 16) == port and row.split()[3] == "0A":
                raw = bytes.fromhex(address)
                whole = b"".join(raw[place : place + 4][::-1] for place in range(0, size, 4))
                found.add(str(ipaddress.ip_address(whole)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tables of sockets")
def test_the_server_that_we_tell_to_start_is_for_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As how_to_open prints it, but for the port."""
    monkeypatch.delenv("MLFLOW_HOST", raising=False)
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes without a use here
    folder = tmp_path / "with a space"
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    connect(uri).search_experiments()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", *shlex.split(how_to_open(uri)), "--port", str(port), "--workers", "1"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while asked(port, f"localhost:{port}") != 200:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert listening(port) == {"127.0.0.1"}
        assert asked(port, "evil.example") == 403, "a page of another site may not reach it by a name of its own"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
