"""Augmentation in the order TAO and the paper use, on uint8 images. Knows boxes in pixels; knows no files, no batches.

All chance comes from the generator that is passed in, so a sample depends on nothing but its seed. Resizing is PIL's
bilinear, which averages when it shrinks.
"""

import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from model.errors import DataError
from model.spec import AugmentationSpec

JITTER = (0.1, 2.0)
"""Range of the scale in large-scale jitter, relative to the crop's side."""

DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""PIL's words for a file that is no image, is cut off, or claims a size that no image has."""

LEAST_EXTENT = 1e-3
"""Pixels; what is thinner shows nothing, and may round to a box without extent."""


class Sample(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (N, 4) float64: x0, y0, x1, y1 in pixels of `image`
    labels: np.ndarray  # (N,) int64


Transform = Callable[[Sample, np.random.Generator], Sample]


def decode(path: Path | BinaryIO) -> np.ndarray:
    """The image as it is seen: EXIF orientation applied, RGB; of 16 grey bits the upper 8, of transparency nothing.
    Returns (H, W, 3) uint8. Raises DataError, which names the file, for whatever cannot be decoded."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are still allowed
            ImageOps.exif_transpose(image, in_place=True)  # each copy costs a sixth of the decoding
            seen = _eight_bits(image)
            return np.asarray(seen if seen.mode == "RGB" else seen.convert("RGB"))
    except DECODING_ERRORS as error:
        raise DataError(f"`{path}` cannot be decoded ({error}); replace it or take it out of the set.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits as 8; PIL's own conversion would cut them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    white = 65535.0 if image.mode != "F" or values.max() > 255 else 255.0 if values.max() > 1 else 1.0
    return Image.fromarray(np.clip(values * (255.0 / white), 0, 255).astype(np.uint8))


def train_transform(aug: AugmentationSpec) -> Transform:
    """Flip, then either large-scale jitter (when `fixed_random_crop` is set), or with equal chance a resize, or a
    resize, a crop and a resize."""

    def jittered(sample: Sample, rng: np.random.Generator) -> Sample:
        side = aug.fixed_random_crop
        assert side is not None
        height, width = sample.image.shape[:2]
        factor = rng.uniform(*JITTER) * side / max(height, width)
        sample = resize(sample, max(1, round(height * factor)), max(1, round(width * factor)))
        return random_crop(sample, side, side, rng)

    def scaled(sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() < 0.5:
            sample = resize_short(sample, _choice(aug.train_random_resize, rng), None)
            height, width = sample.image.shape[:2]
            wide = _crop_side(aug, width, rng)
            sample = random_crop(sample, _crop_side(aug, height, rng), wide, rng)
        return resize_short(sample, _choice(aug.scales, rng), aug.random_resize_max_size)

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        sample = _inside(sample)
        if rng.random() < aug.horizontal_flip_prob:
            sample = flip(sample)
        return scaled(sample, rng) if aug.fixed_random_crop is None else jittered(sample, rng)

    return transform


def augmented_tall(aug: AugmentationSpec, height: int, width: int, rng: np.random.Generator) -> bool:
    """Whether an image of this size is higher than wide after `train_transform` with the same generator: the same
    draws, without the pixels. Not meant for large-scale jitter, where all crops are square."""
    rng.random()  # the flip
    if rng.random() < 0.5:
        height, width = short_side(height, width, _choice(aug.train_random_resize, rng), None)
        width = min(width, _crop_side(aug, width, rng))
        height = min(height, _crop_side(aug, height, rng))
    return height > width


def eval_transform(aug: AugmentationSpec, fixed_size: tuple[int, int] | None = None) -> Transform:
    """Resize to `test_random_resize`, keeping the aspect; or to `fixed_size` (height, width), not keeping it."""

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        sample = _inside(sample)
        if fixed_size is not None:
            return resize(sample, *fixed_size)
        return resize_short(sample, aug.test_random_resize, aug.random_resize_max_size)

    return transform


def padded_size(aug: AugmentationSpec, sizes: Sequence[tuple[int, int]], *, train: bool) -> tuple[int, int]:
    """The height and width that a batch of images of these (height, width) is padded to."""
    tall = [height for height, _ in sizes]
    wide = [width for _, width in sizes]
    if train and aug.fixed_random_crop is not None:
        tall, wide = [*tall, aug.fixed_random_crop], [*wide, aug.fixed_random_crop]
    elif aug.fixed_padding:
        long = aug.random_resize_max_size
        short = min(long, max(aug.scales) if train else aug.test_random_resize)
        for height, width in sizes:
            tall.append(long if height > width else short)
            wide.append(short if height > width else long)
    step = aug.pad_size_divisor or 1
    return -(-max(tall) // step) * step, -(-max(wide) // step) * step


def flip(sample: Sample) -> Sample:
    """Left and right exchanged."""
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = sample.image.shape[1] - sample.boxes[:, [2, 0]]
    return sample._replace(image=sample.image[:, ::-1], boxes=boxes)


def resize(sample: Sample, height: int, width: int) -> Sample:
    old_height, old_width = sample.image.shape[:2]
    if (height, width) == (old_height, old_width):
        return sample
    image = Image.fromarray(np.ascontiguousarray(sample.image))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    # Multiplied before it is divided: a box that touches the edge then touches the new one, and never crosses it.
    boxes = sample.boxes * (width, height, width, height) / (old_width, old_height, old_width, old_height)
    return sample._replace(image=pixels, boxes=boxes)


def resize_short(sample: Sample, short: int, longest: int | None) -> Sample:
    """Resize so that the short side is `short`, or less where the long side would exceed `longest`; aspect kept."""
    height, width = sample.image.shape[:2]
    return resize(sample, *short_side(height, width, short, longest))


def short_side(height: int, width: int, short: int, longest: int | None) -> tuple[int, int]:
    """The height and width that `resize_short` gives an image of this height and width."""
    low, high = min(height, width), max(height, width)
    if longest is not None and high * short > longest * low:
        short = max(1, round(longest * low / high))
    long = max(1, int(short * high / low))
    if longest is not None:
        long = min(long, longest)
    return (short, long) if height <= width else (long, short)


def random_crop(sample: Sample, height: int, width: int, rng: np.random.Generator) -> Sample:
    """A window of at most this size, anywhere inside the image."""
    old_height, old_width = sample.image.shape[:2]
    height, width = min(height, old_height), min(width, old_width)
    top = int(rng.integers(old_height - height + 1))
    left = int(rng.integers(old_width - width + 1))
    return crop(sample, top, left, height, width)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut a window out; boxes are cut with it, and those outside are left out with their labels."""
    image = sample.image[top : top + height, left : left + width]
    return _inside(Sample(image, sample.boxes - (left, top, left, top), sample.labels))


def _inside(sample: Sample) -> Sample:
    """Boxes cut to the image; those without extent there are left out."""
    height, width = sample.image.shape[:2]
    boxes = np.clip(sample.boxes, 0.0, (width, height, width, height))
    keep = (boxes[:, 2:] - boxes[:, :2] > LEAST_EXTENT).all(axis=1)
    return Sample(sample.image, boxes[keep], sample.labels[keep])


def _crop_side(aug: AugmentationSpec, side: int, rng: np.random.Generator) -> int:
    """Uniform in [crop_min, min(side, crop_max)]; a crop_min above the image's side takes the whole side."""
    low = min(aug.train_random_crop_min, side)
    return int(rng.integers(low, max(low, min(side, aug.train_random_crop_max)) + 1))


def _choice(values: Sequence[int], rng: np.random.Generator) -> int:
    return values[int(rng.integers(len(values)))]
