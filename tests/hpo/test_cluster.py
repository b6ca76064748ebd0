"""What a trial gets of which nodes, how Ray is called, and what a node is asked before it may train."""

import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo import cluster
from hpo.cluster import Node, Share, share
from hpo.errors import ClusterError
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from tests.store import Store


def node(cpus: int, gpus: float = 0.0) -> Node:
    return Node(id="x", name="x", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("there", "block", "expected"),
    [
        ([(2, 0)], {}, Share(cpus=1, gpus=0.0, concurrent=2)),
        ([(8, 0)], {"concurrent": 2}, Share(cpus=4, gpus=0.0, concurrent=2)),
        ([(8, 0)], {"cpus_per_trial": 3}, Share(cpus=3, gpus=0.0, concurrent=2)),
        ([(1, 0)], {"concurrent": 4}, Share(cpus=1, gpus=0.0, concurrent=1)),
        ([(16, 4)], {}, Share(cpus=4, gpus=1.0, concurrent=4)),
        ([(16, 4)], {"gpus_per_trial": 0.5}, Share(cpus=2, gpus=0.5, concurrent=8)),
        ([(16, 4)], {"gpus_per_trial": 2.0, "concurrent": 1}, Share(cpus=16, gpus=2.0, concurrent=1)),
        ([(2, 8)], {}, Share(cpus=1, gpus=1.0, concurrent=2)),
        # Two nodes: neither threads nor GPUs of a trial lie across them.
        ([(4, 0), (4, 0)], {"concurrent": 2}, Share(cpus=4, gpus=0.0, concurrent=2)),
        ([(4, 0), (4, 0)], {"concurrent": 3}, Share(cpus=2, gpus=0.0, concurrent=3)),
        ([(8, 3), (8, 3)], {"gpus_per_trial": 2.0}, Share(cpus=8, gpus=2.0, concurrent=2)),
        ([(8, 2), (8, 2)], {"gpus_per_trial": 0.4}, Share(cpus=2, gpus=0.4, concurrent=8)),
        # A head without cores for trials, as on Kubernetes.
        ([(0, 0), (16, 4), (16, 4)], {}, Share(cpus=4, gpus=1.0, concurrent=8)),
    ],
)
def test_share(there: list[tuple[int, float]], block: dict[str, Any], expected: Share) -> None:
    assert share([node(*each) for each in there], SweepSpec(**block)) == expected


@pytest.mark.parametrize("block", [{"gpus_per_trial": 2.0}, {"cpus_per_trial": 5}, {"gpus_per_trial": 1.5}])
def test_what_no_node_can_hold(block: dict[str, Any]) -> None:
    """Also when all nodes together could: such a trial would wait for ever."""
    gpus = 2.0 if block == {"gpus_per_trial": 1.5} else 1.0
    with pytest.raises(ValueError, match="must be"):
        share([node(4, gpus), node(4, gpus)], SweepSpec(**block))


def test_gpus_of_the_spec() -> None:
    assert share([node(8, 4)], SweepSpec(), gpus_wanted=2) == Share(cpus=4, gpus=2.0, concurrent=2)
    assert share([node(8)], SweepSpec(), gpus_wanted=2) == Share(cpus=1, gpus=0.0, concurrent=8)
    with pytest.raises(ValueError, match=r"`train.num_gpus` must be at most the GPUs there are on one node \(1\)"):
        share([node(8, 1), node(8, 1)], SweepSpec(), gpus_wanted=2)


def test_cluster_that_grows() -> None:
    """With both numbers given trials wait for nodes that are not there yet."""
    block = SweepSpec(gpus_per_trial=1.0, concurrent=8)
    assert share([node(4)], block, grows=True) == Share(cpus=1, gpus=1.0, concurrent=8)
    assert share([node(8, 2)], block, grows=True) == Share(cpus=4, gpus=1.0, concurrent=8)
    with pytest.raises(ValueError, match=r"set automl\.concurrent as well if the cluster grows"):
        share([node(4)], SweepSpec(gpus_per_trial=1.0), grows=True)


NODES = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=4)


@settings(deadline=None)
@given(NODES, st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 2.0]), st.none() | st.integers(1, 20))
def test_trials_fit(there: list[tuple[int, int]], gpus: float | None, concurrent: int | None) -> None:
    """Whatever is shared out can be placed, trial by trial, on single nodes."""
    if (gpus or 0) > max(count for _, count in there):
        return
    found = share([node(*each) for each in there], SweepSpec(gpus_per_trial=gpus, concurrent=concurrent))
    free = [[cpus, [1.0] * count] for cpus, count in there]
    for _ in range(found.concurrent):
        assert any(_place(each, found) for each in free) or found == Share(cpus=1, gpus=found.gpus, concurrent=1)
    assert found.concurrent <= (concurrent or 512)


