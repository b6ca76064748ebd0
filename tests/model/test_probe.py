"""What a training costs: real steps in a process of their own, which leaves nothing behind."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import DataError, OutOfMemory
from model.memory import Batch
from model.probe import Cost, ProbeError, measure
from model.probe_process import Bench, _part, probe
from model.spec import ExperimentSpec


@pytest.fixture
def spec(digits_spec: dict[str, Any]) -> ExperimentSpec:
    return ExperimentSpec.from_dict(digits_spec)


def test_a_real_training_is_measured_and_nothing_stays(
    spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import torch

    from model.data.datamodule import CocoDataModule
    from model.network.detr import build

    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("DDETR_CACHE", str(cache))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.chdir(temporary)
    (temporary / "model.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.setattr("tempfile.tempdir", None)
    data = CocoDataModule(spec, cpus=1)
    data.check_training()  # unpacks the archives, as a launch does before
    before = sorted(cache.rglob("*"))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    cost = measure(spec, cpus=1)
    assert (cost.steps, cost.val_batches) == (3, -(-len(data.val_index.images) // 8))
    assert cost.val_seconds > 0
    assert cost.step_seconds > 0
    assert cost.epoch_seconds() == pytest.approx(3 * cost.step_seconds + cost.val_batches * cost.val_seconds)
    assert (cost.per_forward, cost.device, cost.most_per_forward) == (8, "CPU", None)

    assert sorted(cache.rglob("*")) == before
    assert [path.name for path in temporary.iterdir()] == ["model.py"]
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert now == states
    network = build(spec.model, spec.dataset.num_classes, pretrained=False)
    assert cost.weights == sum(parameter.numel() for parameter in network.parameters())


def test_what_ends_a_training_ends_the_probe_by_name(spec: ExperimentSpec) -> None:
    with pytest.raises(DataError, match="reduce batch_size or num_gpus"):
        measure(replace(spec, dataset=replace(spec.dataset, batch_size=25)), cpus=1)
    with pytest.raises(ProbeError, match="more than 0 seconds"):
        measure(spec, cpus=1, patience=0.01)


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An allocator that refuses more than so many images at once."""
    real = Bench._forward

    def allow(most: int) -> None:
        def forward(bench: Bench, batch: Any) -> Any:
            if len(batch.targets) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return real(bench, batch)

        monkeypatch.setattr(Bench, "_forward", forward)

    return allow


def test_out_of_memory_halves_the_images_at_once(
    spec: ExperimentSpec, tmp_path: Path, short_of_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDETR_CACHE", str(tmp_path / "cache"))
    short_of_memory(3)
    without = replace(spec, dataset=replace(spec.dataset, val_data_sources=()))
    cost = probe(without, cpus=1, gpu_share=1.0, most=None, scratch=str(tmp_path / "scratch"))
    assert (cost.per_forward, cost.val_seconds, cost.val_batches) == (2, 0.0, 0)
    assert not cost.rough
    monkeypatch.setattr("model.probe_process.LONG_S", 0.0)
    rough = probe(without, cpus=1, gpu_share=1.0, most=None, scratch=str(tmp_path / "scratch"))
    assert rough.rough
    assert (rough.per_forward, rough.steps) == (8, 3)  # a batch was not tried
    short_of_memory(0)
    with pytest.raises(OutOfMemory, match="one image at once does not fit"):
        probe(without, cpus=1, gpu_share=1.0, most=None, scratch=str(tmp_path / "scratch"))


def test_the_most_images_at_once_is_a_power_of_two(spec: ExperimentSpec, own_cache: None, short_of_memory: Any) -> None:
    import torch

    from model.data.datamodule import CocoDataModule

    data = CocoDataModule(spec, cpus=1)
    batches = [next(iter(data.train_dataloader()))]
    bench = Bench(spec, torch.device("cpu"))
    short_of_memory(13)
    assert bench.most(batches, 64) == 8
    assert bench.most(batches, 4) == 4
    short_of_memory(0)
    assert bench.most(batches, 64) is None
    assert bench.batch == Batch(1, 1)


def test_a_part_of_an_index_keeps_images_and_boxes_together(spec: ExperimentSpec, own_cache: None) -> None:
    from model.data.coco import read_coco

    index = read_coco(spec.dataset.train_data_sources)
    part = _part(index, 5)
    assert len(part.images) == 5
    assert (part.images[0], part.images[4]) == (index.images[0], index.images[len(index.images) - 1])
    places = {image.id: place for place, image in enumerate(index.images)}
    for place, image in enumerate(part.images):
        expected = index.annotations_of(places[image.id])
        assert part.annotations_of(place).boxes.tolist() == expected.boxes.tolist()
    assert _part(index, 1000).images[:] == index.images[:]


def test_epochs_without_validation_between() -> None:
    cost = Cost(step_seconds=0.5, val_seconds=2.0, steps=10, val_batches=3, weights=1, per_forward=1)
    assert cost.epoch_seconds() == 11.0
    assert cost.epoch_seconds(validation_interval=2) == 8.0
