"""Several processes on one CPU: the same training as one process of the whole batch, and what only rank 0 does."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model import rank
from model.batch import Target
from model.checkpoint import load_model, read_checkpoint, read_raw
from model.errors import NonFiniteLoss, SpecError
from model.fit import Job
from model.launch import place
from model.metrics import Measurement
from model.network.criterion import Criterion
from model.network.detr import build
from model.spec import ExperimentSpec, TrainSpec
from model.status import StatusLog
from model.train import BEST, LATEST, TrainResult, train

ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


@pytest.fixture
def still(digits_spec: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Without dropout, with normalisation that stands still and one padded size: what is left does not depend on how
    images are dealt. SGD, since Adam's first steps turn the sign of a gradient of 1e-12 into a whole step."""
    spec = ExperimentSpec.from_dict(digits_spec)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = build(spec.model, 3, pretrained=False).get_submodule("backbone.0.body")
    torch.save(body.state_dict(), tmp_path / "body.pth")
    changed = {"dropout_ratio": 0.0, "pretrained_backbone_path": str(tmp_path / "body.pth")}
    padded = {**digits_spec["dataset"]["augmentation"], "fixed_padding": True}
    return {
        **digits_spec,
        "model": {**digits_spec["model"], **changed},
        "dataset": {**digits_spec["dataset"], "augmentation": padded},
    }


def spec_of(given: dict[str, Any], batch_size: int, **train_keys: Any) -> ExperimentSpec:
    optim = {"lr": 1e-2, "lr_backbone": 1e-3, "lr_steps": [1], "optimizer": "SGD"}
    return ExperimentSpec.from_dict(
        {
            **given,
            "dataset": {**given["dataset"], "batch_size": batch_size},
            "train": {**given["train"], "num_epochs": 1, "optim": optim, **train_keys},
        }
    )


def difference(a: Path, b: Path) -> float:
    left, right = read_raw(a)["state_dict"], read_raw(b)["state_dict"]
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def check_equal(one: TrainResult, two: TrainResult) -> None:
    assert difference(one.last, two.last) < 1e-7
    for ours, theirs in zip(one.measurements, two.measurements, strict=True):
        assert ours.values == pytest.approx(theirs.values, abs=1e-5)


def test_two_processes_equal_one(still: dict[str, Any], tmp_path: Path) -> None:
    """Measured after six clipped steps, DDP and FSDP: weights differ by 1.5e-8 at most, losses by 1e-6."""
    one = train(spec_of(still, 8), tmp_path / "one", cpus=1)
    told: list[Measurement] = []
    spec = spec_of(still, 4, per_forward=2)
    two = train(spec, tmp_path / "two", cpus=2, cpu_processes=2, on_epoch=told.append)
    check_equal(one, two)
    assert tuple(told) == two.measurements
    assert two.classes == {2: "digit"}
    lines = [json.loads(line) for line in (tmp_path / "two/status.json").read_text().splitlines()]
    assert [line["message"] for line in lines].count("Eval metrics generated.") == 1  # rank 1 writes nothing
    assert lines[-1]["status"] == "SUCCESS"
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_sharded_processes_equal_one_and_go_on(still: dict[str, Any], tmp_path: Path) -> None:
    one = train(spec_of(still, 8, num_epochs=2), tmp_path / "one", cpus=1)

    def stop(measurement: Measurement) -> None:
        raise StoppedError

    spec = spec_of(still, 4, num_epochs=2, distributed_strategy="fsdp")
    with pytest.raises(StoppedError):
        train(spec, tmp_path / "two", cpus=2, cpu_processes=2, on_epoch=stop)
    latest = tmp_path / "two" / LATEST
    assert read_checkpoint(latest).epoch == 1
    check_equal(one, train(spec, tmp_path / "two", cpus=2, cpu_processes=2, resume=latest))
    load_model(tmp_path / "two" / BEST)  # whole tensors under the usual names: no rank is needed to read them


