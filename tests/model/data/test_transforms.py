import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from model.data import transforms
from model.data.transforms import (
    Sample,
    augmented_tall,
    crop,
    decode,
    eval_transform,
    flip,
    padded_size,
    random_crop,
    resize,
    resize_short,
    train_transform,
)
from model.errors import DataError
from model.spec import AugmentationSpec


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> Sample:
    """A red rectangle on black, and its box."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2], 0] = 255
    return Sample(image, np.array([box], float), np.array([7]))


def seen(sample: Sample) -> list[int]:
    """x0, y0, x1, y1 around the pixels that are more red than not."""
    rows, columns = np.nonzero(sample.image[..., 0] > 127)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_flip_by_hand() -> None:
    result = flip(painted(10, 20, (2, 1, 7, 4)))
    assert result.boxes.tolist() == [[13, 1, 18, 4]]
    assert seen(result) == [13, 1, 18, 4]


def test_crop_by_hand() -> None:
    result = crop(painted(10, 20, (2, 1, 7, 4)), top=2, left=4, height=6, width=9)
    assert result.image.shape == (6, 9, 3)
    assert result.boxes.tolist() == [[0, 0, 3, 2]]
    assert seen(result) == [0, 0, 3, 2]


def test_crop_leaves_out_what_is_outside() -> None:
    result = crop(painted(10, 20, (2, 1, 7, 4)), top=4, left=0, height=6, width=20)
    assert result.boxes.shape == (0, 4)
    assert result.labels.shape == (0,)


def test_resize_by_hand() -> None:
    result = resize(painted(10, 20, (4, 2, 8, 6)), 20, 60)
    assert result.boxes.tolist() == [[12, 4, 24, 12]]
    assert np.abs(np.subtract(seen(result), [12, 4, 24, 12])).max() <= 1


def test_resize_to_the_same_size_is_free() -> None:
    sample = painted(10, 20, (4, 2, 8, 6))
    assert resize(sample, 10, 20) is sample


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # the short side decides
        ((640, 480), 800, 1333, (1066, 800)),
        ((500, 1000), 800, 1333, (666, 1332)),  # the long side is the limit: 1333 * 0.5 rounds to 666
        ((300, 300), 96, 96, (96, 96)),
        ((10, 3000), 800, 1333, (4, 1200)),
        ((7, 20), 40, None, (40, 114)),
    ],
)
def test_short_side_rule(size: tuple[int, int], short: int, longest: int | None, expected: tuple[int, int]) -> None:
    sample = Sample(np.zeros((*size, 3), np.uint8), np.empty((0, 4)), np.empty(0, int))
    assert resize_short(sample, short, longest).image.shape[:2] == expected


def test_shrinking_averages() -> None:
    """Every second column white: without averaging the result would be black or white."""
    image = np.zeros((8, 64, 3), np.uint8)
    image[:, ::2] = 255
    small = resize(Sample(image, np.empty((0, 4)), np.empty(0, int)), 1, 8).image
    assert small[:, 1:-1].min() > 100
    assert small[:, 1:-1].max() < 155


AUG = AugmentationSpec(
    scales=(24, 32),
    train_random_resize=(20, 28),
    train_random_crop_min=32,
    train_random_crop_max=40,
    random_resize_max_size=48,
    test_random_resize=32,
)
LSJ = AugmentationSpec(fixed_random_crop=40)


@given(
    aug=st.sampled_from([AUG, LSJ]),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    corners=st.lists(st.tuples(*[st.floats(-20, 120, allow_nan=False)] * 4), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_boxes_stay_inside_and_labels_with_them(
    aug: AugmentationSpec, height: int, width: int, corners: list[tuple[float, ...]], seed: int
) -> None:
    """Also: a crop_min over the side of the image is no crash, and no image is larger than allowed."""
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]).reshape(-1, 4)
    sample = Sample(np.zeros((height, width, 3), np.uint8), boxes, np.arange(len(boxes)))
    result = train_transform(aug)(sample, np.random.default_rng(seed))
    high, wide = result.image.shape[:2]
    for label in range(len(boxes)):  # alone, a box goes the same way: none took the label of another
        alone = train_transform(aug)(
            Sample(sample.image, boxes[label : label + 1], np.array([label])), np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(result.boxes[result.labels == label], alone.boxes)
    assert 1 <= max(high, wide) <= (40 if aug is LSJ else 48)
    assert len(result.boxes) == len(result.labels) <= len(boxes)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= (wide, high, wide, high)).all()
    assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()


@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 2**32))
def test_the_orientation_is_known_before_the_pixels(height: int, width: int, seed: int) -> None:
    sample = Sample(np.zeros((height, width, 3), np.uint8), np.empty((0, 4)), np.empty(0, int))
    high, wide = train_transform(AUG)(sample, np.random.default_rng(seed)).image.shape[:2]
    assume(high != wide)  # rounding makes squares of nearly square images, which fit anywhere
    assert augmented_tall(AUG, height, width, np.random.default_rng(seed)) == (high > wide)


def test_the_order_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flip, resize without a limit, crop, resize with it; or flip and the last; with jitter flip, resize, crop."""
    done: list[str] = []

    def noted(name: str) -> None:
        original = getattr(transforms, name)

        def run(sample: Sample, *rest: object) -> Sample:
            limit = f" {rest[1]}" if name == "resize_short" else ""
            done.append(name + limit)
            return original(sample, *rest)  # type: ignore[no-any-return]

        monkeypatch.setattr(transforms, name, run)

    for name in ("flip", "resize_short", "resize", "random_crop"):
        noted(name)

    def ways(aug: AugmentationSpec) -> set[tuple[str, ...]]:
        found = set()
        for seed in range(60):
            done.clear()
            train_transform(aug)(painted(60, 50, (15, 20, 35, 44)), np.random.default_rng(seed))
            steps = [step for step in done if step != "resize" or aug.fixed_random_crop]
            found.add(tuple(steps))
        return found

    short = ("resize_short 48",)
    long = ("resize_short None", "random_crop", *short)
    assert ways(AUG) == {short, long, ("flip", *short), ("flip", *long)}
    jitter = ("resize", "random_crop")
    assert ways(LSJ) == {jitter, ("flip", *jitter)}
    assert ways(replace(AUG, horizontal_flip_prob=0.0)) == {short, long}
    assert ways(replace(AUG, horizontal_flip_prob=1.0)) == {("flip", *short), ("flip", *long)}


