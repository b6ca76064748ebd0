import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import ImageBatch, Target
from model.data.cache import DecodedImages, open_images
from model.data.coco import CocoIndex, read_coco
from model.data.dataset import CocoDataset, pack, unpack
from model.data.records import UNREADABLE
from model.data.samplers import Key
from model.data.transforms import eval_transform, train_transform
from model.errors import DataError
from model.metrics import CocoEvaluator
from model.network.postprocess import Detections
from model.spec import AugmentationSpec, Source

MakeCoco = Callable[..., Source]
AUG = AugmentationSpec(scales=(24,), train_random_resize=(24,), train_random_crop_min=32, train_random_crop_max=40)
BOXES = ((1, 2, 1, 2, 10, 8), (2, 2, 1, 2, 10, 8), (3, 5, 12, 3, 10, 15))


@pytest.fixture
def broken(make_coco: MakeCoco) -> CocoIndex:
    """Four images, the second and only the second unreadable."""
    index = read_coco([make_coco(ids=(1, 2, 3, 4), boxes=BOXES)])
    index.images[1].path.write_bytes(b"not a picture")
    return index


@pytest.mark.parametrize("cached", [True, False])
def test_the_next_image_stands_in_for_an_unreadable_one(broken: CocoIndex, cached: bool) -> None:
    images = open_images(broken.images) if cached else DecodedImages(broken.images)
    dataset = CocoDataset(broken, images, train_transform(AUG), 0)
    item, next_one = dataset[Key(4, 1)], dataset[Key(4, 2)]
    assert item.target.image_id == next_one.target.image_id == 3
    np.testing.assert_array_equal(item.image, next_one.image)
    assert item.target.labels.tolist() == [5]


def test_a_skipped_image_is_reported_once_and_a_second_one_stops(
    broken: CocoIndex, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = CocoDataset(broken, DecodedImages(broken.images), train_transform(AUG), 0)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            _ = dataset[Key(epoch, 1)]
    assert len(caplog.records) == 1
    assert "skipped: " in caplog.text
    assert "2.png` cannot be decoded" in caplog.text
    broken.images[3].path.unlink()
    with pytest.raises(DataError, match=r"2 of 4 images cannot be decoded"):
        _ = dataset[Key(3, 3)]


def test_an_unreadable_image_counts_as_one_without_detections(broken: CocoIndex) -> None:
    """Its boxes stay in the truth, and what a network sees on the black picture is nobody's."""
    dataset = CocoDataset(broken, DecodedImages(broken.images), eval_transform(AUG), 0, unreadable="black")
    item = dataset[Key(0, 1)]
    assert item.target.image_id == UNREADABLE
    assert not item.image.any()
    assert item.image.shape == dataset[Key(0, 0)].image.shape
    evaluator = CocoEvaluator(broken)
    hit = torch.tensor([[[1.0, 2.0, 11.0, 10.0]]] * 2)
    ids = [dataset[Key(0, position)].target.image_id for position in (0, 1)]
    evaluator.update(ids, Detections(torch.full((2, 1), 0.9), torch.full((2, 1), 2), hit))
    assert evaluator.rows()[:, 0].tolist() == [1]
    assert evaluator.result().per_class[2] == pytest.approx(51 / 101)  # recall 1/2


def test_a_folder_of_nothing_is_refused(make_coco: MakeCoco) -> None:
    index = read_coco([make_coco(ids=(1,), boxes=((1, 2, 1, 2, 10, 8),))])
    Path(index.images[0].path).write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        _ = CocoDataset(index, DecodedImages(index.images), train_transform(AUG), 0)[Key(0, 0)]


@pytest.mark.parametrize("side", [8, 700])
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0)])
def test_a_batch_comes_out_of_its_parcel_as_it_went_in(side: int, counts: tuple[int, ...]) -> None:
    """Small pixels go by value, large ones in shared memory; an image may have no boxes."""
    targets = tuple(
        Target(torch.arange(count), torch.rand(count, 4), 7 + count, (side, side - count)) for count in counts
    )
    pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    batch = ImageBatch(pixels, torch.tensor([[side, side]] * 3), targets)
    parcel = pack(batch)
    assert isinstance(parcel.pixels, np.ndarray) == (side == 8)
    assert not any(isinstance(part, torch.Tensor) for part in parcel[1:])
    found = unpack(parcel)
    assert torch.equal(found.pixels, pixels)
    assert torch.equal(found.sizes, batch.sizes)
    for one, other in zip(found.targets, targets, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.boxes, other.boxes)
        assert one[2:] == other[2:]
