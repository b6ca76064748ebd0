"""Going on from another training's checkpoint, and what a detector costs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_model, read_checkpoint
from model.cost import image_size, latency, measure
from model.errors import CheckpointError
from model.spec import AugmentationSpec, ExperimentSpec
from model.train import BEST, LATEST, take_over, train
from schemas import dotted


def spec_of(given: dict[str, Any], **values: Any) -> ExperimentSpec:
    for name, value in values.items():
        given = dotted.put(given, name.replace("__", "."), value)
    return ExperimentSpec.from_dict(given)


def test_takes_over_and_trains_on_with_its_own_values(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    first = train(spec_of(digits_spec, train__num_epochs=2, train__optim__lr_steps=[9]), parent, cpus=1)
    other = spec_of(
        digits_spec, train__num_epochs=3, train__optim__lr=3e-5, train__optim__weight_decay=0.07,
        train__optim__lr_steps=[9],
    )  # fmt: skip
    train(spec_of(digits_spec, train__num_epochs=1), child, cpus=1)

    past = take_over(parent, child)
    assert past == list(first.measurements)
    assert take_over(parent, child) == past, "twice is once"
    taken, theirs = read_checkpoint(child / LATEST), read_checkpoint(parent / LATEST)
    assert all(torch.equal(taken.state[name], theirs.state[name]) for name in theirs.state)
    assert [path.name for path in child.glob("model_epoch_*.pth")] == [(parent / LATEST).resolve().name]
    best = max(past, key=lambda one: one.values["val_mAP50"])
    assert read_checkpoint(child / BEST).epoch == best.epoch

    result = train(other, child, cpus=1, resume=child / LATEST)
    assert [one.epoch for one in result.measurements] == [1, 2, 3]
    raw = torch.load(child / LATEST, weights_only=True)
    groups = raw["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.07}
    assert groups[0]["peak_lr"] == groups[0]["lr"] == 3e-5
    assert json.loads(raw["ddetr"])["history"][2]["lr"] == 3e-5


def test_nothing_to_take_over(tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    with pytest.raises(CheckpointError, match="must have saved a checkpoint"):
        take_over(tmp_path / "parent", tmp_path / "child")
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent/model_epoch_000_step_00001.pth").write_bytes(b"torn")
    (tmp_path / "parent" / LATEST).symlink_to("model_epoch_000_step_00001.pth")
    with pytest.raises(CheckpointError):
        take_over(tmp_path / "parent", tmp_path / "child")


def test_costs(tiny_checkpoint: Path) -> None:
    found = measure(tiny_checkpoint, ["parameters", "size", "latency"], cpus=1)
    model, _ = load_model(tiny_checkpoint)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["size"] == tiny_checkpoint.stat().st_size / 1e6
    assert found["latency"] > 0
    assert measure(tiny_checkpoint, ["size"]) == {"size": found["size"]}


def test_latency_is_of_one_forward_and_leaves_the_threads_alone() -> None:
    class Slow(torch.nn.Linear):
        calls = 0

        def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            assert pixels.shape == (1, 3, 6, 8)
            assert mask is None
            self.calls += 1
            if self.calls > 10:
                threads.append(torch.get_num_threads())
            return pixels

    threads: list[int] = []
    before = torch.get_num_threads()
    assert latency(Slow(1, 1), (6, 8), cpus=2) < 1000
    assert set(threads) == {2}
    assert torch.get_num_threads() == before


def test_picture_of_evaluation() -> None:
    assert image_size(AugmentationSpec(test_random_resize=600)) == (600, 800)
    assert image_size(AugmentationSpec(test_random_resize=96, random_resize_max_size=96)) == (96, 96)
