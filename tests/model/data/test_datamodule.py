import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from model.batch import ImageBatch
from model.data.cache import DecodedImages
from model.data.datamodule import CocoDataModule
from model.errors import DataError, WorkerDied
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
    train = as_dict(make_coco("train", ids=tuple(range(1, 12)), boxes=BOXES))
    val = as_dict(make_coco("val", ids=(1, 2, 4, 5, 6), boxes=BOXES))
    return build({"train_data_sources": [train], "val_data_sources": [val], "test_data_sources": val})


def build(dataset: dict[str, Any], **sections: dict[str, Any]) -> ExperimentSpec:
    base = {"num_classes": 6, "batch_size": 2, "workers": 2, "augmentation": AUG}
    return ExperimentSpec.from_dict({"dataset": {**base, **dataset}, **sections}, network=False)


def as_dict(source: Source) -> dict[str, str | None]:
    return {"image_dir": source.image_dir, "json_file": source.json_file}


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


def test_crowd_is_no_target_but_is_in_the_index(make_coco: MakeCoco) -> None:
    crowd, plain = make_coco("crowd", iscrowd=1), make_coco("plain")
    module = CocoDataModule(build({"train_data_sources": [as_dict(crowd), as_dict(plain)], "batch_size": 4}), cpus=1)
    assert module.train_index.annotations.crowd.tolist() == [True, False]
    assert sum(len(target.labels) for batch in epochs(module, 0, 1, 2) for target in batch.targets) <= 3
    with pytest.raises(DataError, match=r"must hold boxes to learn from"):
        CocoDataModule(build({"train_data_sources": [as_dict(crowd)]}), cpus=1).setup("fit")


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


def test_batches_hold_one_orientation(spec: ExperimentSpec, make_coco: MakeCoco) -> None:
    """Crops turn a landscape image into a portrait one, and the batch knows before the pixels do."""
    sources = [
        as_dict(make_coco("wide", ids=tuple(range(1, 25)), size=(30, 40))),
        as_dict(make_coco("tall", ids=tuple(range(1, 13)), size=(40, 30))),
    ]
    aug = {**AUG, "fixed_padding": True, "train_random_crop_min": 33}
    module = CocoDataModule(change(spec, {"train_data_sources": sources, "augmentation": aug, "batch_size": 4}), cpus=1)
    for epoch in range(3):
        batches = epochs(module, epoch)
        assert len(batches) == 9
        mixed = [batch for batch in batches if len({bool(high > wide) for high, wide in batch.sizes.tolist()}) == 2]
        assert len(mixed) <= 1
        assert {tuple(batch.pixels.shape[-2:]) for batch in batches if batch not in mixed} == {(32, 48), (48, 32)}
        seen = [target.image_id for batch in batches for target in batch.targets]
        assert len(set(seen)) == 36
    free = CocoDataModule(change(module.spec, {"augmentation": {**aug, "fixed_padding": False}}), cpus=1)
    kinds = [len({bool(high > wide) for high, wide in batch.sizes.tolist()}) for batch in epochs(free, 0, 1, 2)]
    assert kinds.count(2) > 9, "only a fixed padding has a use for it"


@pytest.mark.parametrize("name", ["uniform_sampler", "non_uniform_sampler"])
def test_the_sampler_key_is_honoured(spec: ExperimentSpec, make_coco: MakeCoco, name: str) -> None:
    sources = [as_dict(make_coco("small", ids=(1,), boxes=())), spec.to_dict()["dataset"]["train_data_sources"][0]]
    module = CocoDataModule(change(spec, {"train_data_sources": sources, "train_sampler": name}), cpus=1)
    small = module.train_index.images[0].id
    seen = [target.image_id for batch in epochs(module, *range(10)) for target in batch.targets]
    # 12 images an epoch; uniform: half of 120 draws, sd 5.5, so 90 and 30 are over 5 sd (3e-7)
    assert 30 < seen.count(small) < 90 if name == "uniform_sampler" else seen.count(small) == 10
    assert same(epochs(module, 3), epochs(CocoDataModule(module.spec, cpus=3), 3)), "workers change nothing"


def test_both_dataset_types_give_the_same(spec: ExperimentSpec) -> None:
    other = change(spec, {"dataset_type": "default"})
    assert spec.dataset.dataset_type == "serialized"
    assert same(epochs(CocoDataModule(spec, cpus=1), 1), epochs(CocoDataModule(other, cpus=1), 1))


