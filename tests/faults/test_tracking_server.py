"""A real MLflow server that stops and comes back in mid-sweep, comes back only for the resume, or hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

from hpo.tracking import QUEUE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


class Server:
    """`mlflow server` on loopback with a SQLite store, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        command += [
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--artifacts-destination",
            str(self._folder / "a"),
        ]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes without a use here
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        rig.wait(self.answers, 240, "the start of the server", step=0.5)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_stopped_and_started_again_in_mid_sweep(tmp_path: Path, server: Server) -> None:
    driver = rig.Driver(tmp_path, trials=8, epochs=4, epoch_s=0.3, MLFLOW_TRACKING_URI=server.uri)
    driver.start("train=placed:train", "scheduler=none")
    driver.until(lambda: rig.finished(driver.run), "a finished trial")
    server.stop()
    now = len(rig.finished(driver.run))
    stopped = time.monotonic()
    driver.until(lambda: len(rig.finished(driver.run)) >= now + 2, "two more trials without a server")
    assert (driver.run / QUEUE).stat().st_size > 0
    hold = driver.run / "hold"
    hold.touch()  # a server takes its time to start
    while time.monotonic() < stopped + 60:
        time.sleep(1)
    server.start()
    hold.unlink()
    driver.succeed()
    rig.check_whole(driver.run, 8, {})
    rig.check_mlflow(driver.run, server.uri)
    assert (driver.run / QUEUE).read_text() == ""
    said = driver.log.read_text()
    assert said.count("cannot be written") == 1
    assert said.count("is back") == 1
    assert "View run" not in said, "MLflow's own lines would come between ours"


def test_driver_killed_after_six_of_ten_trials(tmp_path: Path, server: Server) -> None:
    """Ten children afterwards, none of them running, each with the parameters and every metric of its trial."""
    driver = rig.Driver(tmp_path, trials=10, epochs=4, epoch_s=0.2, MLFLOW_TRACKING_URI=server.uri)
    driver.start("scheduler=none")
    driver.until(lambda: len(rig.finished(driver.run)) >= 6, "six finished trials")
    driver.kill()
    before = rig.bits(driver.run, rig.finished(driver.run))
    rig.gone(driver.workers())
    driver.start()
    driver.succeed()
    rig.check_whole(driver.run, 10, before)
    rig.check_mlflow(driver.run, server.uri)
    found = rig.mlflow_runs(server.uri, driver.run)
    assert sorted(found) == list(range(-1, 10))
    assert not [run for run in found.values() if run.info.status == "RUNNING"]


def test_away_to_the_end_and_there_for_the_resume(tmp_path: Path, server: Server) -> None:
    """Driver and server are both killed; the server is away while the sweep is resumed to its end."""
    driver = rig.Driver(tmp_path, trials=6, epochs=4, epoch_s=0.3, MLFLOW_TRACKING_URI=server.uri)
    driver.start("scheduler=none")
    driver.until(lambda: len(rig.finished(driver.run)) >= 2, "two finished trials")
    driver.kill()
    before = rig.bits(driver.run, rig.finished(driver.run))
    server.stop()
    rig.gone(driver.workers())
    begun = time.monotonic()
    driver.start()
    driver.succeed()
    rig.check_whole(driver.run, 6, before)
    assert "events; they are kept in" in driver.log.read_text()
    print(f"the rest without a server took {time.monotonic() - begun:.0f} s")
    server.start()
    assert len([run for run in rig.mlflow_runs(server.uri, driver.run).values() if run.info.status == "RUNNING"]) > 0
    driver.start()  # nothing is left to train
    driver.succeed()
    rig.check_mlflow(driver.run, server.uri)
    assert (driver.run / QUEUE).read_text() == ""


def test_server_that_hangs(tmp_path: Path, server: Server) -> None:
    """It takes connections and says nothing; requests that were given up are carried out later, and make no doubles."""
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    driver = rig.Driver(tmp_path, trials=6, epochs=4, epoch_s=0.3, **env)
    driver.start("scheduler=none")
    driver.until(lambda: rig.finished(driver.run), "a finished trial")
    server.signal(signal.SIGSTOP)
    now = len(rig.finished(driver.run))
    driver.until(lambda: len(rig.finished(driver.run)) >= now + 2, "two more trials")
    server.signal(signal.SIGCONT)
    driver.succeed()
    rig.check_whole(driver.run, 6, {})
    rig.check_mlflow(driver.run, server.uri)
