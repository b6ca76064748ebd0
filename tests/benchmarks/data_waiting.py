"""What a training waits for its data: the share of an epoch, and the first decoding of many JPEGs against PIL alone.

    python tests/benchmarks/data_waiting.py epoch [--workers 1] [--epochs 3] [key=value ...]
    python tests/benchmarks/data_waiting.py r50 [--pictures 8] [--size 512]
    python tests/benchmarks/data_waiting.py decode [--pictures 10000] [--width 480] [--height 320]

`epoch` trains the quickstart's detector (data/digits, `ddetr make-data digits`) by the real training with one thread,
and times every wait for a batch, of training and of validation; the first epoch, which fills the cache, is left out.
`r50` does the same for a ResNet-50 with 6 + 6 layers, batch 2, on drawn pictures. Waits are by the clock: a busy
machine lengthens them and the steps. So the CPU seconds of the data workers stand beside those of the training process:
data cannot be waited for while they are the fewer. `decode` compares CPU seconds of one process, in turns.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image, ImageFilter

from model import threads

ROOT = Path(__file__).resolve().parents[2]
DIFFERENT = 50
"""Pictures that are drawn; more files hold the same ones again."""


def pictures(folder: Path, count: int, width: int, height: int) -> list[dict[str, Any]]:
    """Smoothed noise as JPEGs of quality 90, about as hard to decode as photographs. Returns COCO image records."""
    rng, found = np.random.default_rng(0), []
    for number in range(min(count, DIFFERENT)):
        noise = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        noise.resize((width, height)).filter(ImageFilter.GaussianBlur(1)).save(folder / f"{number}.jpg", quality=90)
    for number in range(count):
        if number >= DIFFERENT:
            (folder / f"{number}.jpg").write_bytes((folder / f"{number % DIFFERENT}.jpg").read_bytes())
        found.append({"id": number + 1, "file_name": f"{number}.jpg", "width": width, "height": height})
    return found


class Waits:
    """Times every wait of the training's loaders, and what this process and its data workers compute."""

    def __init__(self) -> None:
        from model.data.datamodule import Loader

        self.seconds, self.computed, self.begun, self.lines = 0.0, 0.0, 0.0, []
        self._own, self._theirs = 0.0, 0.0
        real: Callable[[Any], Iterator[Any]] = Loader.__iter__

        def timed(loader: Any) -> Iterator[Any]:
            batches = real(loader)
            while True:
                begun, before = time.perf_counter(), time.thread_time()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    self.seconds += time.perf_counter() - begun
                    self.computed += time.thread_time() - before
                yield batch

        Loader.__iter__ = timed  # type: ignore[method-assign]
        self.start()

    def start(self) -> None:
        self.seconds, self.computed, self.begun = 0.0, 0.0, time.perf_counter()
        self._own, self._theirs = time.process_time(), self._workers()

    def _workers(self) -> float:
        ticks = 0
        for child in multiprocessing.active_children():
            ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def epoch(self, measurement: Any) -> None:
        whole = time.perf_counter() - self.begun
        own, theirs = time.process_time() - self._own, self._workers() - self._theirs
        self.lines.append((self.seconds / whole, own, theirs))
        print(
            f"epoch {measurement.epoch}: {whole:.2f} s by the clock, waited {self.seconds:.3f} s "
            f"({self.seconds / whole:.2%}); CPU of training {own:.2f} s, of it in these waits "
            f"{self.computed / own:.2%}; of data workers {theirs:.2f} s",
            flush=True,
        )
        self.start()


def trained(spec: dict[str, Any], workers: int, what: str) -> None:
    import logging
    import warnings

    from model.spec import ExperimentSpec
    from model.train import train

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    threads.limit(1)
    waits = Waits()
    with tempfile.TemporaryDirectory() as name:
        # One more core than workers, which is how many a training needs to start them.
        train(ExperimentSpec.from_dict(spec), Path(name), cpus=workers + 1, on_epoch=waits.epoch)
    shares = [share for share, *_ in waits.lines[1:]]
    own, theirs = (statistics.mean(line[place] for line in waits.lines[1:]) for place in (1, 2))
    print(
        f"{what}, {workers} data workers, warm cache: waits {statistics.mean(shares):.2%} of an epoch "
        f"({min(shares):.2%} to {max(shares):.2%}); CPU of data {theirs:.2f} s, of training {own:.2f} s an epoch"
    )


