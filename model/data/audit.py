"""What a user should mend in a dataset before training on it: all splits together, each finding with its fix.

Reads annotation files whole and image files in part; decodes a sample only, and says which. Prints nothing.
"""

from collections.abc import Iterator, Mapping, Sequence

from model.data.classes import classes
from model.data.files import duplicates, sampled
from model.data.sheets import Sheet, boxes_of, read_sheets
from model.findings import Finding
from model.spec import ExperimentSpec, Source

FEW_IMAGES = 50
"""To validate on, below which the metric moves by chance."""
TINY_SHARE = 0.1
"""Of boxes below a cell of the finest feature map, from which it is more than a note."""


def audit(spec: ExperimentSpec, num_classes: int | None) -> Iterator[Finding]:
    """Everything that can be said of the data that `spec` names, cheap things first. `num_classes` None: it will be
    derived from the training annotations."""
    named: Mapping[str, Sequence[Source]] = {
        "train": spec.dataset.train_data_sources,
        "val": spec.dataset.val_data_sources,
        "test": (spec.dataset.test_data_sources,),
    }
    aug = spec.dataset.augmentation
    resize = aug.test_random_resize, aug.random_resize_max_size
    cell = 4 << min(spec.model.return_interm_indices, default=1)
    splits: dict[str, list[Sheet]] = {}
    for split, sources in named.items():
        sheets, unread = read_sheets(split, sources, resize=resize, cell=cell)
        if sheets:
            splits[split] = sheets
            yield _counted(split, sheets)
        elif not unread and split != "test":
            yield _unnamed(split)
        yield from unread
        for sheet in sheets:
            yield from sheet.findings()
    yield from classes(spec, splits, num_classes)
    yield from _amounts(spec, splits)
    yield from _sizes(spec, splits)
    yield from duplicates({split: _paths(sheets) for split, sheets in splits.items()})
    for split, sheets in splits.items():
        yield from sampled(split, [(path, s.sizes[key]) for s in sheets for key, path in s.images.items()])


def _paths(sheets: Sequence[Sheet]) -> list[str]:
    return [str(path) for sheet in sheets for path in sheet.images.values()]


def _counted(split: str, sheets: Sequence[Sheet]) -> Finding:
    images, filled = sum(len(sheet.sizes) for sheet in sheets), sum(len(sheet.objects) for sheet in sheets)
    boxes = boxes_of(sheets)
    most = _most_objects(sheets)
    text = f"{split}: {images:,} images, {sum(boxes.values()):,} boxes of {len(boxes)} "
    text += "class" if len(boxes) == 1 else "classes"
    text += f", at most {most} in an image" if most else ""
    text += f", {images - filled:,} of the images without one" if images > filled else ""
    return Finding("data", "ok", text)


def _most_objects(sheets: Sequence[Sheet]) -> int:
    return max((count for sheet in sheets for count in sheet.objects.values()), default=0)


def _unnamed(split: str) -> Finding:
    seen = f"{split}: `dataset.{split}_data_sources` names no data"
    if split == "train":
        return Finding("data", "problem", seen, "set its image_dir and json_file")
    return Finding(
        "data", "warning", f"{seen}, so there is no metric: a search needs one, plain training keeps its last epoch",
        "set its image_dir and json_file, or train with automl_policy=off",
    )  # fmt: skip


def _amounts(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]]) -> Iterator[Finding]:
    """Whether there is enough of each split."""
    images = {split: sum(len(sheet.sizes) for sheet in sheets) for split, sheets in splits.items()}
    boxes = {split: sum(boxes_of(sheets).values()) for split, sheets in splits.items()}
    batch = spec.dataset.batch_size * spec.train.num_gpus
    if 0 < images.get("train", 0) < spec.dataset.batch_size:
        yield Finding(
            "data", "problem",
            f"`dataset.batch_size` must be at most the number of training images, but is {spec.dataset.batch_size} of "
            f"{images['train']}",
            "reduce batch_size",
        )  # fmt: skip
    elif 0 < images.get("train", 0) < 10 * batch:
        yield Finding(
            "data", "note", f"train: {images['train']} images make {images['train'] // batch or 1} steps an epoch",
            "train for more epochs (train.num_epochs), lower batch_size or add images",
        )  # fmt: skip
    for split in ("train", "val", "test"):
        if images.get(split) and not boxes[split]:
            what = "there is nothing to learn" if split == "train" else "there is nothing to score"
            yield Finding("data", "problem", f"{split}: no box is usable, so {what}", "correct json_file")
    if 0 < images.get("val", 0) < FEW_IMAGES:
        yield Finding(
            "data", "note", f"val: {images['val']} images; the metric of so few moves by chance, and a search takes "
            "chance for merit",
            f"validate on {FEW_IMAGES} or more, or repeat the best with automl.confirm=3",
        )  # fmt: skip
    crowded = max(map(_most_objects, splits.values()), default=0)
    if crowded > spec.model.num_queries:
        yield Finding(
            "data", "warning",
            f"an image holds {crowded} boxes, but `model.num_queries` is {spec.model.num_queries}: the rest is missed",
            f"set model.num_queries={min(900, -(-crowded // 50) * 50)}" + (" and cut images" if crowded > 900 else ""),
        )  # fmt: skip


def _sizes(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]]) -> Iterator[Finding]:
    """Boxes that resizing makes too small to be found."""
    for split, sheets in splits.items():
        tiny, boxes = sum(sheet.tiny for sheet in sheets), sum(boxes_of(sheets).values())
        if tiny and split != "test":
            aug, cell = spec.dataset.augmentation, sheets[0].cell
            yield Finding(
                "data", "warning" if tiny > TINY_SHARE * boxes else "note",
                f"{split}: {tiny:,} of {boxes:,} boxes are below {cell} x {cell} pixels, a cell of the finest feature "
                f"map, once images are resized to {aug.test_random_resize} (at most {aug.random_resize_max_size})",
                "raise dataset.augmentation.test_random_resize and scales, add stage 0 to "
                "model.return_interm_indices, or cut the images into tiles",
            )  # fmt: skip
