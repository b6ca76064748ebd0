"""A sweep inside `ray job submit --working-dir`: the job's working directory and ours do not collide."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("opencensus", "aiohttp_cors")),
        reason="Ray's job server needs pip install 'ddetr-automl[cluster]'",
    ),
]


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-0123456789abcdef"}


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """The address of the dashboard of a cluster that `ray start` made, in a folder of its own."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, dashboard = one.getsockname()[1], two.getsockname()[1]
    folder = Path("/tmp") / f"ddetr-job-{os.getpid()}"  # Ray's sockets need a short path
    command = ["start", "--head", f"--port={port}", "--num-cpus=2", f"--dashboard-port={dashboard}"]
    command += ["--include-dashboard=true", f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command],
        env=os.environ | TOKEN,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{dashboard}"
    process.terminate()
    process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def submit(server: str, folder: Path, *entrypoint: str) -> "subprocess.CompletedProcess[str]":
    """As a user does, from anywhere, and waits for the end."""
    path = os.pathsep.join([str(rig.ROOT), str(rig.BOWL), str(rig.HERE)])
    environment = f'{{"env_vars": {{"PYTHONPATH": "{path}", "BOWL_EPOCH_S": "0.1"}}}}'
    command = ["job", "submit", "--address", server, "--working-dir", str(folder), "--runtime-env-json", environment]
    found = {}

    def tried() -> bool:
        found["done"] = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--", *entrypoint],
            env=os.environ | TOKEN,
            capture_output=True,
            text=True,
            check=False,
        )
        return "Failed to connect" not in found["done"].stdout + found["done"].stderr

    rig.wait(tried, 240, "the start of the job server", step=2.0)
    return found["done"]


def test_sweep_in_a_job(tmp_path: Path, job_server: str) -> None:
    folder, run = tmp_path / "user", tmp_path / "results" / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("the user's")
    command = (sys.executable, str(rig.HERE / "one_sweep.py"), "begin", str(run), "4", "3", "train=placed:train")
    done = submit(job_server, folder, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Ray cluster: " in done.stdout, "the sweep ran on the job's cluster"
    rig.check_whole(run, 4, {})
    rig.check_mlflow(run)


def test_module_of_the_user_that_hides_ours(tmp_path: Path, job_server: str) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "model.py").write_text("raise RuntimeError('the wrong model')")
    code = "import sys; from hpo.cli import main; sys.exit(main(['train', '-e', 'spec.yaml']))"
    done = submit(job_server, folder, sys.executable, "-P", "-c", code)
    assert done.returncode != 0
    assert "error (install): the package `model` must come from" in done.stdout
