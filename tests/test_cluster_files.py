"""The files for clusters: each is read as its tool reads it, and the shell scripts are run with stand-ins for theirs.

None of them has been run on such a cluster.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "experiments" / "cluster"
RAY = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")).split(
    "=="
)[1]
GPU = "nvidia.com/gpu"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FILES / name).read_text()))


def clusters() -> dict[str, dict[str, Any]]:
    (job,) = documents("kuberay-job.yaml")
    claim, cluster = documents("kuberay-cluster.yaml")
    assert (claim["kind"], cluster["kind"], job["kind"]) == ("PersistentVolumeClaim", "RayCluster", "RayJob")
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    return {"cluster": cluster["spec"], "job": job["spec"]["rayClusterSpec"]}


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_kuberay(name: str) -> None:
    spec = clusters()[name]
    assert spec["rayVersion"] == RAY
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0", "no trial on the head"
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"][GPU] >= 1
    # One image and one shared folder, at the same path everywhere.
    pods = [group["template"]["spec"] for group in (head, *workers)]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == pods[0]["containers"][0]["image"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        assert mounts["shared"] == "/shared"
        assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": "ddetr-shared"}


def test_names_that_files_share() -> None:
    claim, _ = documents("kuberay-cluster.yaml")
    assert claim["metadata"]["name"] == "ddetr-shared"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    dockerfile = (FILES / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{RAY}-py311" in dockerfile
    (job,) = documents("kuberay-job.yaml")
    script = job["spec"]["entrypoint"].split()[1]
    assert f"experiments/cluster/sweep.sh {script}" in dockerfile
    image = re.search(r"-t (\S+)", dockerfile)
    assert image is not None
    assert clusters()["job"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == image[1]


def test_autoscaler_file_is_what_ray_reads() -> None:
    """Ray's own loader fills in its defaults and holds the result against its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    (given,) = documents("autoscaler-aws.yaml")
    config = prepare_config(given)
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert {types[name]["resources"]["GPU"] for name in types if name != config["head_node_type"]} == {1, 4}
    assert any("/shared" in option for option in config["docker"]["run_options"])


@pytest.mark.parametrize("name", ["slurm.sbatch", "sweep.sh"])
def test_shell_syntax(name: str) -> None:
    subprocess.run(["bash", "-n", str(FILES / name)], check=True)


STUB = """#!/usr/bin/env bash
echo "{name} $* RAY_ADDRESS=${{RAY_ADDRESS:-}} $RAY_AUTH_MODE $RAY_AUTH_TOKEN." >> "$SAID"
{more}
"""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that only say how they were called, before all others on the path. Returns what they said."""
    more = {
        "ddetr": "trap 'sleep 0.5; echo saved >> \"$SAID\"; exit 130' TERM; for _ in {1..100}; do "
        '[[ -e $RELEASE ]] && exit "$(cat "$RELEASE")"; sleep 0.1; done',
        "ray": "[[ $1 == health-check ]] && exit 0; [[ $* == *--block* ]] && exec sleep 60",
        "srun": "while [[ $1 == --* ]]; do shift; done; "
        'if [[ $1 == hostname ]]; then echo 10.0.0.7 fe80::1; else "$@"; fi',
        "scontrol": 'if [[ $1 == show ]]; then printf "node%s\\n" 1 2 3; fi',
        "sleep": '[[ $1 == 20 ]] || exec /bin/sleep "$1"',
    }
    for name, text in more.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(STUB.format(name=name, more=text))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setenv("RELEASE", str(tmp_path / "release"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "said"


def said(path: Path, word: str) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []


@pytest.mark.parametrize("code", [0, 1])
def test_sweep_script_begins_once_and_then_goes_on(stubs: Path, tmp_path: Path, code: int) -> None:
    results = tmp_path / "shared" / "job"
    (tmp_path / "release").write_text(str(code))
    command = ["bash", str(FILES / "sweep.sh"), "/shared/spec.yaml", str(results)]
    assert subprocess.run(command, check=False).returncode == code
    run = results / "spec-20261123-120000"
    run.mkdir(parents=True)
    (run / "sweep.json").touch()
    assert subprocess.run(command, check=False).returncode == code
    first, second = said(stubs, "ddetr")
    assert first.startswith(f"ddetr train -e /shared/spec.yaml --yes results_dir={results} ")
    assert second.startswith(f"ddetr resume {run} ")


def test_sweep_script_waits_for_a_driver_that_saves(stubs: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(["bash", str(FILES / "sweep.sh"), "spec.yaml", str(tmp_path / "none")])
    deadline = time.monotonic() + 30
    while not said(stubs, "ddetr"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert said(stubs, "saved") == ["saved"]


def slurm(tmp_path: Path) -> "subprocess.Popen[bytes]":
    home = tmp_path / "home"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "activate").touch()
    (home / "experiments").symlink_to(ROOT / "experiments")
    job = {
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }
    more = {"SLURM_SUBMIT_DIR": str(home), "DDETR_RESULTS": str(tmp_path / "shared")}
    return subprocess.Popen(
        ["bash", str(FILES / "slurm.sbatch"), "/shared/spec.yaml"], env=os.environ | job | more, start_new_session=True
    )


def test_slurm_job(stubs: Path, tmp_path: Path) -> None:
    (tmp_path / "release").write_text("0")
    process = slurm(tmp_path)
    try:
        assert process.wait(60) == 0
        deadline = time.monotonic() + 30
        while len(said(stubs, "ray start")) < 3 and time.monotonic() < deadline:  # they are on their own
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # what `ray start --block` stands for
    (ddetr,) = said(stubs, "ddetr")
    assert f"results_dir={tmp_path}/shared/slurm-41 RAY_ADDRESS=10.0.0.7:20041" in ddetr
    # Three nodes at once: which of them is heard first is chance.
    head, *others = sorted(said(stubs, "ray start"), key=lambda line: "--head" not in line)
    assert "--head --node-ip-address=10.0.0.7 --port=20041" in head
    assert len(others) == 2
    (ending,) = {line.rpartition(":20041")[2].rpartition(" RAY_ADDRESS=")[2] for line in (ddetr, *others)}
    assert re.fullmatch(r" token \w{64}\.", ending), "one token for all"
    assert head.endswith(ending)
    assert all("--address=10.0.0.7:20041 --num-cpus=8 --num-gpus=4 --block" in line for line in others)
    nodes = [re.search(r"--nodelist=(\w+)", line) for line in said(stubs, "srun")]
    assert sorted(node[1] for node in nodes if node) == ["node1", "node1", "node2", "node3"]
    assert not [line for line in said(stubs, "scontrol") if "requeue" in line]


def test_slurm_job_at_the_end_of_its_hours(stubs: Path, tmp_path: Path) -> None:
    """Slurm tells the batch script alone; the driver saves, and the job goes back into the queue."""
    process = slurm(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not said(stubs, "ddetr"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        os.killpg(process.pid, signal.SIGTERM)
    assert said(stubs, "saved") == ["saved"]
    assert any("requeue 41" in line for line in said(stubs, "scontrol"))
