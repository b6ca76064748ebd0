"""Checkpoints describe themselves; what contradicts them is an error that names both values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adopt import ARCHITECTURE, adopt, check_resume
from model.checkpoint import FORMAT_VERSION, KEY, load_model, read_checkpoint
from model.errors import CheckpointError
from model.spec import ExperimentSpec
from model.tensorfile import read_raw


@pytest.fixture
def altered(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The tiny checkpoint after `change` has worked on its content; its description is parsed meanwhile."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        raw = read_raw(tiny_checkpoint)
        raw[KEY] = json.loads(raw[KEY])
        change(raw)
        if isinstance(raw.get(KEY), dict):
            raw[KEY] = json.dumps(raw[KEY])
        torch.save(raw, tmp_path / "altered.pth")
        return tmp_path / "altered.pth"

    return make


def test_a_later_format_is_refused(altered: Any) -> None:
    path = altered(lambda raw: raw[KEY].update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match=rf"up to format {FORMAT_VERSION}, but .* {FORMAT_VERSION + 1}; update"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.pop(KEY), "no `ddetr` entry"),
        (lambda raw: raw.update({KEY: "{"}), "no description"),
        (lambda raw: raw[KEY].pop("format_version"), "no description"),
        (lambda raw: raw[KEY].pop("classes"), "it lacks classes"),
        (lambda raw: raw.pop("state_dict"), "it lacks its weights"),
        (lambda raw: raw[KEY]["spec"]["model"].update(nheads=5), "breaks a rule of this version"),
        (lambda raw: raw[KEY]["spec"]["model"].update(enc_layers=2), "must be those of the spec beside them"),
        (lambda raw: raw[KEY]["spec"]["dataset"].update(num_classes=9), "of another shape: class_embed"),
        (lambda raw: raw["state_dict"].update({"model.extra": torch.ones(1)}), "unexpected: extra"),
    ],
)
def test_altered_files_are_refused(altered: Any, change: Callable[[dict[str, Any]], None], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_model(altered(change))


OTHER = {
    "backbone": "resnet_50", "num_queries": 300, "num_feature_levels": 4, "return_interm_indices": [0, 1, 2],
    "with_box_refine": False, "nheads": 8, "hidden_dim": 64, "enc_layers": 3, "dec_layers": 6, "dim_feedforward": 96,
    "dec_n_points": 2, "enc_n_points": 2, "dilation": True, "two_stage": True,
}  # fmt: skip


@pytest.mark.parametrize("key", ARCHITECTURE)
def test_a_contradicting_architecture_names_both_values(tiny_checkpoint: Path, key: str) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    own = checkpoint.spec.to_dict()["model"][key]
    with pytest.raises(CheckpointError) as error:
        adopt(checkpoint, {"model": {key: OTHER[key]}})
    for part in (f"`model.{key}`", f"says {OTHER[key]}", f"says {own}", str(tiny_checkpoint)):
        assert part in str(error.value)
    assert adopt(checkpoint, {"model": {key: own}}) == checkpoint.spec


def test_another_spelling_is_no_contradiction(tiny_checkpoint: Path, other_checkpoint: Callable[..., Path]) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    assert adopt(checkpoint, {"model": {"enc_layers": "1", "hidden_dim": 32.0}}) == checkpoint.spec


def test_the_users_other_keys_stand_over_the_files(tiny_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    spec = adopt(checkpoint, {"model": {"num_select": 7}, "dataset": {"batch_size": 2, "workers": None}})
    assert (spec.model.num_select, spec.dataset.batch_size, spec.dataset.workers) == (7, 2, 8)
    assert spec.model.backbone == "resnet_tiny"
    with pytest.raises(CheckpointError, match=r"`dataset.num_classes` .* says 91 .* says 4"):
        adopt(checkpoint, {"dataset": {"num_classes": 91}})


def test_a_run_goes_on_only_from_its_own_kind_of_file(
    altered: Any, tiny_spec: ExperimentSpec, tmp_path: Path, other_checkpoint: Callable[..., Path]
) -> None:
    whole = altered(lambda raw: raw.update(optimizer_states=[{}]))
    check_resume(whole, tiny_spec)
    check_resume(whole.rename(tmp_path / "model.tlt"), tiny_spec)
    with pytest.raises(CheckpointError, match=r"must end in \.pth or \.tlt, but is .*\.ckpt"):
        check_resume(tmp_path / "model.ckpt", tiny_spec)
    with pytest.raises(CheckpointError, match=r"holds weights only; resume from dd_model_latest\.pth"):
        check_resume(other_checkpoint(), tiny_spec)
    deeper = altered(lambda raw: (raw.update(optimizer_states=[{}]), raw[KEY]["spec"]["model"].update(enc_layers=5)))
    with pytest.raises(CheckpointError, match=r"`model.enc_layers` must not change .* says 1 and .* says 5"):
        check_resume(deeper, tiny_spec)
