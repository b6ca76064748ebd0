"""What tells one dataset from another: what is annotated, and which images there are; not where they lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpo.datasets import FILE, Dataset, datasets_of, joint_digest, known
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from tests.store import Store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        folder = tmp_path / "a" / split
        (folder / "images" / "deep").mkdir(parents=True)
        (folder / "images" / "1.png").write_bytes(b"one")
        (folder / "images" / "deep" / "2.png").write_bytes(b"second")
        (folder / "annotations.json").write_text(json.dumps({"images": [split]}))
    return tmp_path / "a"


def spec_of(data: Path) -> ExperimentSpec:
    def source(split: str) -> dict[str, str]:
        return {"image_dir": str(data / split / "images"), "json_file": str(data / split / "annotations.json")}

    return ExperimentSpec.from_dict(
        {"dataset": {"train_data_sources": [source("train")], "val_data_sources": [source("val")]}}
    )


def digests(data: Path) -> list[str]:
    return [one.digest for one in datasets_of(spec_of(data))]


def test_the_place_does_not_count(data: Path) -> None:
    found = datasets_of(spec_of(data))
    assert [(one.context, one.name) for one in found] == [("train", "train/annotations"), ("val", "val/annotations")]
    assert all(len(one.digest) <= 36 for one in found), "as MLflow takes it"
    shutil.copytree(data, data.parent / "b")
    assert digests(data.parent / "b") == digests(data)
    assert digests(data)[0] != digests(data)[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda train: (train / "annotations.json").write_text("{}"),
        lambda train: (train / "images" / "deep" / "2.png").write_bytes(b"longer than it was"),
        lambda train: (train / "images" / "3.png").write_bytes(b""),
        lambda train: (train / "images" / "1.png").rename(train / "images" / "4.png"),
        lambda train: (train / "images" / "deep" / "2.png").rename(train / "images" / "2.png"),
    ],
)
def test_every_change_of_one_split_shows_in_it(data: Path, change: Callable[[Path], object]) -> None:
    before = digests(data)
    change(data / "train")
    train, val = digests(data)
    assert train != before[0]
    assert val == before[1]


def test_pixels_are_not_read(data: Path) -> None:
    before = digests(data)
    (data / "train" / "images" / "1.png").write_bytes(b"two")
    assert digests(data) == before


def test_an_archive_counts_by_its_size(data: Path) -> None:
    spec = {"image_dir": str(data / "images.tar.gz"), "json_file": str(data / "train" / "annotations.json")}
    both = []
    for content in (b"a", b"bb"):
        (data / "images.tar.gz").write_bytes(content)
        both.append(datasets_of(ExperimentSpec.from_dict({"dataset": {"train_data_sources": [spec]}}))[0].digest)
    assert both[0] != both[1]


def test_the_same_data_in_s3(data: Path, s3: "Store", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDETR_CACHE", str(data / "cache"))
    s3.put_folder("datasets", "some/train", data / "train")
    source = {"image_dir": "s3://datasets/some/train/images", "json_file": "s3://datasets/some/train/annotations.json"}
    (found,) = datasets_of(ExperimentSpec.from_dict({"dataset": {"train_data_sources": [source]}}))
    assert found.digest == digests(data)[0]
    assert (found.name, found.source) == ("train/annotations", source["json_file"])
    assert all("images" not in each.path for each in s3.asked if each.method == "GET"), "no image is downloaded"


def test_a_run_keeps_what_it_began_with(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before = known(run, spec_of(data))
    (data / "train" / "annotations.json").write_text("{}")
    assert known(run, spec_of(data)) == before
    shutil.rmtree(data)
    assert known(run, spec_of(data)) == before
    (run / FILE).unlink()
    assert known(run, spec_of(data)) == (), "a resume of a finished run needs no data"


def test_trials_are_comparable_on_training_and_validation_data() -> None:
    def one(context: str, digest: str) -> Dataset:
        return Dataset(context=context, name="x", digest=digest, source="y")

    both = [one("train", "a"), one("val", "b")]
    assert joint_digest(both) == joint_digest([*both, one("test", "c")])
    assert joint_digest(both) != joint_digest([one("train", "b"), one("val", "a")])