def epoch(workers: int, epochs: int, more: list[str]) -> None:
    from hpo.spec import read_request

    os.chdir(ROOT)  # the paths of its data are relative
    # At least 1 in a spec; a training on one core starts none.
    keys = [f"train.num_epochs={epochs}", f"dataset.workers={max(1, workers)}", *more]
    trained(read_request(ROOT / "experiments" / "quickstart.yaml", keys).spec.to_dict(), workers, "quickstart")


def r50(workers: int, count: int, size: int, scratch: Path) -> None:
    images = pictures(scratch, count, 640, 480)
    boxes = [
        {"id": place + 1, "image_id": place + 1, "category_id": 1 + place % 3, "bbox": [50, 40, 300, 200], "iscrowd": 0}
        for place in range(count)
    ]
    annotations = [{**box, "area": 60000.0} for box in boxes]
    categories = [{"id": key, "name": str(key)} for key in (1, 2, 3)]
    file = scratch / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    source = {"image_dir": str(scratch), "json_file": str(file)}
    sizes = {"scales": [size], "random_resize_max_size": size, "train_random_resize": [size], "fixed_padding": False}
    spec = {
        "dataset": {
            "train_data_sources": [source],
            "val_data_sources": [source],
            "num_classes": 4,
            "batch_size": 2,
            "workers": workers,
            "augmentation": sizes,
        },
        "train": {"num_epochs": 2},
    }
    trained(spec, workers, f"ResNet-50 at {size} pixels, batch 2, {count // 2} steps")


def decode(count: int, width: int, height: int, scratch: Path) -> None:
    from model.data.cache import CachedImages, DecodedImages, open_images
    from model.data.records import ImageRecord, ImageTable

    begun = time.perf_counter()
    found = pictures(scratch, count, width, height)
    records = ImageTable(ImageRecord(each["id"], scratch / each["file_name"], height, width) for each in found)
    print(f"{count} JPEGs of {width} x {height}, made in {time.perf_counter() - begun:.0f} s", flush=True)
    ours, paths = DecodedImages(records), [scratch / each["file_name"] for each in found]

    def plain(place: int) -> np.ndarray:
        with Image.open(paths[place]) as image:
            return np.asarray(image.convert("RGB"))

    taken: dict[str, float] = {"PIL alone": 0.0, "our decoding": 0.0}
    part = max(1, count // 20)
    for start in range(0, count, part):
        for name, read in (("PIL alone", plain), ("our decoding", ours.__getitem__)):
            before = time.process_time()
            for place in range(start, min(start + part, count)):
                read(place)
            taken[name] += time.process_time() - before
    for name in ("first opening, into the cache", "second opening"):
        before = time.process_time()
        images = open_images(records)
        taken[name] = time.process_time() - before
    before = time.process_time()
    for place in range(count):
        images[place].sum(dtype=np.int64)
    taken["reading and adding up all from the cache"] = time.process_time() - before
    assert isinstance(images, CachedImages)
    for name, seconds in taken.items():
        print(
            f"{name}: CPU {seconds:.2f} s, {1000 * seconds / count:.3f} ms an image, {seconds / taken['PIL alone']:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("epoch", "r50", "decode"))
    parser.add_argument("keys", nargs="*", metavar="key=value")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--height", type=int, default=320)
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDETR_CACHE"] = f"{folder}/cache"
        drawn = Path(folder) / "pictures"
        drawn.mkdir()
        if given.what == "epoch":
            epoch(given.workers, given.epochs, given.keys)
        elif given.what == "r50":
            r50(given.workers, given.pictures or 8, given.size, drawn)
        else:
            decode(given.pictures or 10000, given.width, given.height, drawn)