def _place(free: list[Any], one: Share) -> bool:
    cpus, cards = free
    chosen = [card for card in range(len(cards)) if cards[card] + 1e-9 >= min(one.gpus, 1.0)][: max(1, int(one.gpus))]
    if cpus < one.cpus or (one.gpus and len(chosen) < max(1, int(one.gpus))):
        return False
    free[0] -= one.cpus
    for card in chosen if one.gpus else ():
        cards[card] -= min(one.gpus, 1.0)
    return True


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    own, attached = cluster.options(None, tmp_path / "a"), cluster.options("auto", tmp_path / "b")
    assert (own["address"], own["include_dashboard"]) == ("local", False)
    assert attached["address"] == "auto"
    assert "include_dashboard" not in attached, "Ray refuses it when attaching"
    for found in (own, attached):
        environment = found["runtime_env"]
        assert list(Path(environment["working_dir"]).iterdir()) == []
        assert environment["env_vars"]["PYTHONPATH"].split(os.pathsep)[-1] == "/elsewhere"


def test_client_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with (
        pytest.raises(ClusterError, match="start the command on the head node"),
        cluster.workers(tmp_path, ExperimentSpec(), SweepSpec()),
    ):
        pass


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    expected = f"must be a Ray cluster that this machine is a node of, but {address} is not"
    with pytest.raises(ClusterError, match=expected), cluster.workers(tmp_path, ExperimentSpec(), SweepSpec()):
        pass


LISTENING = """
import json, os, subprocess, sys
from pathlib import Path
from hpo import cluster
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec

with cluster.workers(Path(sys.argv[1]), ExperimentSpec(), SweepSpec()):
    import ray
    import psutil  # which ray brings

    here = psutil.Process()
    every = [each for one in (here, *here.children(recursive=True)) for each in one.net_connections("inet")]
    told = {"listens": sorted({each.laddr.ip for each in every if each.status == psutil.CONN_LISTEN})}
    address = ray.get_runtime_context().gcs_address
    files = [each for each in (Path(os.environ["RAY_TMPDIR"]) / "ray").rglob("*") if each.is_file()]
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    told |= {"files": len(files), "with token": [str(each) for each in files if token in each.read_bytes()]}
    for name, token in (("stranger", {"RAY_AUTH_TOKEN": "0" * 32}), ("owner", {})):
        program = f"import ray; ray.init({address!r}, log_to_driver=False)"
        done = subprocess.run([sys.executable, "-c", program], env=os.environ | token, capture_output=True, text=True)
        told[name] = done.returncode, done.stderr
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_our_own_ray_answers_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, for Ray reads its variables once."""
    for name in ("RAY_ADDRESS", *cluster.OWN, *cluster.TOKENS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LISTENING, str(tmp_path / "run")]
    with tempfile.TemporaryDirectory(prefix="ray-") as files:  # its sockets need a short path
        monkeypatch.setenv("RAY_TMPDIR", files)
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["files"] > 0
    assert told["with token"] == []
    assert not (tmp_path / "home" / ".ray").exists(), "the token is of this one Ray"
    assert told["listens"]
    for address in map(ipaddress.ip_address, told["listens"]):
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback, told["listens"]
    assert told["owner"][0] == 0, told["owner"][1]
    assert told["stranger"][0] != 0
    assert "token" in told["stranger"][1].lower()


@pytest.fixture
def needs(tmp_path: Path) -> dict[str, Any]:
    """What a driver asks a node on its own machine: nothing is missing."""
    scratch = tmp_path / "run" / ".ray"
    scratch.mkdir(parents=True)
    (scratch / "token").write_text("token")
    return {
        "scratch": str(scratch),
        "token": "token",
        "code": cluster.code_digest(),
        "versions": cluster._versions(),
        "paths": {},
        "remote": {},
        "tracking": f"sqlite:///{tmp_path}/mlflow.db",
        "node": "abc",
        "gpus": 0.0,
    }


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "APPEAR_S", 0.0)


def test_ready_node(needs: dict[str, Any]) -> None:
    assert cluster.look_around(needs) == {"errors": [], "warnings": []}
    assert (Path(needs["scratch"]) / "abc").read_text() == "token"


def test_other_code_and_versions(needs: dict[str, Any]) -> None:
    found = cluster.look_around({**needs, "code": "other", "versions": {**needs["versions"], "torch": "1.0"}})
    assert "differ from the driver's; install the same version of ddetr-automl" in found["errors"][0]
    assert "and 1.0 on the driver; install the same on every node" in found["errors"][1]


