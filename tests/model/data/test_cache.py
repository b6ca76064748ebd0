import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import cache as cache_module
from model.data.cache import CachedImages, DecodedImages, check_unreadable, open_images
from model.data.coco import ImageRecord, read_coco
from model.errors import DataError
from model.spec import Source

MakeCoco = Callable[..., Source]


def records_of(source: Source) -> tuple[ImageRecord, ...]:
    return read_coco([source]).images


def test_cached_and_decoded_pixels_are_equal(make_coco: MakeCoco) -> None:
    records = records_of(make_coco(ids=(1, 2, 7), boxes=()))
    Image.new("RGB", (5, 9), "orange").save(records[1].path)  # another size than the annotation file says
    cached, decoded = open_images(records), DecodedImages(records)
    assert isinstance(cached, CachedImages)
    assert len(cached) == len(decoded) == 3
    for position in range(3):
        np.testing.assert_array_equal(cached[position], decoded[position])
        assert not cached[position].flags.writeable


def test_a_worker_gets_the_name_and_not_the_pixels(make_coco: MakeCoco) -> None:
    images = open_images(records_of(make_coco(ids=(1,), size=(200, 200), boxes=())))
    packed = pickle.dumps(images)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed)[0], images[0])  # noqa: S301 - our own bytes


def test_a_changed_image_is_decoded_again(make_coco: MakeCoco) -> None:
    records = records_of(make_coco())
    before = open_images(records)[0].copy()
    Image.new("RGB", (30, 20)).save(records[0].path)
    assert before.any()
    assert not open_images(records)[0].any()


def test_too_large_a_set_is_decoded_each_time(make_coco: MakeCoco) -> None:
    records = records_of(make_coco())
    assert isinstance(open_images(records, limit=2 * 20 * 30 * 3 - 1), DecodedImages)
    assert isinstance(open_images(records, limit=2 * 20 * 30 * 3), CachedImages)


def test_an_unusable_cache_is_no_obstacle(make_coco: MakeCoco, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file, not a folder")
    assert isinstance(open_images(records_of(make_coco())), DecodedImages)
    assert "cannot be used" in caplog.text


def test_an_unreadable_image_is_named_and_the_others_are_cached(make_coco: MakeCoco) -> None:
    records = records_of(make_coco(ids=(3, 8, 9), boxes=()))
    records[1].path.write_bytes(records[1].path.read_bytes()[:200])
    for images in (open_images(records), DecodedImages(records)):
        with pytest.raises(DataError, match=r"8.png` cannot be decoded"):
            _ = images[1]
        np.testing.assert_array_equal(images[2], np.asarray(Image.open(records[2].path)))
    assert list(open_images(records).unreadable) == [1]


def test_two_unreadable_of_a_few_are_no_accident(make_coco: MakeCoco, cache: Path) -> None:
    records = records_of(make_coco(ids=(3, 8, 9), boxes=()))
    for record in records[:2]:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 3 images cannot be decoded, and more than 1% .*3.png`"):
        open_images(records)
    assert not list((cache / "pixels").glob("*/table.npy")), "nothing half done is left"


@pytest.mark.parametrize(("count", "total", "fine"), [(1, 2, True), (1, 1, False), (2, 199, False), (2, 200, True)])
def test_the_share_of_unreadable_images(count: int, total: int, fine: bool) -> None:
    if fine:
        return check_unreadable(count, total, "")
    with pytest.raises(DataError, match=f"{count} of {total} images"):
        check_unreadable(count, total, "")


def test_two_processes_build_once(make_coco: MakeCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of(make_coco(ids=tuple(range(1, 60)), boxes=()))
    build = cache_module._build

    def noted(given: tuple[ImageRecord, ...], folder: Path) -> None:
        (tmp_path / f"built by {os.getpid()}").touch()
        build(given, folder)

    monkeypatch.setattr(cache_module, "_build", noted)  # forked processes keep it
    with multiprocessing.get_context("fork").Pool(2) as pool:
        kinds = pool.map(_open, [records] * 4, chunksize=1)
    assert set(kinds) == {"CachedImages"}
    assert len(list(tmp_path.glob("built by *"))) == 1


def _open(records: tuple[ImageRecord, ...]) -> str:
    return type(open_images(records)).__name__
