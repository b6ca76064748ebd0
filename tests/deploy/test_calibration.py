"""Calibration images, ranges, and the file that keeps them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from PIL import Image

from deploy import ranges, sidecar
from deploy.calibration import CalibrationImages, from_folders, from_index, from_spec
from deploy.ranges import BINS, StaleCalibration, cached, measured
from deploy.sidecar import OnnxSidecar
from deploy.tensors import load, run, session
from model.batch import normalise
from model.data.coco import read_coco
from model.errors import DataError
from model.spec import ExperimentSpec, Source
from tests.deploy.toy import SIDE, noise, plain, save


@pytest.fixture
def toy(onnx: Path, tmp_path: Path) -> Path:
    return save(tmp_path / "toy.onnx", *plain(np.random.default_rng(0)), like=onnx)


@pytest.fixture
def described(toy: Path) -> OnnxSidecar:
    return sidecar.require_onnx(toy)


@pytest.fixture
def images(described: OnnxSidecar, tmp_path: Path) -> CalibrationImages:
    return from_folders([str(noise(tmp_path / "noise", 6))], batch_size=3, batches=2, described=described)


def taking(described: OnnxSidecar, **more: Any) -> OnnxSidecar:
    return dataclasses.replace(described, input={**described.input, **more})


def test_images_are_those_of_evaluation(pictures: Source, onnx: Path, tmp_path: Path) -> None:
    """EXIF honoured, resized and normalised as the data modules do it."""
    described = sidecar.require_onnx(onnx)
    turned = Image.open(Path(str(pictures.image_dir)) / "1.png")
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned right
    (tmp_path / "in").mkdir()
    turned.save(tmp_path / "in" / "turned.png", exif=exif)
    (batch,) = from_folders([str(tmp_path)], batch_size=1, batches=1, described=described)
    seen = turned.transpose(Image.Transpose.ROTATE_270).resize((64, 64), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None]
    right, _ = normalise(
        pixels, torch.tensor([[64, 64]]), tuple(described.input["mean"]), tuple(described.input["std"])
    )
    np.testing.assert_array_equal(batch, right.numpy())
    (raw,) = from_folders([str(tmp_path)], batch_size=1, batches=1, described=taking(described, dtype="uint8"))
    np.testing.assert_array_equal(raw, pixels.numpy())


def test_every_image_once_in_any_batches(described: OnnxSidecar, tmp_path: Path) -> None:
    folder = str(noise(tmp_path / "noise", 7))
    ones = np.concatenate(list(from_folders([folder], batch_size=1, batches=7, described=described)))
    four = from_folders([folder], batch_size=7, batches=1, described=described)
    np.testing.assert_array_equal(np.concatenate(list(four)), ones)
    again = CalibrationImages(four.paths, described, batch_size=4)
    assert [len(batch) for batch in again] == [len(batch) for batch in again] == [4, 3]
    assert again.digest == four.digest
    fixed = CalibrationImages(four.paths, taking(described, batch=5), batch_size=1)
    first, last = fixed
    assert len(first) == len(last) == 5  # the graph takes no other number
    np.testing.assert_array_equal(last, ones[[5, 6, 5, 6, 5]])


def test_the_digest_is_of_content_order_and_treatment(described: OnnxSidecar, tmp_path: Path) -> None:
    folder = noise(tmp_path / "noise", 3)
    paths = sorted(folder.iterdir())
    copies = noise(tmp_path / "copy", 3)
    first = CalibrationImages(paths, described, batch_size=1).digest
    assert CalibrationImages(sorted(copies.iterdir()), described, batch_size=2).digest == first
    others = [
        CalibrationImages(paths[::-1], described, batch_size=1),
        CalibrationImages(paths[:2], described, batch_size=1),
        CalibrationImages(paths, taking(described, mean=[0.0, 0.0, 0.0]), batch_size=1),
        CalibrationImages(paths, taking(described, height=8), batch_size=1),
    ]
    assert len({first, *(each.digest for each in others)}) == 5


def none(folder: Path) -> list[str]:
    return []


def missing(folder: Path) -> list[str]:
    return [str(folder / "nowhere")]


def empty(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no image")
    return [str(folder / "empty")]


def few(folder: Path) -> list[str]:
    return [str(noise(folder / "few", 5))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (none, "but is unset; set it"),
        (missing, "nowhere` does not exist; correct it"),
        (empty, "empty` holds none; put some there"),
        (few, r"there are 5 and 2 \* 3 = 6 are asked for; add images, or lower cal_batches to 2"),
    ],
)
def test_folders_that_cannot_be_calibrated_on(
    make: Callable[[Path], list[str]], message: str, described: OnnxSidecar, tmp_path: Path
) -> None:
    words = r"`gen_trt_engine\.tensorrt\.calibration\.cal_image_dir` must .*" + message
    with pytest.raises(DataError, match=words):
        from_folders(make(tmp_path), batch_size=2, batches=3, described=described)


def test_a_sample_of_a_data_set_is_even_and_always_the_same(pictures: Source, onnx: Path) -> None:
    index, described = read_coco([pictures]), sidecar.require_onnx(onnx)
    sample = from_index(index, 3, described, batch_size=2)
    names = [path.stem for path in sample.paths]
    assert names == [path.stem for path in from_index(index, 3, described, batch_size=2).paths]
    assert [names[0] in "12", names[1] in "34", names[2] in "567"] == [True] * 3
    assert from_index(index, 99, described, batch_size=2).count == 7


def test_where_the_images_of_a_spec_come_from(onnx: Path, pictures: Source, tmp_path: Path) -> None:
    described = sidecar.require_onnx(onnx)

    def images(**dataset: Any) -> int:
        return from_spec(ExperimentSpec.from_dict({"dataset": dataset}), described, 3).count

    folder = {"image_dir": pictures.image_dir}
    whole = {**folder, "json_file": pictures.json_file}
    assert images(quant_calibration_data_sources=folder) == 7
    assert images(quant_calibration_data_sources=whole, train_data_sources=[{}]) == 7
    assert images(train_data_sources=[whole]) == 3
    with pytest.raises(DataError, match=r"`dataset\.quant_calibration_data_sources` and .* name none"):
        images()
    with pytest.raises(DataError, match="there are none in"):
        images(quant_calibration_data_sources={"image_dir": str(tmp_path)})


def test_the_largest_value_of_every_tensor(toy: Path, images: CalibrationImages) -> None:
    model = load(toy)
    found = measured(model, ["pixels", "a"], images, "minmax")
    pixels = np.concatenate(list(images)).reshape(6, -1)
    a = np.maximum(pixels @ _constant(model, "a.weight"), 0)
    assert found == pytest.approx({"pixels": np.abs(pixels).max(), "a": a.max()}, rel=1e-5)


def test_a_percentile_cuts_where_numpy_says(
    toy: Path, images: CalibrationImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PERCENTILE", 90.0)
    found = measured(load(toy), ["pixels"], images, "percentile")["pixels"]
    values = np.abs(np.concatenate(list(images)))
    assert found == pytest.approx(np.quantile(values, 0.9, method="inverted_cdf"), abs=float(1.5 * values.max() / BINS))


def test_entropy_keeps_what_is_even_and_cuts_what_is_alone() -> None:
    even = np.full(BINS, 100)
    assert ranges._entropy(even) == BINS
    lonely = (1e4 * np.exp(-((np.arange(BINS) / 80) ** 2))).astype(np.int64)
    lonely[-1] = 1
    assert 80 < ranges._entropy(lonely) < BINS // 4


def test_entropy_is_a_method(toy: Path, images: CalibrationImages) -> None:
    model = load(toy)
    whole, cut = (measured(model, ["pixels", "a"], images, method) for method in ("minmax", "entropy"))
    assert all(0 < cut[name] <= whole[name] * 1.0001 for name in whole)
    with pytest.raises(ValueError, match=r"calibration\.method` must be one of minmax, entropy, percentile, .* `mean`"):
        measured(model, ["a"], images, "mean")


def test_a_cache_is_reused_where_it_fits(
    toy: Path, images: CalibrationImages, tmp_path: Path, monkeypatch: Any
) -> None:
    model, cache = load(toy), tmp_path / "new" / "cal.json"
    found = cached(model, ["pixels", "a"], images, "minmax", cache, "m")
    assert [path.name for path in cache.parent.iterdir()] == ["cal.json"]
    monkeypatch.setattr(ranges, "measured", None)  # not to be called again
    assert cached(model, ["a", "pixels"], images, "minmax", cache, "m") == found


def test_a_cache_of_something_else_is_refused(toy: Path, images: CalibrationImages, tmp_path: Path) -> None:
    model, cache = load(toy), tmp_path / "cal.json"
    cached(model, ["a"], images, "minmax", cache, "m")
    text = cache.read_text()
    tries: list[tuple[str, tuple[Any, ...]]] = [
        ("has model_sha256 m and this is n", (images, "minmax", cache, "n")),
        ("has data_sha256 .* and this is", (images.first(5), "minmax", cache, "m")),
        ("has method minmax and this is entropy", (images, "entropy", cache, "m")),
    ]
    for words, rest in tries:
        with pytest.raises(StaleCalibration, match=f"cal.json` {words}.*delete it .*cal_cache_file"):
            cached(model, ["a"], *rest)
    for content in (text[: len(text) // 2], "TRT-8601-EntropyCalibration2\n", "[]", "{}", ""):
        cache.write_text(content)
        with pytest.raises(StaleCalibration, match=r"must be a whole file .*delete it"):
            cached(model, ["a"], images, "minmax", cache, "m")
        assert cache.read_text() == content
    cache.write_text(json.dumps({**json.loads(text), "format_version": 0}))
    with pytest.raises(StaleCalibration, match="has format_version 0"):
        cached(model, ["a"], images, "minmax", cache, "m")


def test_the_toy_is_a_detector(toy: Path) -> None:
    found = run(session(load(toy)), np.zeros((2, 3, SIDE, SIDE), np.float32))
    assert {name: value.shape for name, value in found.items()} == {"pred_logits": (2, 5, 3), "pred_boxes": (2, 5, 4)}


def _constant(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name))