@pytest.mark.slow
def test_an_error_in_any_rank_keeps_its_name(still: dict[str, Any], tmp_path: Path) -> None:
    still["dataset"]["augmentation"]["input_mean"] = [1e39, 0.5, 0.5]  # infinite as float32
    with pytest.raises(NonFiniteLoss, match=r"image ids \d+"):
        train(spec_of(still, 4), tmp_path, cpus=2, cpu_processes=2)
    last = json.loads((tmp_path / "status.json").read_text().splitlines()[-1])
    assert (last["status"], last["error_code"]) == ("FAILURE", "NonFiniteLoss")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_one_process_trains(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert place(TrainSpec(num_gpus=4)).world == 1
    assert "one process on the CPU in place of 4 GPUs" in caplog.text
    with pytest.raises(SpecError, match=r"fp16 needs a GPU.*choose bf16 or fp32"):
        place(TrainSpec(precision="fp16"))


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place(TrainSpec(num_gpus=2)).gpu_ids == (0, 1)
    assert place(TrainSpec(gpu_ids=(1,))).gpu_ids == (1,)
    with pytest.raises(SpecError, match=r"num_gpus` must be at most.*3 of 2"):
        place(TrainSpec(num_gpus=3))
    with pytest.raises(SpecError, match=r"gpu_ids` must be below 2.*\[5\]"):
        place(TrainSpec(gpu_ids=(5,)))


@pytest.mark.parametrize(("world", "nodes", "gpus"), [("2", 2, 1), ("4", 2, 2), ("1", 1, 1), (None, 3, 1)])
def test_nodes_by_the_spec(world: str | None, nodes: int, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert place(TrainSpec(num_nodes=nodes, num_gpus=gpus), cpu_processes=1).nodes == nodes


def test_nodes_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SpecError, match="WORLD_SIZE must be"):
        place(TrainSpec())
    monkeypatch.setenv("NODE_RANK", "0")
    assert place(TrainSpec()).nodes == 3


@pytest.mark.slow
def test_two_nodes_equal_one(still: dict[str, Any], tmp_path: Path) -> None:
    """Two commands, as on two machines, that meet at MASTER_ADDR."""
    one = train(spec_of(still, 8), tmp_path / "one", cpus=1)
    nested = {**spec_of(still, 4, num_nodes=2).to_dict(), "results_dir": str(tmp_path)}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(nested))
    command = [sys.executable, "-c", "from hpo.cli import direct; raise SystemExit(direct())", "train"]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [
        subprocess.Popen([*command, "-e", tmp_path / "spec.yaml"], env={**common, "NODE_RANK": str(rank)}, cwd=ROOT)
        for rank in range(2)
    ]
    assert [node.wait(200) for node in nodes] == [0, 0]
    assert difference(one.last, tmp_path / "train" / LATEST) < 1e-7
    messages = [json.loads(line)["message"] for line in (tmp_path / "train/status.json").read_text().splitlines()]
    assert messages.count("Starting Deformable DETR train.") == 1


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"two_stage": True},
        {"with_box_refine": False},
        {"aux_loss": False},
        {"with_box_refine": False, "aux_loss": False},
        {"train_backbone": False},
        {"num_feature_levels": 4, "return_interm_indices": [1, 2, 3, 4]},
        {"two_stage": True, "aux_loss": False},
        {"dec_layers": 1},
    ],
    ids=str,
)
def test_every_parameter_that_trains_gets_a_gradient(changed: dict[str, Any], digits_spec: dict[str, Any]) -> None:
    """DDP waits for each of them, and is told of none that it need not wait for."""
    spec = ExperimentSpec.from_dict({**digits_spec, "model": {**digits_spec["model"], **changed}})
    side = 192 if spec.model.two_stage else 64
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(spec.model, 3, pretrained=False).train()
        target = Target(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.2, 0.3]]), 1, (side, side))
        Criterion(spec.model, 3)(model(torch.rand(1, 3, side, side)), (target,)).total.backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_go_on_from_mid_epoch(strategy: str, still: dict[str, Any], tmp_path: Path) -> None:
    still["model"]["dropout_ratio"] = 0.2  # drawn anew for each step and rank, so it repeats
    spec = spec_of(
        still, 4, distributed_strategy=strategy, checkpoint_interval_unit="step", checkpoint_interval=2,
        keep_checkpoints=-1, optim={"optimizer": "AdamW", "lr": 1e-3},
    )  # fmt: skip
    whole = train(spec, tmp_path / "whole", cpus=2, cpu_processes=2)
    middle = tmp_path / "whole" / "model_epoch_000_step_00002.pth"
    rest = train(spec, tmp_path / "rest", cpus=2, cpu_processes=2, resume=middle)
    assert difference(whole.last, rest.last) == 0
    assert rest.measurements[0].values == pytest.approx(whole.measurements[0].values, abs=1e-6)


ENDLESS = """
import sys
from pathlib import Path
import yaml
from model.spec import ExperimentSpec
from model.train import train
folder = Path(sys.argv[1])
if __name__ == "__main__":
    train(ExperimentSpec.from_dict(yaml.safe_load((folder / "spec.yaml").read_text())), folder / "out", cpu_processes=2)
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_process_that_started_it(
    number: signal.Signals, still: dict[str, Any], tmp_path: Path
) -> None:
    spec = spec_of(still, 4, num_epochs=1000)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.to_dict()))
    (tmp_path / "endless.py").write_text(ENDLESS)
    ours = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(tmp_path / "endless.py"), str(tmp_path)], env=ours)
    wait_for(lambda: (tmp_path / "out" / LATEST).exists())
    assert len(ranks_of(tmp_path)) >= 2
    process.send_signal(number)
    process.wait(60)
    wait_for(lambda: not ranks_of(tmp_path))
    assert read_checkpoint(tmp_path / "out" / LATEST).epoch >= 1


def test_ranks_are_told_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A killed process would leave it in a folder of temporary files."""
    told = []

    def start(folder: Path, *_: Any) -> None:
        told.append((folder / rank.JOB).read_text())
        raise StoppedError

    monkeypatch.setattr(rank, "_start", start)
    spec = ExperimentSpec(encryption_key="hush-4711")
    job = Job(spec=spec, out=tmp_path, cpus=1, resume=None, place=place(spec.train, cpu_processes=2))
    with pytest.raises(StoppedError):
        rank.fit_in_ranks(job, StatusLog(tmp_path), None)
    assert "num_epochs" in told[0]
    assert "hush-4711" not in told[0]


def ranks_of(folder: Path) -> list[str]:
    """Running ranks, by the folder in which their job lies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if "model.rank" in line and str(folder) in line]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_ranks_that_torchrun_started_are_taken_as_they_are(still: dict[str, Any], tmp_path: Path) -> None:
    one = train(spec_of(still, 8), tmp_path / "one", cpus=1)
    nested = {**spec_of(still, 4).to_dict(), "results_dir": str(tmp_path)}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(nested))
    (tmp_path / "main.py").write_text("from hpo.cli import direct\nraise SystemExit(direct())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "main.py"), "train", "-e", str(tmp_path / "spec.yaml")]
    subprocess.run([*command, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=200)
    assert difference(one.last, tmp_path / "train" / LATEST) < 1e-7
    messages = [json.loads(line)["message"] for line in (tmp_path / "train/status.json").read_text().splitlines()]
    assert messages.count("Starting Deformable DETR train.") == 1
