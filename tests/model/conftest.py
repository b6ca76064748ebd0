"""A tiny digits set and the smallest spec that trains on it, shared by the tests of training and evaluation."""

from pathlib import Path
from typing import Any

import pytest

from model.data.digits import make_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, size=48, images=24, seed=3)
    return folder


@pytest.fixture
def tiny(digits: Path) -> dict[str, Any]:
    """A spec as a user writes it: three epochs of three steps on 48 pixels."""

    def source(split: str) -> dict[str, str]:
        return {
            "image_dir": str(digits / split / "images.tar.gz"),
            "json_file": str(digits / split / "annotations.json"),
        }

    return {
        "model": {
            "backbone": "resnet_tiny",
            "num_queries": 100,
            "num_select": 50,
            "num_feature_levels": 2,
            "return_interm_indices": [2, 3],
            "hidden_dim": 32,
            "nheads": 2,
            "enc_layers": 1,
            "dec_layers": 2,
            "dim_feedforward": 32,
            "dropout_ratio": 0.2,
        },
        "dataset": {
            "train_data_sources": [source("train")],
            "val_data_sources": [source("val")],
            "test_data_sources": source("test"),
            "num_classes": 3,
            "batch_size": 8,
            "augmentation": {
                "scales": [40, 48],
                "random_resize_max_size": 48,
                "train_random_resize": [48],
                "train_random_crop_min": 32,
                "train_random_crop_max": 48,
                "test_random_resize": 48,
                "fixed_padding": False,
            },
        },
        "train": {"num_epochs": 3, "optim": {"lr": 1e-3, "lr_steps": [2]}},
    }
