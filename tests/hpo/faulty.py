"""A COCO dataset made by hand, of workers' gear, and the faults that people's files have: each is one small spoiling.

`python tests/hpo/faulty.py FOLDER [FAULT ...]` writes it to be tried by hand, with all faults where none is named.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

NAMES = {1: "helmet", 2: "vest", 3: "glove"}
WIDTH, HEIGHT = 64, 48
SIZES = {"train": 12, "val": 6}
MODEL = {
    "backbone": "resnet_tiny", "num_queries": 100, "num_select": 50, "num_feature_levels": 2,
    "return_interm_indices": [2, 3], "hidden_dim": 32, "nheads": 2, "enc_layers": 1, "dec_layers": 2,
    "dim_feedforward": 32,
}  # fmt: skip


class Dataset:
    """Its parts, to be spoilt before (`data`, `spec`) or after (`folder`) they are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {split: _coco(split, count) for split, count in SIZES.items()}
        sources = {
            f"{split}_data_sources": [
                {"image_dir": str(folder / split), "json_file": str(folder / f"{split}.json")}
            ]
            for split in SIZES
        }  # fmt: skip
        sizes = {
            "scales": [48], "random_resize_max_size": 64, "train_random_resize": [48], "train_random_crop_min": 32,
            "train_random_crop_max": 48, "test_random_resize": 48, "fixed_padding": False,
        }  # fmt: skip
        self.spec: dict[str, Any] = {
            "results_dir": str(folder / "runs"),
            "model": dict(MODEL),
            "dataset": {**sources, "num_classes": 4, "batch_size": 4, "workers": 1, "augmentation": sizes},
            "train": {"num_epochs": 2, "activation_checkpoint": False},
            "automl": {"trials": 2},
        }

    def image(self, split: str, number: int) -> Path:
        return self.folder / split / f"{split}-{number:02d}.jpg"


def _coco(split: str, count: int) -> dict[str, Any]:
    images = [
        {"id": n, "file_name": f"{split}-{n:02d}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(1, count + 1)
    ]
    annotations = [
        {"id": 10 * n + key, "image_id": n, "category_id": key, "bbox": [8 * key, 4 * key, 20, 16], "area": 320,
         "iscrowd": 0}
        for n in range(1, count + 1) for key in NAMES
    ]  # fmt: skip
    categories = [{"id": key, "name": name} for key, name in NAMES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _class_count(made: Dataset) -> None:
    made.spec["dataset"]["num_classes"] = 3


def _never_annotated(made: Dataset) -> None:
    for data in made.data.values():
        data["categories"].append({"id": 4, "name": "boot"})
    made.spec["dataset"]["num_classes"] += 1


def _outside(made: Dataset) -> None:
    made.data["train"]["annotations"][0]["bbox"] = [50, 30, 40, 40]


def _zero_width(made: Dataset) -> None:
    made.data["train"]["annotations"][1]["bbox"] = [10, 10, 0, 12]


def _unknown_image(made: Dataset) -> None:
    made.data["train"]["annotations"][2]["image_id"] = 999


def _unknown_category(made: Dataset) -> None:
    made.data["val"]["annotations"][0]["category_id"] = 77


def _twice(made: Dataset) -> None:
    first = made.data["val"]["annotations"][0]
    made.data["val"]["annotations"].append({**first, "id": 9999})


def _gaps(made: Dataset) -> None:
    for data in made.data.values():
        for row in data["categories"]:
            row["id"] = 3 * row["id"]
        for row in data["annotations"]:
            row["category_id"] = 3 * row["category_id"]
    made.spec["dataset"]["num_classes"] = max(row["id"] for row in made.data["train"]["categories"]) + 1


def _empty_val(made: Dataset) -> None:
    made.data["val"] |= {"images": [], "annotations": []}


def _unmarked_val(made: Dataset) -> None:
    made.data["val"]["annotations"] = []


def _renamed(made: Dataset) -> None:
    made.data["val"]["categories"][1]["name"] = "waistcoat"


def _missing(made: Dataset) -> None:
    for number in (2, 3):
        made.image("train", number).unlink()


def _leak(made: Dataset) -> None:
    shutil.copy(made.image("train", 5), made.image("val", 5))


def _truncated(made: Dataset) -> None:
    path = made.image("val", 4)
    path.write_bytes(path.read_bytes()[:400])


BEFORE: Mapping[str, Callable[[Dataset], None]] = {
    "class count": _class_count,
    "never annotated": _never_annotated,
    "outside": _outside,
    "zero width": _zero_width,
    "unknown image": _unknown_image,
    "unknown category": _unknown_category,
    "twice": _twice,
    "gaps": _gaps,
    "empty val": _empty_val,
    "unmarked val": _unmarked_val,
    "renamed": _renamed,
}
AFTER: Mapping[str, Callable[[Dataset], None]] = {"missing": _missing, "leak": _leak, "truncated": _truncated}
TOGETHER = (
    "class count", "missing", "never annotated", "outside", "unknown image", "leak", "truncated", "zero width", "twice"
)  # fmt: skip
"""Faults of one and the same dataset; the others exclude some of them."""


def write(folder: Path, *faults: str) -> Path:
    """The dataset with these faults; returns its spec."""
    made = Dataset(folder)
    for fault in faults:
        if fault in BEFORE:
            BEFORE[fault](made)
    rng = np.random.default_rng(7)
    for split, data in made.data.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(1, SIZES[split] + 1):
            pixels = rng.integers(0, 255, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(made.image(split, number), quality=90)
        (folder / f"{split}.json").write_text(json.dumps(data))
    for fault in faults:
        if fault in AFTER:
            AFTER[fault](made)
    path = folder / "gear.yaml"
    path.write_text(yaml.safe_dump(made.spec, sort_keys=False))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).absolute(), *(sys.argv[2:] or TOGETHER)))
