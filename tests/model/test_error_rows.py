"""What goes wrong for users of TAO Deformable DETR in train, evaluate and inference, and what they see here instead.

One row for each error of its catalogue: the commands as users call them, their exit code, what they print, and what
status.json says where a results folder exists. 2: a mistake of the user, one paragraph; 1: the run met something.
"""

import ctypes
import io
import json
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from hpo.cli import direct
from model.module import Detector


class Outcome(NamedTuple):
    code: int
    printed: str
    """On standard error."""
    failure: dict[str, Any] | None
    """The last line of status.json where it is a FAILURE."""
    succeeded: bool
    """Whether status.json ends with SUCCESS."""


class User:
    """Somebody with a spec file and a terminal."""

    def __init__(self, spec: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.spec, self.folder, self._capsys = spec, folder, capsys

    def runs(self, action: str, *overrides: str) -> Outcome:
        path = self.folder / "spec.yaml"
        path.write_text(yaml.safe_dump(self.spec))
        self._capsys.readouterr()
        code = direct([action, "-e", str(path), *overrides])
        status = self.folder / "results" / action / "status.json"
        last = json.loads(status.read_text().splitlines()[-1]) if status.exists() else {}
        failed = last if last.get("status") == "FAILURE" else None
        printed = self._capsys.readouterr().err
        assert "Traceback" not in printed
        return Outcome(code, printed, failed, last.get("status") == "SUCCESS")

    def fails(self, action: str, *overrides: str, code: int, words: str, error: str | None) -> None:
        """`words`: a pattern of what is printed. `error`: the class of the error in status.json; None: no folder."""
        outcome = self.runs(action, *overrides)
        assert outcome.code == code
        assert re.search(words, outcome.printed), outcome.printed
        if error is None:
            assert not (self.folder / "results" / action / "status.json").exists()
        else:
            assert outcome.failure is not None
            assert outcome.failure["error_code"] == error
            assert re.search(words, outcome.failure["message"])


@pytest.fixture
def user(digits_spec: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cache: None) -> User:
    digits_spec["train"] = {"num_epochs": 1, "optim": {"lr": 1e-3}}
    digits_spec["results_dir"] = str(tmp_path / "results")
    return User(digits_spec, tmp_path, capsys)


@pytest.fixture
def copied(user: User) -> Path:
    """The training images of `user`, as files that may be spoilt; the spec names them."""
    source = user.spec["dataset"]["train_data_sources"][0]
    folder = user.folder / "copied"
    with tarfile.open(source["image_dir"]) as archive:
        archive.extractall(folder, filter="data")
    annotations = folder / "annotations.json"
    annotations.write_text(Path(source["json_file"]).read_text())
    user.spec["dataset"]["train_data_sources"] = [{"image_dir": str(folder), "json_file": str(annotations)}]
    return folder


def pictures_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


# --- the spec: everything wrong at once, with its place, and in status.json before anything is begun ---

SPEC_ROWS = {
    "unknown key": ("model.num_querys=300", r"unknown key `model.num_querys`; did you mean `model.num_queries`"),
    "wrong type": ("dataset.batch_size=many", r"`dataset.batch_size` must be .*number.*many"),
    "checkpoint interval": ("train.checkpoint_interval=5", r"checkpoint_interval=5 and num_epochs=1.*Lower"),
    "validation interval": ("train.validation_interval=5", r"validation_interval=5 and num_epochs=1.*Lower"),
    "levels": ("model.num_feature_levels=3", r"return_interm_indices.*\[2, 3\] for num_feature_levels=3; change one"),
    "index range": ("model.return_interm_indices=[2,7]", r"rising numbers within 0\.\.4, each once, but is \[2, 7\]"),
    "index twice": ("model.return_interm_indices=[2,2]", r"rising numbers within 0\.\.4, each once, but is \[2, 2\]"),
    "backbone": ("model.backbone=resnet_999", r"`model.backbone` must be one of .*resnet_50.*resnet_999"),
    "precision": ("train.precision=fp8", r"`train.precision` must be one of .*fp32.*bf16"),
    "strategy": ("train.distributed_strategy=dp", r"`train.distributed_strategy` must be one of .*ddp.*fsdp"),
    "optimizer": ("train.optim.optimizer=Lion", r"`train.optim.optimizer` must be one of .*AdamW.*SGD"),
    "scheduler": ("train.optim.lr_scheduler=Cosine", r"`train.optim.lr_scheduler` must be one of .*MultiStep.*StepLR"),
    "sampler": ("dataset.train_sampler=best", r"`dataset.train_sampler` must be one of .*default_sampler"),
    "dataset type": ("dataset.dataset_type=lmdb", r"`dataset.dataset_type` must be one of .*serialized.*default"),
    "heads": ("model.nheads=5", r"`model.hidden_dim` must be a multiple of `model.nheads`.*hidden_dim=32 and nheads=5"),
    "crop range": (
        "dataset.augmentation.train_random_crop_max=32",
        r"train_random_crop_max` must be above `train_random_crop_min`, but they are 32 and 32",
    ),
}


@pytest.mark.parametrize("name", SPEC_ROWS)
def test_a_wrong_value_in_the_spec(user: User, name: str) -> None:
    override, words = SPEC_ROWS[name]
    user.fails("train", override, code=2, words=words, error="SpecError")


def test_all_problems_of_a_spec_come_at_once(user: User) -> None:
    overrides = [SPEC_ROWS[name][0] for name in ("unknown key", "wrong type", "precision", "sampler")]
    printed = user.runs("train", *overrides).printed
    assert all(key in printed for key in ("num_querys", "batch_size", "precision", "train_sampler"))


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_a_mandatory_value_left_unset(user: User, action: str) -> None:
    user.spec[action] = {"checkpoint": "???"}
    user.fails(action, code=2, words=rf"`{action}.checkpoint` must name a checkpoint, but is unset", error="SpecError")


@pytest.mark.parametrize("action", ["train", "evaluate", "inference"])
def test_no_results_folder(user: User, action: str) -> None:
    del user.spec["results_dir"]
    words = rf"`results_dir` and `{action}.results_dir` are unset; set one: results_dir=results"
    user.fails(action, code=2, words=words, error=None)


# --- training ---


def test_a_file_to_resume_from_with_a_wrong_suffix(user: User) -> None:
    key = "train.resume_training_checkpoint_path=model.ckpt"
    user.fails("train", key, code=2, words=r"must end in \.pth or \.tlt, but is .*model\.ckpt", error="CheckpointError")


def test_fewer_images_than_a_batch(user: User) -> None:
    words = r"Dataset size \(24\) is smaller than the total batch size \(64\).*reduce batch_size"
    user.fails("train", "dataset.batch_size=64", code=2, words=words, error="DataError")


def test_fewer_images_than_a_batch_are_enough_to_evaluate(user: User, tiny_run: Path) -> None:
    assert user.runs("evaluate", f"evaluate.checkpoint={tiny_run}", "evaluate.batch_size=1000").succeeded


def test_no_compiled_library_is_loaded(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(torch.ops, "load_library", refuse)
    monkeypatch.setattr(torch.classes, "load_library", refuse)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert user.runs("train", "train.is_dry_run=true").succeeded


def test_a_category_id_beyond_num_classes(user: User) -> None:
    words = r"annotations\.json.*there is id 2 \(`digit`\) and num_classes=2; set dataset\.num_classes=3"
    user.fails("train", "dataset.num_classes=2", code=2, words=words, error="DataError")


def test_out_of_memory(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Detector, "training_step", full)
    user.fails("train", code=1, words=r"CUDA out of memory: reduce batch_size", error="OutOfMemory")
    lines = (user.folder / "results" / "train" / "status.json").read_text()
    assert [message in lines for message in ("with 4 images at once", "with 2 images", "with 1 images")] == [True] * 3


def test_boxes_that_are_not_finite(user: User) -> None:
    user.spec["dataset"]["augmentation"]["input_mean"] = [1e39, 0.5, 0.5]  # infinite as float32
    words = r"loss must stay finite, but loss_.* in epoch 1, step 0 \(.*image ids \d+.*lower train\.optim\.lr"
    user.fails("train", code=1, words=words, error="NonFiniteLoss")


def test_a_missing_image(user: User, copied: Path) -> None:
    gone = pictures_of(copied)[3]
    gone.unlink()
    user.fails("train", code=2, words=rf"annotations\.json.*{re.escape(gone.name)}", error="DataError")


def test_one_corrupt_image_is_skipped_and_reported(user: User, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = pictures_of(copied)[3]
    broken.write_bytes(broken.read_bytes()[:60])
    assert user.runs("train").succeeded
    assert "1 of 24 images cannot be decoded" in caplog.text
    assert broken.name in caplog.text


def test_many_corrupt_images_stop_the_run(user: User, copied: Path) -> None:
    for broken in pictures_of(copied)[:12]:
        broken.write_bytes(broken.read_bytes()[:60])
    user.fails("train", code=2, words=r"of 24 images cannot be decoded, and more than .* replace it", error="DataError")


def test_crops_larger_than_the_image_are_cut_to_it(user: User) -> None:
    user.spec["dataset"]["augmentation"].update(
        train_random_resize=[40], train_random_crop_min=400, train_random_crop_max=500
    )
    assert user.runs("train").succeeded


# --- checkpoints ---


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def tiny_run(user: User, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the spec of `user`, trained once for all tests."""
    if "path" not in trained:
        assert user.runs("train", "train.is_dry_run=true").succeeded
        kept = tmp_path_factory.mktemp("trained") / "model.pth"
        kept.write_bytes((user.folder / "results" / "train" / "dd_model_latest.pth").read_bytes())
        trained["path"] = kept
    return trained["path"]


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_a_checkpoint_of_another_architecture(user: User, tiny_run: Path, action: str) -> None:
    words = r"`model.enc_layers` must be .* the spec says 5 and .*model\.pth says 1; leave the key out"
    overrides = (f"{action}.checkpoint={tiny_run}", "model.enc_layers=5")
    user.fails(action, *overrides, code=2, words=words, error="CheckpointError")


def test_weights_of_another_architecture(user: User, tiny_run: Path) -> None:
    overrides = (f"train.pretrained_model_path={tiny_run}", "model.hidden_dim=64")
    words = r"at least 90% .* fills \d+%; give the file of the same network"
    user.fails("train", *overrides, code=2, words=words, error="CheckpointError")


def encrypted(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(2000))


def encrypted_inside(path: Path) -> None:
    torch.save({"state_dict": io.BytesIO(b"x"), "state_dict_encrypted": True}, path)


@pytest.mark.parametrize(("name", "make"), [("model.tlt", encrypted), ("model.pth", encrypted_inside)])
@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("evaluate", "evaluate.checkpoint"),
        ("inference", "inference.checkpoint"),
        ("train", "train.pretrained_model_path"),
        ("train", "train.resume_training_checkpoint_path"),
    ],
)
def test_an_encrypted_checkpoint(user: User, action: str, key: str, name: str, make: Callable[[Path], None]) -> None:
    make(user.folder / name)
    words = rf"must not be encrypted, but .*{re.escape(name)} is"
    user.fails(action, f"{key}={user.folder / name}", code=2, words=words, error="CheckpointError")


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_an_engine_without_the_file_that_describes_it(user: User, action: str) -> None:
    (user.folder / "model.engine").write_bytes(b"ftrt")
    outcome = user.runs(action, f"{action}.checkpoint={user.folder}/model.engine")
    assert outcome.code == 2
    assert re.search(r"must come with `model\.engine\.json`.*keep the two together", outcome.printed)
    status = (user.folder / "results" / f"trt_{action}" / "status.json").read_text()
    assert json.loads(status.splitlines()[-1])["status"] == "FAILURE"


# --- pictures without annotations ---


def test_a_corrupt_picture_to_label_is_skipped_and_reported(user: User, tiny_run: Path) -> None:
    folder = user.folder / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"\x89PNG no more")
    user.spec["dataset"]["infer_data_sources"] = {"image_dir": [str(folder)]}
    assert user.runs("inference", f"inference.checkpoint={tiny_run}").succeeded
    status = (user.folder / "results" / "inference" / "status.json").read_text()
    assert re.search(r"1 of 2 images skipped: .*bad\.png", status)


def test_no_picture_to_label(user: User, tiny_run: Path) -> None:
    (user.folder / "empty").mkdir()
    overrides = (f"inference.checkpoint={tiny_run}", f"dataset.infer_data_sources.image_dir=[{user.folder}/empty]")
    user.fails("inference", *overrides, code=2, words=r"must hold images, but .*empty holds none", error="DataError")
