import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.coco import read_coco
from model.data.digits import REGIONS, SCANS, SPLITS, Region, category, crop_of, make_digits
from model.spec import Source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    make_digits(out, classes="ten", size=64, images=40, seed=3)
    return out


def content(folder: Path, split: str) -> dict[str, Any]:
    found = json.loads((folder / split / "annotations.json").read_text())
    assert isinstance(found, dict)
    return found


def pixels(region: Region) -> set[tuple[str, int, int]]:
    return {
        (region.photo, x, y)
        for x in range(region.left, region.left + region.width)
        for y in range(region.top, region.top + region.height)
    }


def test_splits_share_no_scan(folder: Path) -> None:
    used = {split: {row["scan"] for row in content(folder, split)["annotations"]} for split in SPLITS}
    for split in SPLITS:
        assert used[split] <= set(SCANS[split])
    assert sum(map(len, SCANS.values())) == len(set().union(*SCANS.values())) == 1797


def test_splits_share_no_background_pixel(folder: Path) -> None:
    seen = {split: set().union(*map(pixels, REGIONS[split])) for split in SPLITS}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    for split in SPLITS:
        for row in content(folder, split)["images"]:
            assert pixels(Region(*row["crop"])) <= seen[split]


@given(split=st.sampled_from(SPLITS), number=st.integers(0, 1), size=st.integers(32, 900), seed=st.integers(0, 99))
def test_crops_stay_in_their_region(split: str, number: int, size: int, seed: int) -> None:
    region = REGIONS[split][number]
    crop = crop_of(region, size, np.random.default_rng(seed))
    assert crop.photo == region.photo
    assert region.left <= crop.left
    assert crop.left + crop.width <= region.left + region.width
    assert region.top <= crop.top
    assert crop.top + crop.height <= region.top + region.height


def test_equal_arguments_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    make_digits(tmp_path / "again", classes="ten", size=64, images=40, seed=3)
    make_digits(tmp_path / "other", classes="ten", size=64, images=40, seed=4)
    for split in SPLITS:
        for name in ("images.tar.gz", "annotations.json", "label_map.txt"):
            assert (folder / split / name).read_bytes() == (tmp_path / "again" / split / name).read_bytes()
        other = (tmp_path / "other" / split / "images.tar.gz").read_bytes()
        assert (folder / split / "images.tar.gz").read_bytes() != other


def test_ids_have_gaps_and_names_their_line(folder: Path) -> None:
    for split in SPLITS:
        found = content(folder, split)
        for ids in ([row["id"] for row in found["images"]], [row["id"] for row in found["categories"]]):
            assert len(set(ids)) == len(ids) < max(ids) - min(ids) + 1
        lines = (folder / split / "label_map.txt").read_text().splitlines()
        assert {row["id"]: row["name"] for row in found["categories"]} == {
            number: name for number, name in enumerate(lines, start=1) if name != "unknown"
        }


def test_a_quarter_for_validation_and_for_test(folder: Path) -> None:
    assert [len(content(folder, split)["images"]) for split in SPLITS] == [40, 10, 10]


def test_boxes_hold_one_to_three_apart_digits(folder: Path) -> None:
    boxes = defaultdict(list)
    for row in content(folder, "train")["annotations"]:
        x, y, w, h = row["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + w <= 64
        assert y + h <= 64
        assert 4 <= min(w, h) <= max(w, h) <= 27
        boxes[row["image_id"]].append(row["bbox"])
    assert len(boxes) == 40
    assert {len(found) for found in boxes.values()} == {1, 2, 3}
    for found in boxes.values():
        covered = np.zeros((64, 64), int)
        for x, y, w, h in found:
            covered[y : y + h, x : x + w] += 1
        assert covered.max() == 1


def test_one_class_and_its_reader(tmp_path: Path) -> None:
    make_digits(tmp_path, size=48, images=4)
    assert category(7, "one") == (2, "digit")
    source = Source(image_dir=str(tmp_path / "train/images.tar.gz"), json_file=str(tmp_path / "train/annotations.json"))
    index = read_coco([source], 3)
    assert index.categories == {2: "digit"}
    assert len(index.images) == 4
    assert (index.clamped, index.dropped) == (0, 0)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "val/images.tar.gz").read_bytes())) as tar:
        assert all(member.mtime == 0 and member.name.startswith("images/") for member in tar)


@pytest.mark.parametrize("bad", [{"classes": "two"}, {"size": 8}, {"images": 3}])
def test_wrong_arguments(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be"):
        make_digits(tmp_path, **bad)
