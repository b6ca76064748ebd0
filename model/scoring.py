"""Detections against ground truth by COCO's rules. The arithmetic is hotcoco's, which repeats pycocotools' bit for bit
in a fiftieth of the time, or pycocotools' own where hotcoco cannot be used. Knows an index and rows; knows no network.
"""

import functools
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.data.coco import CocoIndex

log = logging.getLogger(__name__)


def compare(
    index: CocoIndex,
    rows: np.ndarray,
    classes: Sequence[int],
    *,
    by_size: bool = True,
    thresholds: Sequence[float] = (),
    reference: bool = False,
) -> Any:
    """A COCOeval of either library after its `evaluate`, with the same parameters and records; `reference`: of
    pycocotools. In it an image's id is its place in the order of the index's ids.

    rows (N, 7) as CocoEvaluator.rows; those of other images and classes are left out. thresholds: of IoU, in place of
    the ten usual ones.
    """
    order = np.argsort(index.image_ids)
    place, known = _find(rows[:, 0], index.image_ids[order])
    wanted = known & _find(rows[:, 6], np.sort(classes))[1]
    rows = np.concatenate([place[wanted, None], rows[wanted, 1:]], axis=1)
    images = np.repeat(np.argsort(order), np.diff(index.first))
    hotcoco = None if reference or not np.isfinite(rows).all() else _hotcoco()
    with redirect_stdout(io.StringIO()):
        found = _by_hotcoco(hotcoco, index, images, rows) if hotcoco else _by_pycocotools(index, images, rows)
        found.params.catIds = list(classes)
        if thresholds:
            found.params.iouThrs = np.array(thresholds)
        if not by_size:
            found.params.areaRng, found.params.areaRngLbl = found.params.areaRng[:1], ["all"]
        found.evaluate()
    return found


def summarise(evaluation: Any) -> tuple[list[float], np.ndarray]:
    """The twelve numbers of what `compare` gave, and precisions: IoU threshold x recall x class, -1 where unknown."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # hotcoco's, of sizes that were left out
        evaluation.accumulate()
        evaluation.summarize()
    # precision: IoU threshold x recall x class x area range x detection limit
    return [float(number) for number in evaluation.stats], evaluation.eval["precision"][:, :, :, 0, -1]


@functools.cache
def _hotcoco() -> ModuleType | None:
    try:
        import hotcoco
    except ImportError as error:
        log.warning("hotcoco cannot be imported (%s): COCO numbers are pycocotools', the same and slower", error)
        return None
    return hotcoco


def _find(values: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of `values` (N,) in the sorted `among`, and whether they are in it."""
    place = np.searchsorted(among, values)
    return place, np.append(among.astype(float), np.nan)[place] == values


def _by_hotcoco(hotcoco: ModuleType, index: CocoIndex, images: np.ndarray, rows: np.ndarray) -> Any:
    """images (M,): of each annotation."""
    truth = index.annotations
    xywh = np.concatenate([truth.boxes[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2]], axis=1)
    records, categories = _names(index)
    ground = hotcoco.COCO.from_arrays(
        records, categories, images, truth.labels, xywh, area=truth.areas, iscrowd=truth.crowd
    )
    return hotcoco.COCOeval(ground, ground.load_res(rows), "bbox")


def _by_pycocotools(index: CocoIndex, images: np.ndarray, rows: np.ndarray) -> COCOeval:
    truth = index.annotations
    columns = (images, truth.labels, truth.boxes, truth.areas, truth.crowd)
    ground = [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, label, (x0, y0, x1, y1), area, crowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), start=1
        )
    ]
    found = [
        {
            "id": number,
            "image_id": int(image),
            "category_id": int(label),
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": 0,
            "score": score,
        }
        for number, (image, x, y, width, height, score, label) in enumerate(rows.tolist(), start=1)
    ]
    return COCOeval(_coco(index, ground), _coco(index, found), "bbox")


def _coco(index: CocoIndex, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    images, categories = _names(index)
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _names(index: CocoIndex) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    categories = [{"id": key, "name": name} for key, name in index.categories.items()]
    return [{"id": place} for place in range(len(index.images))], categories
