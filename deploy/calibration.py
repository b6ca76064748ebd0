"""Images that ranges are measured on, in the form that a graph takes. Knows files and a sidecar; runs no graph.

Images are read as evaluation reads them (EXIF orientation, size, normalisation) and one batch at a time.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from deploy.sidecar import OnnxSidecar
from model.batch import normalise
from model.data.coco import CocoIndex, read_coco
from model.data.sources import local
from model.data.transforms import Sample, decode, resize
from model.errors import DataError
from model.infer_sources import images_below
from model.spec import ExperimentSpec

KEY = "gen_trt_engine.tensorrt.calibration.cal_image_dir"


class CalibrationImages:
    """Batches of a graph's input (B, 3, H, W): normalised float32 RGB, or uint8 for a graph that normalises itself.

    Iterated any number of times, always in the same order; files are decoded anew each time, so that no more than a
    batch is in memory. A graph of fixed batch gets that batch, the last one filled up with its first images.
    """

    def __init__(self, paths: Sequence[Path], described: OnnxSidecar, *, batch_size: int) -> None:
        assert paths
        assert batch_size > 0
        self.paths = tuple(paths)
        self._described = described
        fixed = described.input["batch"]
        self.batch_size = batch_size if fixed == -1 else fixed
        self._fill = fixed != -1

    @property
    def count(self) -> int:
        return len(self.paths)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the graph's input, pixels."""
        return self._described.size

    @property
    def digest(self) -> str:
        """sha256 of the files' contents, in order, and of what is done to them."""
        taken = self._described.input
        what = [str(taken[key]) for key in ("dtype", "colour", "height", "width", "resize", "mean", "std")]
        total = hashlib.sha256("\0".join(what).encode())
        for path in self.paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def first(self, count: int) -> "CalibrationImages":
        """`count` of them, or all, spread evenly."""
        places = sorted({round(place) for place in np.linspace(0, self.count - 1, min(count, self.count))})
        return CalibrationImages([self.paths[place] for place in places], self._described, batch_size=self.batch_size)

    def one_by_one(self) -> "CalibrationImages":
        """The same in the smallest batches that the graph takes."""
        return CalibrationImages(self.paths, self._described, batch_size=1)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self.count, self.batch_size):
            images = [self._read(path) for path in self.paths[start : start + self.batch_size]]
            if self._fill:
                images = [images[place % len(images)] for place in range(self.batch_size)]
            yield self._finish(np.stack(images))

    def _read(self, path: Path) -> np.ndarray:
        sample = Sample(decode(path), np.empty((0, 4)), np.empty(0, dtype=np.int64))
        return resize(sample, *self._described.size).image.transpose(2, 0, 1)

    def _finish(self, pixels: np.ndarray) -> np.ndarray:
        taken = self._described.input
        if taken["dtype"] == "uint8":
            return np.ascontiguousarray(pixels)
        sizes = torch.tensor([self._described.size] * len(pixels))
        normal, _ = normalise(torch.from_numpy(pixels), sizes, tuple(taken["mean"]), tuple(taken["std"]))
        return normal.numpy()


def from_folders(folders: Sequence[str], *, batch_size: int, batches: int, described: OnnxSidecar) -> CalibrationImages:
    """The first `batch_size * batches` images below `folders` (or archives), sorted within each. Raises DataError where
    there are fewer."""
    if not folders:
        raise DataError(f"`{KEY}` must name folders of images for INT8 and FP16, but is unset; set it.")
    found: list[Path] = []
    for folder in folders:
        if not folder.startswith("s3://") and not Path(folder).expanduser().exists():
            raise DataError(f"`{KEY}` must name folders of images, but `{folder}` does not exist; correct it.")
        inside = images_below(local(folder))
        if not inside:
            raise DataError(f"`{KEY}` must name folders of images, but `{folder}` holds none; put some there.")
        found += inside
    wanted = batch_size * batches
    if len(found) < wanted:
        raise DataError(
            f"`{KEY}` must hold cal_batch_size * cal_batches images, but there are {len(found)} and "
            f"{batch_size} * {batches} = {wanted} are asked for; add images, or lower cal_batches to "
            f"{len(found) // batch_size}."
            if len(found) >= batch_size
            else f"`{KEY}` must hold cal_batch_size * cal_batches images, but there are {len(found)} and "
            f"{batch_size} * {batches} = {wanted} are asked for; add images, or set cal_batch_size=1 and "
            f"cal_batches={len(found)}."
        )
    return CalibrationImages(found[:wanted], described, batch_size=batch_size)


def from_index(index: CocoIndex, count: int, described: OnnxSidecar, *, batch_size: int) -> CalibrationImages:
    """`count` images of a data set, or all it has: one of each of as many equal stretches, the same at each call. What
    cannot be decoded is passed over."""
    total = len(index.images)
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    problem: DataError | None = None
    for low, high in pairwise(edges.tolist()):
        path = index.images[int(rng.integers(low, high))].path
        try:
            decode(path)
        except DataError as error:
            problem = error
            continue
        paths.append(path)
    if not paths:
        raise problem or DataError("calibration needs at least one image, but the data set has none; name another.")
    return CalibrationImages(paths, described, batch_size=batch_size)


def from_spec(spec: ExperimentSpec, described: OnnxSidecar, most: int, *, batch_size: int = 1) -> CalibrationImages:
    """The images of `dataset.quant_calibration_data_sources`, all of them; else `most` of the training images. Raises
    DataError where the spec names neither."""
    source = spec.dataset.quant_calibration_data_sources
    if source.json_file:
        index = read_coco((source,))
        return from_index(index, len(index.images), described, batch_size=batch_size)
    if source.image_dir:
        paths = images_below(local(source.image_dir))
        if not paths:
            raise DataError(
                "`dataset.quant_calibration_data_sources.image_dir` must hold images, but there are none in "
                f"`{source.image_dir}`; name another."
            )
        return CalibrationImages(paths, described, batch_size=batch_size)
    named = [each for each in spec.dataset.train_data_sources if each.json_file]
    if not named:
        raise DataError(
            "INT8 and FP16 need images to measure ranges on, but `dataset.quant_calibration_data_sources` and "
            "`dataset.train_data_sources` name none; set dataset.quant_calibration_data_sources.image_dir."
        )
    return from_index(read_coco(named), most, described, batch_size=batch_size)
