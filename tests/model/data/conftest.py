import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.spec import Source

MakeCoco = Callable[..., Source]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("DDETR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """Write a small COCO set of noise images and return it as a source. `boxes`: (image id, category, x, y, w, h)."""

    def make(
        name: str = "set",
        ids: tuple[int, ...] = (3, 8),
        size: tuple[int, int] = (20, 30),
        boxes: tuple[tuple[int, int, float, float, float, float], ...] = ((3, 2, 1, 2, 10, 8),),
        categories: tuple[tuple[int, str], ...] = ((2, "cat"), (5, "dog")),
        **extra: object,
    ) -> Source:
        folder = tmp_path / name / "images"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for key in ids:
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{key}.png")
        content = {
            "images": [{"id": key, "file_name": f"{key}.png", "height": size[0], "width": size[1]} for key in ids],
            "annotations": [
                {"id": number, "image_id": key, "category_id": label, "bbox": [x, y, w, h], "area": w * h, **extra}
                for number, (key, label, x, y, w, h) in enumerate(boxes)
            ],
            "categories": [{"id": key, "name": label} for key, label in categories],
        }
        file = tmp_path / name / "annotations.json"
        file.write_text(json.dumps(content))
        return Source(image_dir=str(folder), json_file=str(file))

    return make