def test_storage_that_is_not_shared(needs: dict[str, Any]) -> None:
    (Path(needs["scratch"]) / "token").unlink()
    (problem,) = cluster.look_around(needs)["errors"]
    assert "set results_dir to storage that every node mounts" in problem


def test_storage_without_rights(needs: dict[str, Any]) -> None:
    (Path(needs["scratch"]) / "abc").mkdir()  # root may write anything else
    (problem,) = cluster.look_around(needs)["errors"]
    assert "cannot be written and locked there" in problem


def test_data_that_is_missing_or_other(needs: dict[str, Any], digits_spec: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "annotations.json"
    shutil.copy(digits_spec["dataset"]["train_data_sources"][0]["json_file"], copy)
    gone = tmp_path / "images"
    gone.mkdir()
    digits_spec["dataset"]["train_data_sources"][0] = {"image_dir": str(gone), "json_file": str(copy)}
    paths = cluster._paths(ExperimentSpec.from_dict(digits_spec))
    assert len(paths) == 4
    assert cluster.look_around({**needs, "paths": paths})["errors"] == []
    gone.rmdir()
    copy.write_text("[]")
    errors = cluster.look_around({**needs, "paths": paths})["errors"]
    assert [error.split(" ", 1)[0] for error in errors] == [
        "`dataset.train_data_sources[0].image_dir`",
        "`dataset.train_data_sources[0].json_file`",
    ]
    assert "cannot be read there; put it where every node has it" in errors[0]
    assert "is another file there than on the driver; copy it again" in errors[1]


def test_data_in_s3_that_is_missing_or_other(
    needs: dict[str, Any], s3: "Store", digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDETR_CACHE", str(tmp_path / "cache"))
    images, labels = s3.put("nodes", "images.tar.gz", b"no archive"), s3.put("nodes", "a.json", b"{}")
    digits_spec["dataset"]["train_data_sources"] = [{"image_dir": images, "json_file": labels}]
    spec = ExperimentSpec.from_dict(digits_spec)
    named = cluster._remote(spec)
    assert list(named) == [f"dataset.train_data_sources[0].{key}" for key in ("image_dir", "json_file")]
    assert not set(named) & set(cluster._paths(spec))
    assert cluster.look_around({**needs, "remote": named})["errors"] == []
    s3.put("nodes", "a.json", b"{} ")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    first, _ = cluster.look_around({**needs, "remote": named})["errors"]
    assert "`dataset.train_data_sources[0].image_dir`: `s3://nodes/images.tar.gz` needs credentials" in first
    assert "on every machine that reads it" in first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    (other,) = cluster.look_around({**needs, "remote": named})["errors"]
    assert "s3://nodes/a.json holds something else there than on the driver; set AWS_ENDPOINT_URL" in other
    (broken,) = cluster.stage_here(cluster._sources(spec) | {"x.json_file": labels})[:1]
    assert "`s3://nodes/images.tar.gz` is not a readable tar archive" in broken
    assert list((tmp_path / "cache" / "s3").rglob("a.json"))


def test_warnings_stop_nothing(needs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(cluster, "_sees_gpus", lambda: False)
    found = cluster.look_around({**needs, "tracking": uri, "gpus": 2.0})
    assert found["errors"] == []
    assert "does not answer there; only the driver writes to it" in found["warnings"][0]
    assert "Ray counts 2 GPUs there, but torch sees none" in found["warnings"][1]


def test_shadowed_package(needs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def shadowed() -> None:
        raise cluster.ShadowedPackageError("the package `model` must come from ours")

    monkeypatch.setattr(cluster.guard, "check", shadowed)
    assert cluster.look_around(needs)["errors"] == ["the package `model` must come from ours"]


@pytest.mark.parametrize(
    ("visible", "gpus", "ids"), [(2, 2.0, (0, 1)), (1, 0.5, (0,)), (8, 0.0, (0,)), (1, 2.0, (0,)), (0, 2.0, (0, 1, 2))]
)
def test_trial_trains_on_the_gpus_that_it_has(
    visible: int, gpus: float, ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on those that the spec counts, which are the numbers of another machine."""
    import torch

    from hpo.trial import _on_own_gpus

    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    spec = _on_own_gpus(ExperimentSpec.from_dict({"train": {"num_gpus": 3, "gpu_ids": [0, 1, 2]}}), gpus)
    assert (spec.train.num_gpus, spec.train.gpu_ids) == (len(ids), ids)
