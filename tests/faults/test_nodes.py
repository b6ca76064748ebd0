"""Sweeps on clusters of several nodes, all on this machine: trials spread, a node leaves, a node is not ready."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
import yaml

from hpo.result import Outcome, read_result

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


class Nodes:
    """`tests/faults/nodes.py`."""

    def __init__(self, sizes: str, log: Path, own: Path | None) -> None:
        command = [sys.executable, str(rig.HERE / "nodes.py"), sizes]
        if own is not None:  # the nodes have another folder at this path than everybody else
            command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {own} && exec "$@"', "sh", *command]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=rig.environment(BOWL_EPOCH_S="1.0"),  # workers have it from their node, not from the driver
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, log.read_text()[-3000:]

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(sizes: str, own: Path | None = None) -> Nodes:
        made.append(Nodes(sizes, tmp_path / f"nodes-{len(made)}.log", own))
        return made[-1]

    yield make
    for each in made:
        each.end()


def places(run: Path) -> dict[int, list[str]]:
    """Trial number to the nodes that it was on, in order."""
    found = sorted((int(path.parent.name), path) for path in run.glob("trials/*/places.jsonl"))
    return {number: [line["node"] for line in rig.lines(path)] for number, path in found}


def used(run: Path) -> int:
    """Nodes that trained something."""
    return len({node for each in places(run).values() for node in each})


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_raylet_of_the_second_of_two_nodes_is_killed(how: str, tmp_path: Path, nodes: Callable[..., Nodes]) -> None:
    """With its workers, as when the power fails, and without: then a worker may go on for a moment, and the one that
    takes over waits until the folder is free."""
    there = nodes("1,1")
    driver = rig.Driver(tmp_path, trials=4, epochs=20)
    driver.start("train=placed:train", "scheduler=none", RAY_ADDRESS=there.address)
    driver.until(lambda: len(rig.finished(driver.run)) >= 2, "two finished trials")
    before = rig.bits(driver.run, rig.finished(driver.run))
    driver.until(lambda: all(rig.lines(driver.run / f"trials/{n}/epochs.jsonl") for n in (2, 3)), "two more at work")
    there.tell(f"{how} 1")
    assert used(driver.run) == 2
    driver.succeed()
    rig.check_whole(driver.run, 4, before)
    rig.check_mlflow(driver.run)
    where = places(driver.run)
    moved = [number for number, each in where.items() if len(each) > 1]
    assert len(moved) == 1, f"the trial of the node that left goes on elsewhere: {where}"
    assert len(set(where[moved[0]])) == 2
    assert driver.calls(moved[0])[1]["resumed"] >= 1
    assert f"trial {moved[0]}: its worker was lost" in driver.log.read_text()


def test_three_nodes_share_the_trials_and_one_leaves(tmp_path: Path, nodes: Callable[..., Nodes]) -> None:
    there = nodes("1,1,1")
    driver = rig.Driver(tmp_path, trials=6, epochs=4)
    driver.start("train=placed:train", "scheduler=none", "concurrent=3", RAY_ADDRESS=there.address)
    driver.until(lambda: used(driver.run) == 3, "three nodes at work")
    there.tell("kill 2")
    driver.succeed()
    rig.check_whole(driver.run, 6, {})
    rig.check_mlflow(driver.run)
    assert "Ray cluster: " in driver.log.read_text()


def test_two_gpus_of_a_trial_lie_on_one_node(tmp_path: Path, nodes: Callable[..., Nodes]) -> None:
    """Three GPUs on each of two nodes: two trials of two at a time, though six GPUs would be three."""
    there = nodes("2x3,2x3")
    driver = rig.Driver(tmp_path, trials=4, epochs=3)
    block = ("train=placed:train", "scheduler=none", "gpus_per_trial=2", "concurrent=null")
    driver.start(*block, RAY_ADDRESS=there.address)
    driver.succeed()
    rig.check_whole(driver.run, 4, {})
    said = [line for path in driver.run.glob("trials/*/places.jsonl") for line in rig.lines(path)]
    assert len(said) == 4
    assert all(len(set(line["gpus"])) == 2 for line in said)
    assert len({line["node"] for line in said}) == 2
    # A trial of four has no place on any node, and is refused at once.
    driver = rig.Driver(tmp_path / "more", trials=4)
    driver.start("gpus_per_trial=4", "concurrent=null", RAY_ADDRESS=there.address)
    assert driver.end() != 0
    assert "must be at most the GPUs there are on one node (3), but is 4" in driver.log.read_text()


def test_ranks_of_a_trial_with_two_gpus(
    tmp_path: Path, nodes: Callable[..., Nodes], digits_spec: dict[str, Any]
) -> None:
    """The real detector: 24 images, 4 for each of two processes, are three steps."""
    digits_spec["train"]["num_epochs"] = 1
    digits_spec["dataset"]["batch_size"] = 4
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(digits_spec))
    there = nodes("2x2")
    driver = rig.Driver(tmp_path, trials=1)
    driver.start("train=ranked:train", f"spec={spec}", "gpus_per_trial=2", RAY_ADDRESS=there.address)
    driver.succeed()
    rig.check_whole(driver.run, 1, {})
    assert (driver.run / "trials/0/model_epoch_000_step_00003.pth").exists()


def test_worker_is_killed_and_no_tracking_server_answers(tmp_path: Path, nodes: Callable[..., Nodes]) -> None:
    """A tracking server that is away is a warning on each node; a trial's worker that is killed is retried."""
    there = nodes("1,1")
    driver = rig.Driver(tmp_path, trials=4, epochs=4)
    driver.start(
        "train=placed:train", "scheduler=none", RAY_ADDRESS=there.address, MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    driver.until(lambda: driver.epochs_trained() >= 3, "three epochs")
    os.kill(driver.calls(0)[0]["pid"], signal.SIGKILL)
    driver.succeed()
    result = rig.check_whole(driver.run, 4, {})
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 4
    assert len(driver.calls(0)) == 2
    assert driver.log.read_text().count("MLflow at http://127.0.0.1:9 does not answer there") == 2
    assert (driver.run / "tracking.jsonl").stat().st_size > 0
    # The next session has a server, and it hears everything.
    driver.start()
    driver.succeed()
    rig.check_mlflow(driver.run)
    assert read_result(driver.run) == result


def test_storage_that_is_not_shared(tmp_path: Path, nodes: Callable[..., Nodes]) -> None:
    """Each node that would train into a folder of its own is named, before any trial."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("a mount namespace of its own is not allowed here")
    (tmp_path / "results").mkdir()
    there = nodes("1,1", own=tmp_path / "results")
    driver = rig.Driver(tmp_path)
    driver.start(RAY_ADDRESS=there.address)
    assert driver.end() != 0
    said = driver.log.read_text()
    assert "ClusterError: the cluster is not ready:" in said
    assert (
        said.count("is not the folder that the driver writes; set results_dir to storage that every node mounts") == 2
    )
    assert not list(driver.run.glob("trials/*/calls.jsonl"))
