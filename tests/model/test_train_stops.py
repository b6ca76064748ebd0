"""Trainings that are ended from outside, by a signal or for want of memory, and go on as if nothing had been."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.checkpoint import read_checkpoint, read_raw
from model.errors import OutOfMemory
from model.keeper import retain
from model.network.detr import DeformableDETR
from model.spec import ExperimentSpec
from model.train import BEST, LATEST, train

ROOT = Path(__file__).parents[2]


def spec_of(given: dict[str, Any], **train_keys: Any) -> ExperimentSpec:
    return ExperimentSpec.from_dict({**given, "train": {**given["train"], **train_keys}})


def same_weights(a: Path, b: Path) -> bool:
    left, right = read_raw(a)["state_dict"], read_raw(b)["state_dict"]
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 130), pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.faults)],
)
def test_a_killed_run_goes_on_bit_for_bit(
    number: signal.Signals, code: int, digits_spec: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped in mid-epoch from outside, after its first checkpoint; only the running epoch is done again."""
    spec = spec_of(digits_spec, num_epochs=30)
    nested = {**spec.to_dict(), "results_dir": str(tmp_path)}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(nested))
    command = [sys.executable, "-c", "from hpo.cli import direct; raise SystemExit(direct())", "train"]
    process = subprocess.Popen([*command, "-e", str(tmp_path / "spec.yaml")], cwd=ROOT, stdout=subprocess.DEVNULL)
    out = tmp_path / "train"
    deadline = time.monotonic() + 120
    while not (out / LATEST).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == code
    latest = read_checkpoint(out / LATEST)
    assert 1 <= latest.epoch < 30
    if number is signal.SIGTERM:
        last = lines(out)[-1]
        assert (last["status"], last["message"]) == ("FAILURE", "Interrupted")

    short = spec_of(digits_spec, num_epochs=latest.epoch + 1)
    whole = train(short, tmp_path / "whole", cpus=1)
    rest = train(short, out, cpus=1, resume=out / LATEST)
    assert same_weights(whole.last, rest.last)
    assert [m.values for m in rest.measurements] == [m.values for m in whole.measurements]


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


