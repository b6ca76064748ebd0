"""What a review says of data that can be trained on: short, and from what is in memory already. No more than counts;
`model.data.audit` says which and what to change."""

from collections.abc import Mapping

import numpy as np

from model.data.classes import FEW_BOXES
from model.data.coco import CocoIndex
from model.data.files import same_contents

COMPARED = 5000
"""Images of all splits together, up to which their contents are compared: a fraction of a second on a local disk."""


def remarks(splits: Mapping[str, CocoIndex]) -> list[str]:
    """A clause for each thing that makes the result worse or the metric wrong."""
    found = []
    if sum(len(index.images) for index in splits.values()) <= COMPARED:
        paths = {split: [str(image.path) for image in index.images] for split, index in splits.items()}
        groups, _ = same_contents(paths)
        for split in splits:
            count = sum(len(group[split]) for group in groups if split in group and "train" in group)
            if count and split != "train":
                found.append(f"{count:,} of {len(paths[split]):,} images of {split} are also in train")
    for split, index in splits.items():
        if (count := _repeated(index)) > 0:
            found.append(f"{count:,} annotations of {split} are there twice")
        if index.clamped + index.dropped:
            found.append(f"{index.clamped + index.dropped:,} boxes of {split} do not lie in their image")
    train = splits["train"]
    counts = np.bincount(train.annotations.labels, minlength=max(train.categories, default=0) + 1)
    few = [f"{name} ({counts[key]})" for key, name in train.categories.items() if 0 < counts[key] < FEW_BOXES]
    if few:
        more = f" and {len(few) - 3} more classes" if len(few) > 3 else ""
        found.append(f"train has fewer than {FEW_BOXES} boxes of {', '.join(few[:3])}{more}")
    return found


def _repeated(index: CocoIndex) -> int:
    """Annotations that are equal to an earlier one of their image."""
    if not len(index.annotations.labels):
        return 0
    image = np.repeat(np.arange(len(index.images)), np.diff(index.first))
    rows = np.column_stack([image, index.annotations.labels, index.annotations.boxes])
    return len(rows) - len(np.unique(rows, axis=0))
