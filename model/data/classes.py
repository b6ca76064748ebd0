"""Ids, names and counts of classes within and between the splits of a dataset: what does not fit together, and the fix.

Looks at annotation files that are read already; knows no images.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from model.data.sheets import Sheet, boxes_of
from model.data.sources import called
from model.findings import Finding, some, them
from model.spec import ExperimentSpec

FEW_BOXES = 20
"""Of a class in training, below which little is learnt."""
UNEVEN = 100
"""Times as many boxes of the commonest class as of the rarest."""


def classes(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]], num_classes: int | None) -> Iterator[Finding]:
    """Ids, names and boxes of classes within and between the splits."""
    names: dict[int, str] = {}
    for split, sheets in splits.items():
        for sheet in sheets:
            for key, name in sheet.categories.items():
                if names.setdefault(key, name) != name:
                    yield Finding(
                        "data", "problem",
                        f"{split}: `{called(sheet.file)}`: category {key} is `{name}`, but an earlier file calls it "
                        f"`{names[key]}`",
                        "give all files the same ids and names",
                    )  # fmt: skip
    if not names:
        return
    highest = max(names)
    if num_classes is not None and highest >= num_classes:
        yield Finding(
            "data", "problem",
            f"every category id must be below `dataset.num_classes`, but there is id {highest} (`{names[highest]}`) "
            f"and num_classes={num_classes}",
            f"set dataset.num_classes={highest + 1} (the largest id plus one), or leave it out",
        )  # fmt: skip
    elif num_classes is not None and num_classes > highest + 1:
        yield Finding(
            "data", "note",
            f"`dataset.num_classes` is {num_classes}, but the largest category id is {highest}: "
            f"{num_classes - highest - 1} outputs learn nothing",
            f"set dataset.num_classes={highest + 1}, or leave it out; weights of another size must then be fitted anew",
        )  # fmt: skip
    gaps = [key for key in range(1, highest) if key not in names]
    if gaps:
        yield Finding(
            "data", "note",
            f"category ids go up to {highest}, and not all below it are used ({some(gaps)} are not): ids stay as they "
            "are, and their outputs learn nothing",
            "nothing, or number the categories from 1 on without gaps in all files",
        )  # fmt: skip
    yield from _evaluated(spec.dataset.eval_class_ids, names)
    counts = {split: boxes_of(sheets) for split, sheets in splits.items()}
    if "train" in counts:
        yield from _learnt(names, counts)


def _evaluated(ids: Sequence[int] | None, names: Mapping[int, str]) -> Iterator[Finding]:
    if ids and not set(ids) <= set(names):
        yield Finding(
            "data", "problem",
            f"`dataset.eval_class_ids` must be category ids of the annotations, but is {list(ids)} and they have "
            f"{some(sorted(names))}",
            "leave it out to evaluate all",
        )  # fmt: skip
    elif ids and tuple(ids) == (1,) and len(names) > 1:
        yield Finding(
            "data", "warning",
            f"`dataset.eval_class_ids` is [1], so the metric knows `{names[1]}` alone, of {len(names)} classes",
            "leave it out to evaluate all",
        )  # fmt: skip


def _learnt(names: Mapping[int, str], counts: Mapping[str, Counter[int]]) -> Iterator[Finding]:
    """Boxes of each class, where learning and scoring do not fit together."""
    train = counts["train"]
    if train:
        common = [f"{names.get(key, key)} {number:,}" for key, number in train.most_common()]
        yield Finding("data", "ok", f"train boxes of each class: {some(common, 10)}")
    absent = [f"{names[key]} ({key})" for key in sorted(names) if not train[key]]
    if absent and train:
        yield Finding(
            "data", "warning", f"train: no box is of {some(absent)}: nothing is learnt of {them(absent)}",
            f"annotate {them(absent)}, or take {them(absent)} out of `categories`",
        )  # fmt: skip
    for split, boxes in counts.items():
        strange = [f"{names[key]} ({key})" for key in sorted(boxes) if not train[key]]
        if split != "train" and strange and train:
            yield Finding(
                "data", "warning", f"{split}: boxes of {some(strange)}, which training never sees, count as misses",
                f"annotate {them(strange)} in the training data too, or split the images anew",
            )  # fmt: skip
        unasked = [f"{names[key]} ({key})" for key in sorted(names) if train[key] and not boxes[key]]
        if split != "train" and unasked and boxes:
            yield Finding(
                "data", "note", f"{split}: no box is of {some(unasked)}, so the metric does not know {them(unasked)}",
                f"put images with {them(unasked)} into {split}",
            )  # fmt: skip
    few = [f"{names[key]} ({train[key]})" for key in sorted(names) if 0 < train[key] < FEW_BOXES]
    if few:
        yield Finding(
            "data", "warning", f"train: fewer than {FEW_BOXES} boxes of {some(few)}", "annotate more, or join classes"
        )
    ordered = train.most_common()
    if ordered and ordered[0][1] > UNEVEN * ordered[-1][1]:
        (most, many), (least, rare) = ordered[0], ordered[-1]
        yield Finding(
            "data", "note", f"train: {many:,} boxes of {names[most]}, {rare:,} of {names[least]}: the rare class "
            "counts as much in the metric and is seldom seen",
            "collect more of it, or list its images in a file of their own with "
            "dataset.train_sampler=uniform_sampler",
        )  # fmt: skip