def test_a_checkpoint_in_mid_epoch_goes_on_bit_for_bit(
    digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three steps, a checkpoint every two, stopped in step 6: it goes on from step 4, within epoch 2."""
    optim = {"lr": 1e-3, "lr_drop": 0.5, "warmup_steps": 5}
    spec = spec_of(digits_spec, checkpoint_interval=2, checkpoint_interval_unit="step", optim=optim)
    whole = train(spec, tmp_path / "whole", cpus=1)
    computed = count_forwards(monkeypatch, stop_at=6)
    with pytest.raises(StoppedError):
        train(spec, tmp_path / "parts", cpus=1)
    latest = tmp_path / "parts" / LATEST
    assert latest.readlink() == Path("model_epoch_001_step_00004.pth")
    assert read_checkpoint(latest).epoch == 1
    computed.clear()
    monkeypatch.undo()
    computed = count_forwards(monkeypatch, stop_at=None)
    rest = train(spec, tmp_path / "parts", cpus=1, resume=latest)
    assert len(computed) == 5  # of nine steps, four were behind the checkpoint
    assert same_weights(whole.last, rest.last)
    assert rest.last.name == whole.last.name == "model_epoch_002_step_00009.pth"
    assert [m.values for m in rest.measurements] == [m.values for m in whole.measurements]


@pytest.mark.slow
def test_a_run_that_is_stopped_after_every_step_still_arrives(
    digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(digits_spec, num_epochs=2, checkpoint_interval=1, checkpoint_interval_unit="step")
    whole = train(spec, tmp_path / "whole", cpus=1)
    latest, attempts = tmp_path / "parts" / LATEST, 0
    while not (latest.exists() and read_checkpoint(latest).epoch == 2):
        attempts += 1
        with monkeypatch.context() as patch, contextlib.suppress(StoppedError):
            count_forwards(patch, stop_at=2)
            train(spec, tmp_path / "parts", cpus=1, resume=latest if latest.exists() else None)
    assert attempts == 6
    assert same_weights(whole.last, latest.resolve())


def count_forwards(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None) -> list[int]:
    """Images of each training forward so far; the one numbered `stop_at` (from 1) does not come about."""
    seen: list[int] = []
    forward = DeformableDETR.forward

    def counted(self: DeformableDETR, pixels: torch.Tensor, *args: Any) -> Any:
        if self.training:
            seen.append(len(pixels))
            if len(seen) == stop_at:
                raise StoppedError
        return forward(self, pixels, *args)

    monkeypatch.setattr(DeformableDETR, "forward", counted)
    return seen


def at_most(monkeypatch: pytest.MonkeyPatch, images: int, *, after: int = 0) -> list[int]:
    """An accelerator that refuses more than `images` at once, from the forward after `after` on."""
    seen: list[int] = []
    forward = DeformableDETR.forward

    def limited(self: DeformableDETR, pixels: torch.Tensor, *args: Any) -> Any:
        if self.training:
            seen.append(len(pixels))
            if len(seen) > after and len(pixels) > images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixels, *args)

    monkeypatch.setattr(DeformableDETR, "forward", limited)
    return seen


def test_out_of_memory_halves_what_is_in_memory_and_goes_on(
    digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs short in the second epoch (steps of 8 images, three an epoch): the first is not done again."""
    seen = at_most(monkeypatch, 2, after=4)
    told: list[int] = []
    result = train(spec_of(digits_spec, num_epochs=2), tmp_path, cpus=1, on_epoch=lambda m: told.append(m.epoch))
    assert seen == [8] * 5 + [4] + [2] * 12
    assert told == [1, 2]
    assert result.adjustments == ("images at once 8 -> 4 (out of memory)", "images at once 4 -> 2 (out of memory)")
    changes = [line["adjustment"] for line in lines(tmp_path) if "adjustment" in line]
    assert changes == [{"per_forward": [8, 4]}, {"per_forward": [4, 2]}]
    assert lines(tmp_path)[-1]["status"] == "SUCCESS"
    assert read_raw(result.last)["global_step"] == 6


def test_an_image_that_does_not_fit_is_the_end(
    digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = at_most(monkeypatch, 0)
    with pytest.raises(OutOfMemory, match="CUDA out of memory: reduce batch_size"):
        train(spec_of(digits_spec), tmp_path, cpus=1)
    assert seen == [8, 4, 2, 1]
    assert lines(tmp_path)[-1]["error_code"] == "OutOfMemory"


def test_parts_of_a_batch_teach_what_the_whole_does(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    """With normalisation that stands still and without dropout, to rounding."""
    body = tmp_path / "body.pth"
    start = train(spec_of(digits_spec, is_dry_run=True), tmp_path / "start", cpus=1)
    prefix = "model.backbone.0.body."
    state = read_raw(start.last)["state_dict"]
    torch.save({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, body)
    digits_spec["model"].update(dropout_ratio=0.0, pretrained_backbone_path=str(body))
    optim = {"lr": 1e-2, "optimizer": "SGD"}
    results = [
        train(spec_of(digits_spec, num_epochs=1, optim=optim, per_forward=n), tmp_path / str(n), cpus=1) for n in (8, 3)
    ]
    whole, split = (read_raw(result.last)["state_dict"] for result in results)
    assert max(float((whole[name].double() - split[name].double()).abs().max()) for name in whole) < 1e-6
    values = [result.measurements[0].values for result in results]
    assert values[1] == pytest.approx(values[0], abs=1e-5)


@pytest.mark.parametrize(("keep", "left"), [(1, [2]), (2, [1, 2]), (-1, [0, 1, 2])])
def test_retention(keep: int, left: list[int], digits_spec: dict[str, Any], tmp_path: Path) -> None:
    result = train(spec_of(digits_spec, keep_checkpoints=keep), tmp_path, cpus=1)
    assert sorted(int(path.name[12:15]) for path in tmp_path.glob("model_epoch_*")) == left
    assert result.best == tmp_path / BEST


def test_retention_goes_by_time_not_by_name(tmp_path: Path) -> None:
    """A second training in one folder starts again at epoch 0."""
    for second, name in enumerate(["model_epoch_009_step_00090.pth", "model_epoch_000_step_00009.pth"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    retain(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model_epoch_000_step_00009.pth"]


def test_a_seed_below_zero_is_drawn_recorded_and_kept_by_a_resumed_run(
    digits_spec: dict[str, Any], tmp_path: Path
) -> None:
    seeds = []
    for name in ("a", "b"):
        result = train(spec_of(digits_spec, num_epochs=1, seed=-1), tmp_path / name, cpus=1)
        seeds.append(read_checkpoint(result.last).spec.train.seed)
        assert yaml.safe_load((tmp_path / name / "experiment.yaml").read_text())["train"]["seed"] == seeds[-1]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]  # by chance once in 2e9
    again = train(spec_of(digits_spec, num_epochs=2, seed=-1), tmp_path / "a", cpus=1, resume=tmp_path / "a" / LATEST)
    assert read_checkpoint(again.last).spec.train.seed == seeds[0]


def test_half_precision_trains_on_a_cpu(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    half = train(spec_of(digits_spec, num_epochs=1, precision="bf16"), tmp_path / "half", cpus=1)
    full = train(spec_of(digits_spec, num_epochs=1), tmp_path / "full", cpus=1)
    losses = [result.measurements[0].values["train_loss"] for result in (half, full)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_what_a_run_says_of_itself(
    digits_spec: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="model")
    optim = {"lr": 1e-3, "lr_steps": [40]}
    train(spec_of(digits_spec, num_epochs=1, optim=optim, per_forward=4), tmp_path, cpus=1)
    said = caplog.text
    assert "parameters: 740440, of which 740440 train" in said
    assert "classes: digit (2)" in said
    assert "device: CPU, 1 process; 8 images a step on each, 4 at once" in said
    assert "lr_steps names epoch 40, beyond train.num_epochs=1" in said


def test_an_earlier_runs_link_is_not_gone_on_from(
    digits_spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(spec_of(digits_spec, num_epochs=1), tmp_path, cpus=1)
    at_most(monkeypatch, 4)
    result = train(spec_of(digits_spec, num_epochs=1, seed=7), tmp_path, cpus=1)
    assert result.adjustments
    assert read_checkpoint(result.last).spec.train.seed == 7
    assert [m.epoch for m in result.measurements] == [1]