def test_shards_serve_training_and_validation(spec: ExperimentSpec, make_coco: MakeCoco, tmp_path: Path) -> None:
    first, second = (
        make_coco("x", ids=(1, 2), boxes=((1, 2, 1, 2, 10, 8), (2, 5, 12, 3, 10, 15))),
        make_coco("y", ids=(2, 3), boxes=()),
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, source in enumerate((first, second)):
        (shards / f"{number}.json").write_bytes(Path(str(source.json_file)).read_bytes())
    for number in (2, 3):  # one folder of images serves all shards
        (Path(str(first.image_dir)) / f"{number}.png").write_bytes(
            (Path(str(second.image_dir)) / f"{number}.png").read_bytes()
        )
    pattern = {"image_dir": first.image_dir, "json_file": str(shards / "*")}
    module = CocoDataModule(change(spec, {"train_data_sources": [pattern], "val_data_sources": [pattern]}), cpus=1)
    assert module.train_index.shards == module.val_index.shards == (2, 2)
    assert len(epochs(module, 0)) == 2
    assert [len(batch.targets) for batch in module.val_dataloader()] == [2, 2]


def test_the_metric_of_one_class_of_many_is_told(spec: ExperimentSpec, make_coco: MakeCoco) -> None:
    ant = (3, 1, 1.0, 2.0, 10.0, 8.0)
    val = as_dict(make_coco("one", boxes=(ant,), categories=((1, "ant"), (2, "cat"), (5, "dog"))))
    module = CocoDataModule(change(spec, {"val_data_sources": [val], "eval_class_ids": [1]}), cpus=1)
    module.setup("fit")
    module.setup("fit")
    assert len(module.notices) == 1
    assert "is [1], so the metric knows `ant` alone, of 3 classes" in module.notices[0]
    absent = CocoDataModule(change(spec, {"eval_class_ids": [1]}), cpus=1)
    with pytest.raises(DataError, match=r"is \[1\] and they have \[2, 5\]; leave it out"):
        absent.setup("fit")
    with pytest.raises(DataError, match=r"is \[1\]"):
        _ = absent.test_index


def test_training_and_validation_must_agree_on_names(spec: ExperimentSpec, make_coco: MakeCoco) -> None:
    val = as_dict(make_coco("other", boxes=(), categories=((2, "cow"), (5, "dog"))))
    with pytest.raises(DataError, match=r"val_data_sources`: category 2 is `cow`"):
        CocoDataModule(change(spec, {"val_data_sources": [val]}), cpus=1).setup("fit")


def test_unreadable_images_are_told_and_too_many_stop(spec: ExperimentSpec, make_coco: MakeCoco) -> None:
    source = make_coco("holes", ids=tuple(range(1, 8)))
    (Path(str(source.image_dir)) / "2.png").write_bytes(b"x")
    module = CocoDataModule(
        change(spec, {"train_data_sources": [as_dict(source)], "val_data_sources": [as_dict(source)]}), cpus=1
    )
    batches = epochs(module, 0)
    assert [len(batch.targets) for batch in batches] == [2, 2, 2]
    assert [len(batch.targets) for batch in module.val_dataloader()] == [2, 2, 2, 1]
    assert len(module.notices) == 1
    assert module.notices[0].startswith("1 of 7 images cannot be decoded and are left out: `")
    (Path(str(source.image_dir)) / "5.png").write_bytes(b"x")
    with pytest.raises(DataError, match="2 of 7 images cannot be decoded"):
        epochs(module, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_errors_of_workers_are_told_in_a_sentence(
    spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("model.data.datamodule.open_images", DecodedImages)
    module = CocoDataModule(spec, cpus=workers)
    for record in module.train_index.images[:3]:
        record.path.write_bytes(b"x")
    # Workers count together: which of them crosses the limit first, at two or at three, is theirs.
    count = "2" if workers == 1 else "[23]"
    with pytest.raises(DataError, match=rf"^{count} of 11 images cannot be decoded[^\n]*$"):
        epochs(module, 0)


def test_the_end_of_a_worker_is_told(spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.dataset.CocoDataset.__getitem__", lambda *_: os._exit(9))
    with pytest.raises(WorkerDied, match=r"a data worker died .*lower `dataset.workers` \(now 1\)"):
        epochs(CocoDataModule(spec, cpus=2), 0)


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
