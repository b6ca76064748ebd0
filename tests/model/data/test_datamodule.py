import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.batch import ImageBatch
from model.data.datamodule import CocoDataModule, OrderedSampler, ShuffledSampler
from model.errors import DataError
from model.spec import ExperimentSpec, Source

MakeCoco = Callable[..., Source]

AUG = {
    "scales": [24, 32],
    "train_random_resize": [20, 28],
    "train_random_crop_min": 32,
    "train_random_crop_max": 40,
    "random_resize_max_size": 48,
    "test_random_resize": 32,
    "fixed_padding": False,
}
BOXES = ((1, 2, 1, 2, 10, 8), (2, 5, 12, 3, 10, 15), (4, 2, 0, 0, 30, 20), (4, 5, 3, 3, 5, 5))


@pytest.fixture
def spec(make_coco: MakeCoco) -> ExperimentSpec:
    def plain(source: Source) -> dict[str, str | None]:
        return {"image_dir": source.image_dir, "json_file": source.json_file}

    train = plain(make_coco("train", ids=tuple(range(1, 12)), boxes=BOXES))
    val = plain(make_coco("val", ids=(1, 2, 4, 5, 6), boxes=BOXES))
    return build({"train_data_sources": [train], "val_data_sources": [val], "test_data_sources": val})


def build(dataset: dict[str, Any], **sections: dict[str, Any]) -> ExperimentSpec:
    base = {"num_classes": 6, "batch_size": 2, "workers": 2, "augmentation": AUG}
    return ExperimentSpec.from_dict({"dataset": {**base, **dataset}, **sections}, network=False)


def change(spec: ExperimentSpec, dataset: dict[str, Any], **sections: dict[str, Any]) -> ExperimentSpec:
    given = spec.to_dict()
    for name, section in {"dataset": dataset, **sections}.items():
        given[name] = {**given[name], **section}
    return ExperimentSpec.from_dict(given, network=False)


def epochs(module: CocoDataModule, *numbers: int) -> list[ImageBatch]:
    loader = module.train_dataloader()
    batches = []
    for number in numbers:
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        batches += list(loader)
    return batches


