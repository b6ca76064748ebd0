"""One tiny detector, saved as training saves it, its export, and pictures that it detects something on.

Heavy imports stay inside the fixtures: most tests need none of them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from model.network.detr import DeformableDETR
    from model.progress import Work
    from model.spec import ExperimentSpec, Source
    from tests.store import Store

TINY_SIZE = 64
TINY_CLASSES = {1: "cat", 3: "dog"}
TINY_MEAN = (0.5, 0.4, 0.3)
TINY_STD = (0.2, 0.3, 0.25)


@pytest.fixture(scope="session")
def tiny_spec() -> "ExperimentSpec":
    from model.spec import AugmentationSpec, DatasetSpec, ExperimentSpec, ModelSpec

    return ExperimentSpec(
        model=ModelSpec(
            backbone="resnet_tiny",
            num_queries=100,
            num_select=50,
            num_feature_levels=3,
            return_interm_indices=(1, 2, 3),
            hidden_dim=32,
            nheads=4,
            enc_layers=1,
            dec_layers=2,
            dim_feedforward=64,
        ),
        dataset=DatasetSpec(num_classes=4, augmentation=AugmentationSpec(input_mean=TINY_MEAN, input_std=TINY_STD)),
    )


def lively(model: "DeformableDETR") -> "DeformableDETR":
    """Weights as after a training: fresh ones are zero where offsets and boxes come from, which hides faults."""
    import torch

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.dim() > 1 and float(value.abs().max()) == 0:
                torch.nn.init.normal_(value, std=0.05)
            elif name.endswith("running_mean"):
                value.normal_(std=0.1)
    return model.eval()


def save_checkpoint(spec: "ExperimentSpec", path: Path) -> Path:
    import torch

    from model.checkpoint import KEY, PREFIX, describe
    from model.network.detr import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(build(spec.model, spec.dataset.num_classes, pretrained=False))
    state = {PREFIX + name: value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, KEY: describe(spec, TINY_CLASSES, 3, {"val_mAP50": 0.25})}, path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_spec: "ExperimentSpec", tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_spec, tmp_path_factory.mktemp("checkpoint") / "model_best.pth")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploy.export import export_onnx

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(tiny_checkpoint, path, height=TINY_SIZE, width=TINY_SIZE)
    return path


@pytest.fixture
def other_checkpoint(tiny_spec: "ExperimentSpec", tmp_path: Path) -> Callable[..., Path]:
    """Another tiny detector, by what its `model` section says differently."""

    def make(**model: object) -> Path:
        changed = replace(tiny_spec, model=replace(tiny_spec.model, **model))  # type: ignore[arg-type]
        return save_checkpoint(changed, tmp_path / "other.pth")

    return make


@pytest.fixture(scope="session")
def tiny_pictures(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> "Source":
    """Seven photographs of unequal sizes. Their truth is what the detector itself finds, moved a little: a mean average
    precision strictly between 0 and 1, which an untrained detector reaches on nothing else."""
    import numpy as np
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from model.batch import normalise
    from model.checkpoint import load_model
    from model.evaluate import torch_predictor
    from model.network.postprocess import top_k
    from model.spec import Source

    folder = tmp_path_factory.mktemp("pictures")
    photo = load_sample_images().images[0]
    model, _ = load_model(tiny_checkpoint)
    images, annotations = [], []
    for number in range(1, 8):
        height, width = 60 + 7 * number, 110 - 8 * number
        image = photo[30 * number : 30 * number + height, 50 * number : 50 * number + width]
        Image.fromarray(image).save(folder / f"{number}.png")
        images.append({"id": 10 * number, "file_name": f"{number}.png", "height": height, "width": width})
        small = Image.fromarray(image).resize((TINY_SIZE, TINY_SIZE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        normal, _ = normalise(pixels, torch.tensor([[TINY_SIZE, TINY_SIZE]]), TINY_MEAN, TINY_STD)
        found = top_k(torch_predictor(model)(normal, None), torch.tensor([[height, width]]), 50)
        for label, (x0, y0, x1, y1) in list(zip(found.labels[0].tolist(), found.boxes[0].tolist(), strict=True))[::6]:
            x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0) + number % 3, min(x1, float(width)), min(y1, float(height))
            if label in TINY_CLASSES and x1 - x0 > 2 and y1 - y0 > 2:
                box = [x0, y0, x1 - x0, y1 - y0]
                row = {"id": len(annotations) + 1, "image_id": 10 * number, "category_id": label, "bbox": box}
                annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": key, "name": name} for key, name in TINY_CLASSES.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(truth))
    return Source(image_dir=str(folder), json_file=str(folder / "annotations.json"))


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images go where pytest's other files go."""
    monkeypatch.setenv("DDETR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.data.digits import make_digits

    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, size=48, images=24, seed=3)
    return folder


@pytest.fixture
def digits_spec(digits: Path) -> dict[str, Any]:
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
        "train": {"num_epochs": 3, "activation_checkpoint": False, "optim": {"lr": 1e-3, "lr_steps": [2]}},
    }


class Heard:
    """Remembers what it is told of work under way."""

    def __init__(self) -> None:
        self.begins: list[Work] = []
        self.moves: list[Work] = []
        self.ends: list[Work] = []

    def begun(self, work: "Work") -> None:
        self.begins.append(work)

    def moved(self, work: "Work") -> None:
        self.moves.append(work)

    def over(self, work: "Work") -> None:
        self.ends.append(work)


@pytest.fixture
def heard() -> Heard:
    """To be installed with `heard_by`."""
    return Heard()


SECRET = "a-secret-that-no-file-may-hold"


@pytest.fixture(scope="session")
def s3_server() -> Iterator["Store"]:
    from tests.store import Store

    store = Store()
    yield store
    store.close()


@pytest.fixture
def s3(s3_server: "Store", monkeypatch: pytest.MonkeyPatch) -> "Store":
    """An S3 that the environment names, and that this process has asked nothing yet."""
    from model.data import remote

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_CONFIG_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "_known", {})
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    s3_server.asked.clear()
    return s3_server
