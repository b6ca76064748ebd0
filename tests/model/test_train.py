"""Training as a whole: what it writes, that it repeats, that a resumed run equals an uninterrupted one bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.checkpoint import load_model, read_checkpoint, read_raw
from model.errors import CheckpointError, DataError, NonFiniteLoss, SpecError
from model.metrics import Measurement
from model.spec import ExperimentSpec
from model.train import BEST, LATEST, train


def spec_of(given: dict[str, Any], **train_keys: Any) -> ExperimentSpec:
    return ExperimentSpec.from_dict({**given, "train": {**given["train"], **train_keys}})


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


def stop_after(epoch: int) -> Any:
    def on_epoch(measurement: Measurement) -> None:
        if measurement.epoch == epoch:
            raise StoppedError

    return on_epoch


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_raw(path)["state_dict"]


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(digits_spec)
    whole = train(spec, tmp_path / "whole", cpus=1)
    with pytest.raises(StoppedError):
        train(spec, tmp_path / "parts", cpus=1, on_epoch=stop_after(2))
    latest = tmp_path / "parts" / LATEST
    assert read_checkpoint(latest).epoch == 2
    parts = train(spec, tmp_path / "parts", cpus=1, resume=latest)
    assert_same_weights(whole.last, parts.last)
    ignoring_time = [[m.values for m in result.measurements] for result in (whole, parts)]
    assert ignoring_time[0] == ignoring_time[1]
    assert [m.epoch for m in parts.measurements] == [1, 2, 3]
    assert parts.measurements[2].seconds > parts.measurements[1].seconds
    for one in (*whole.measurements, *parts.measurements):
        assert one.images_per_second > 0
        assert 1 << 20 < one.peak_memory_bytes == (one.peak_gpu_bytes or one.peak_rss_bytes)


def test_the_same_seed_repeats_and_leaves_the_callers_generator_alone(
    digits_spec: dict[str, Any], tmp_path: Path
) -> None:
    spec = spec_of(digits_spec, num_epochs=1)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = train(spec, tmp_path / "a", cpus=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second = train(spec, tmp_path / "b", cpus=1)
    assert_same_weights(first.last, second.last)
    other = train(spec_of(digits_spec, num_epochs=1, seed=5), tmp_path / "c", cpus=1)
    name = "model.query_embed.weight"
    assert not torch.equal(weights(first.last)[name], weights(other.last)[name])


def test_the_folder_describes_itself(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "train"
    result = train(ExperimentSpec.from_dict({**digits_spec, "encryption_key": "hush"}), out, cpus=1)
    assert (out / LATEST).readlink() == Path("model_epoch_002_step_00009.pth")  # three epochs of three steps, from 0
    assert result.best == out / BEST
    assert all("hush" not in path.read_text(errors="replace") for path in out.iterdir() if path.is_file())

    lines = [json.loads(line) for line in (out / "status.json").read_text().splitlines()]
    assert lines[0]["status"] == "STARTED"
    assert lines[-1]["status"] == "SUCCESS"
    kpis = [line["kpi"] for line in lines if line["message"] == "Eval metrics generated."]
    assert [sorted(kpi) for kpi in kpis] == [["val_loss", "val_mAP", "val_mAP50"]] * 3
    assert all(isinstance(value, float) for kpi in kpis for value in kpi.values())
    epochs = [line["epoch"] for line in lines if line["message"] == "Training loop in progress"]
    assert epochs == [0, 1, 2]

    checkpoint = read_checkpoint(result.best)
    best = result.best_measurement
    assert best is not None
    assert checkpoint.epoch == best.epoch
    assert checkpoint.metrics["val_mAP50"] == best.values["val_mAP50"]
    assert checkpoint.classes == {2: "digit"}
    assert "optimizer_states" not in read_raw(result.best)
    assert yaml.safe_load((out / "experiment.yaml").read_text())["model"]["hidden_dim"] == 32

    model, _ = load_model(result.best)
    assert not model.training


def test_the_learning_rate_drops_where_the_spec_says(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    result = train(spec_of(digits_spec), tmp_path, cpus=1)
    assert [m.values["lr"] for m in result.measurements] == pytest.approx([1e-3, 1e-3, 1e-4])


def test_without_validation_data_it_trains_and_has_no_metric(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    digits_spec["dataset"]["val_data_sources"] = []
    result = train(spec_of(digits_spec, num_epochs=1), tmp_path, cpus=1)
    assert result.measurements == ()
    assert result.best_measurement is None
    assert result.best == result.last
    assert read_checkpoint(result.last).metrics == {}


def test_a_diverging_run_names_the_terms_and_the_images(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    def spoil(measurement: Measurement) -> None:
        raise AssertionError("no epoch should end")

    digits_spec["dataset"]["augmentation"]["input_mean"] = [1e39, 0.5, 0.5]  # infinite as float32
    with pytest.raises(NonFiniteLoss, match=r"loss_.*image ids \d+"):
        train(spec_of(digits_spec), tmp_path, cpus=1, on_epoch=spoil)
    last = json.loads((tmp_path / "status.json").read_text().splitlines()[-1])
    assert (last["status"], last["error_code"]) == ("FAILURE", "NonFiniteLoss")


def test_users_mistakes_stop_before_the_first_step(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    digits_spec["dataset"]["batch_size"] = 100
    with pytest.raises(DataError, match="smaller than the total batch size"):
        train(spec_of(digits_spec), tmp_path, cpus=1)
    digits_spec["dataset"]["batch_size"] = 8
    with pytest.raises(SpecError, match="`backbon` is none; its parts are backbone"):
        train(spec_of(digits_spec, freeze=["backbon"]), tmp_path, cpus=1)
    with pytest.raises(CheckpointError, match="no file"):
        train(spec_of(digits_spec, resume_training_checkpoint_path=str(tmp_path / "x.pth")), tmp_path, cpus=1)


def test_frozen_parts_do_not_move(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    result = train(spec_of(digits_spec, num_epochs=1, freeze=["transformer.encoder"]), tmp_path / "a", cpus=1)
    start = train(
        spec_of(digits_spec, num_epochs=1, freeze=["transformer.encoder"], is_dry_run=True), tmp_path / "b", cpus=1
    )
    after, early = weights(result.last), weights(start.last)
    encoder = [name for name in after if "transformer.encoder" in name]
    assert encoder
    assert all(torch.equal(after[name], early[name]) for name in encoder)
    assert not torch.equal(after["model.query_embed.weight"], early["model.query_embed.weight"])


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(digits_spec: dict[str, Any], tmp_path: Path) -> None:
    """Overfitting: 8 images, trained and validated on the same, reach mAP50 over 0.9 within 600 steps of 8."""
    source = digits_spec["dataset"]["train_data_sources"][0]
    annotations = json.loads(Path(source["json_file"]).read_text())
    annotations["images"] = annotations["images"][:8]
    kept = {image["id"] for image in annotations["images"]}
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(annotations))
    sources = [{"image_dir": source["image_dir"], "json_file": str(few)}]
    digits_spec["dataset"].update(train_data_sources=sources, val_data_sources=sources)
    digits_spec["dataset"]["augmentation"].update(horizontal_flip_prob=0.0, scales=[48], train_random_crop_min=48)
    digits_spec["dataset"]["augmentation"]["train_random_crop_max"] = 49
    digits_spec["model"].update(
        hidden_dim=64, nheads=4, dim_feedforward=128, dropout_ratio=0.0, num_feature_levels=3,
        return_interm_indices=[1, 2, 3],
    )  # fmt: skip
    optim = {"lr": 2e-3, "lr_backbone": 1e-3, "lr_steps": [500]}
    spec = spec_of(digits_spec, num_epochs=600, validation_interval=100, optim=optim, clip_grad_norm=1.0)
    best = train(spec, tmp_path / "out", cpus=1).best_measurement
    assert best is not None
    assert best.values["val_mAP50"] > 0.9