def same(a: Any, b: Any) -> bool:
    """Equality to the last bit of anything made of tensors."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_what_a_batch_holds(spec: ExperimentSpec) -> None:
    batches = epochs(CocoDataModule(spec, cpus=1), 0)
    assert len(batches) == 5  # 11 images, 2 a batch, the last dropped
    for batch in batches:
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape[:2] == (2, 3)
        assert batch.sizes.dtype == torch.int64
        assert batch.sizes.amax(0).tolist() == list(batch.pixels.shape[-2:])
        for pixels, (height, width), target in zip(batch.pixels, batch.sizes.tolist(), batch.targets, strict=True):
            assert not pixels[:, height:].any()
            assert not pixels[:, :, width:].any()
            assert target.labels.dtype == torch.int64
            assert target.boxes.dtype == torch.float32
            assert target.boxes.shape == (len(target.labels), 4)
            assert target.orig_size == (20, 30)
            low, high = target.boxes[:, :2] - target.boxes[:, 2:] / 2, target.boxes[:, :2] + target.boxes[:, 2:] / 2
            assert (low > -1e-6).all()
            assert (high < 1 + 1e-6).all()


def test_nothing_depends_on_workers_or_on_what_was_drawn_before(spec: ExperimentSpec) -> None:
    plain = epochs(CocoDataModule(spec, cpus=1), 0, 1, 2)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert CocoDataModule(spec, cpus=3).workers == 2
    assert same(plain, epochs(CocoDataModule(spec, cpus=3), 0, 1, 2))
    assert same(plain[-5:], epochs(CocoDataModule(spec, cpus=1), 2)), "resumed at epoch 2"
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"
    assert not same(plain[:5], plain[5:10])
    assert not same(plain, epochs(CocoDataModule(change(spec, {}, train={"seed": 5}), cpus=1), 0, 1, 2))


def test_smaller_forwards_see_the_same_images(spec: ExperimentSpec) -> None:
    whole = epochs(CocoDataModule(change(spec, {"batch_size": 4}), cpus=1), 0)
    parts = epochs(CocoDataModule(change(spec, {"batch_size": 4}), cpus=1, per_forward=1), 0)
    assert [target for batch in whole for target in map(repr, batch.targets)] == [
        target for batch in parts for target in map(repr, batch.targets)
    ]
    with pytest.raises(ValueError, match="must divide"):
        CocoDataModule(spec, cpus=1, per_forward=3)


@given(count=st.integers(1, 60), batch=st.integers(1, 5), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_processes_share_the_batches_of_one(count: int, batch: int, world: int, epoch: int) -> None:
    def keys(batch: int, rank: int, world: int) -> list[int]:
        sampler = ShuffledSampler(count, batch, 7, rank=rank, world=world)
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler)
        assert {key.epoch for key in found} <= {epoch}
        return [key.position for key in found]

    alone = keys(batch * world, 0, 1)
    shares = [keys(batch, rank, world) for rank in range(world)]
    assert len(alone) == count // (batch * world) * batch * world
    for start in range(0, len(alone), batch * world):
        step = slice(start // world, start // world + batch)
        together = [position for share in shares for position in share[step]]
        assert sorted(together) == sorted(alone[start : start + batch * world])
    ordered = [key.position for rank in range(world) for key in OrderedSampler(count, rank=rank, world=world)]
    assert sorted(ordered) == list(range(count))


def test_crowd_is_no_target_but_is_in_the_index(make_coco: MakeCoco) -> None:
    source = make_coco(iscrowd=1)
    sources = {"image_dir": source.image_dir, "json_file": source.json_file}
    module = CocoDataModule(build({"train_data_sources": [sources]}), cpus=1)
    assert module.train_index.annotations.crowd.all()
    assert all(len(target.labels) == 0 for batch in epochs(module, 0) for target in batch.targets)


def test_validation_and_test_hold_every_image_in_order(spec: ExperimentSpec) -> None:
    module = CocoDataModule(spec, cpus=1)
    assert module.has_validation
    assert module.has_test
    assert module.classes == {2: "cat", 5: "dog"}
    batches = list(module.val_dataloader())
    assert [target.image_id for batch in batches for target in batch.targets] == [1, 2, 4, 5, 6]
    assert batches[0].pixels.shape[-2:] == (32, 48)
    torch.testing.assert_close(batches[0].targets[0].boxes, torch.tensor([[6 / 30, 6 / 20, 10 / 30, 8 / 20]]))
    fixed = change(spec, {}, evaluate={"input_width": 30, "input_height": 50, "batch_size": 4})
    shapes = [batch.pixels.shape for batch in CocoDataModule(fixed, cpus=1).test_dataloader()]
    assert shapes == [(4, 3, 50, 30), (1, 3, 50, 30)]


def test_fixed_padding_reaches_the_batch(spec: ExperimentSpec) -> None:
    padded = change(spec, {"augmentation": {**AUG, "fixed_padding": True, "pad_size_divisor": 20}})
    sizes = {tuple(batch.pixels.shape[-2:]) for batch in epochs(CocoDataModule(padded, cpus=1), 0, 1)}
    assert sizes <= {(40, 60), (60, 40), (60, 60)}


def test_without_validation(spec: ExperimentSpec) -> None:
    module = CocoDataModule(change(spec, {"val_data_sources": []}), cpus=1)
    assert not module.has_validation
    assert module.val_dataloader() == []
    with pytest.raises(DataError, match=r"`dataset\.val_data_sources` names no data"):
        _ = module.val_index


def test_too_few_images(spec: ExperimentSpec) -> None:
    module = CocoDataModule(change(spec, {"batch_size": 12}), cpus=1)
    message = r"Dataset size \(11\) is smaller than the total batch size \(12\).*reduce batch_size or num_gpus"
    with pytest.raises(DataError, match=message):
        module.setup("fit")


class Recorder(pl.LightningModule):
    """One weight, and the image ids of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, str]] = []

    def training_step(self, batch: ImageBatch, number: int) -> Tensor:
        self.seen.append((self.current_epoch, repr((batch.targets, batch.pixels.long().sum()))))
        return self.weight * 1.0

    def validation_step(self, batch: ImageBatch, number: int) -> None:
        assert math.isfinite(float(batch.pixels.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(spec: ExperimentSpec, folder: Path, max_epochs: int, resume: Path | None = None) -> list[tuple[int, str]]:
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, datamodule=CocoDataModule(spec, cpus=1), ckpt_path=resume)
    return recorder.seen


def test_a_resumed_fit_sees_what_it_would_have_seen(spec: ExperimentSpec, tmp_path: Path) -> None:
    whole = fit(spec, tmp_path / "whole", 3)
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5 + [2] * 5
    assert fit(spec, tmp_path / "part", 1) == whole[:5]
    (last,) = (tmp_path / "part").rglob("*.ckpt")
    assert fit(spec, tmp_path / "part", 3, resume=last) == whole[5:]


def test_fit_without_validation(spec: ExperimentSpec, tmp_path: Path) -> None:
    assert len(fit(change(spec, {"val_data_sources": []}), tmp_path, 1)) == 5