@pytest.mark.parametrize("aug", [AUG, LSJ])
def test_the_box_follows_the_pixels(aug: AugmentationSpec) -> None:
    kept = 0
    for seed in range(60):
        result = train_transform(aug)(painted(60, 50, (15, 20, 35, 44)), np.random.default_rng(seed))
        if len(result.boxes) and (result.boxes[0, 2:] - result.boxes[0, :2]).min() > 3:
            kept += 1
            # A blurred edge moves by at most a pixel and a half when both are rounded.
            assert np.abs(np.subtract(seen(result), result.boxes[0])).max() <= 1.5
    assert kept > 30


def test_equal_seeds_give_equal_samples_and_others_differ() -> None:
    sample = painted(60, 50, (15, 20, 35, 44))
    first, second, other = (train_transform(AUG)(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.image == second.image).all()
    assert (first.boxes == second.boxes).all()
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_both_branches_and_both_directions_occur() -> None:
    """A box on the left half, with 200 seeds: each outcome has probability near 1/2, absent with 2^-200."""
    sides = [
        train_transform(AUG)(painted(28, 28, (0, 0, 10, 28)), np.random.default_rng(seed)).boxes for seed in range(200)
    ]
    assert any(len(box) and box[0, 0] == 0 for box in sides)
    assert any(len(box) and box[0, 0] > 10 for box in sides)


def test_jitter_reaches_both_ends() -> None:
    """Scale 0.1 to 2 of the 40 px box: 300 draws miss the lowest or the highest tenth with 2 * 0.9^300, 1e-13."""
    shapes = [
        train_transform(LSJ)(painted(50, 100, (0, 0, 100, 50)), np.random.default_rng(seed)).image.shape[:2]
        for seed in range(300)
    ]
    assert min(wide for _, wide in shapes) <= 0.29 * 40
    assert max(shapes) == (40, 40)


def test_crop_window_covers_all_positions() -> None:
    """2 x 3 positions, 200 draws: one is missed with probability 6 * (5/6)^200, below 1e-14."""
    image = np.arange(6 * 7, dtype=np.uint8).reshape(6, 7, 1).repeat(3, axis=2)
    sample = Sample(image, np.empty((0, 4)), np.empty(0, int))
    rng = np.random.default_rng(0)
    corners = {int(random_crop(sample, 5, 5, rng).image[0, 0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 7, 8, 9}


def test_evaluation_sizes() -> None:
    sample = painted(60, 50, (15, 20, 35, 44))
    rng = np.random.default_rng(0)
    assert eval_transform(AUG)(sample, rng).image.shape == (38, 32, 3)
    fixed = eval_transform(AUG, (30, 100))(sample, rng)
    assert fixed.image.shape == (30, 100, 3)
    assert fixed.boxes.tolist() == [[30, 10, 70, 22]]


def test_padded_sizes() -> None:
    wide, tall = (24, 40), (40, 24)
    assert padded_size(AUG, [wide], train=True) == (32, 48)
    assert padded_size(AUG, [tall], train=True) == (48, 32)
    assert padded_size(AUG, [wide, tall], train=True) == (48, 48)
    free = AugmentationSpec(fixed_padding=False, pad_size_divisor=16)
    assert padded_size(free, [wide, (33, 8)], train=True) == (48, 48)
    assert padded_size(LSJ, [(12, 40)], train=True) == (40, 40)
    assert padded_size(LSJ, [(12, 40)], train=False) == (800, 1333)


def test_decode_turns_and_converts() -> None:
    """EXIF orientation 6 asks for a quarter turn clockwise: the left column becomes the top row."""
    image = Image.new("L", (6, 4))
    image.paste(255, (0, 0, 2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    pixels = decode(file)
    assert pixels.shape == (6, 4, 3)
    assert (pixels[:2] == 255).all()
    assert (pixels[2:] == 0).all()


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def test_decode_takes_the_upper_half_of_sixteen_bits() -> None:
    values = np.array([[0, 255, 256], [32768, 51200, 65535]], dtype=np.uint16)
    pixels = decode(saved(Image.fromarray(values)))
    assert pixels[..., 0].tolist() == [[0, 0, 0], [127, 199, 255]]
    assert (pixels == pixels[..., :1]).all()
    unit = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(saved(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_decode_makes_rgb_of_every_mode(mode: str) -> None:
    image = Image.new("RGB", (4, 3), "white")
    image.putpixel((0, 0), (0, 0, 0))
    pixels = decode(saved(image.convert(mode), "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (3, 4, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].max() <= 1
    assert pixels[1:].min() >= 254


def test_a_palette_with_transparency_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("P", (4, 3))
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert decode(saved(image, transparency=b"\x00\xff"))[0, 0].tolist() == [255, 0, 0]
    assert not recwarn.list


def test_whatever_cannot_be_decoded_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(Image.effect_noise((64, 64), 90)).getvalue()
    file = tmp_path / "a.png"
    for content in (b"", b"text", good[:300], good[:40] + b"\0" * 30 + good[70:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png` cannot be decoded .*replace it"):
            decode(file)
    file.write_bytes(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert decode(file).shape == (64, 64, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 31)  # PIL refuses twice its limit
    with pytest.raises(DataError, match="decompression bomb"):
        decode(file)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(tmp_path / "absent.png")
