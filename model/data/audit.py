"""What a user should mend in a dataset before training on it: all splits together, each finding with its fix.

Reads annotation files whole and image files in part; decodes a sample only, and says which. Prints nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from model.data.files import duplicates, sampled
from model.data.sheets import Sheet, read_sheets
from model.findings import Finding
from model.spec import ExperimentSpec, Source

FEW_BOXES = 20
"""Of a class in training, below which little is learnt."""
UNEVEN = 100
"""Times as many boxes of the commonest class as of the rarest."""
FEW_IMAGES = 50
"""To validate on, below which the metric moves by chance."""
TINY_SHARE = 0.1
"""Of boxes below a cell of the finest feature map, from which it is more than a note."""
NAMED = 5
"""Classes that a finding names."""


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
    yield from _classes(spec, splits, num_classes)
    yield from _amounts(spec, splits)
    yield from _sizes(spec, splits)
    yield from duplicates({split: _paths(sheets) for split, sheets in splits.items()})
    for split, sheets in splits.items():
        yield from sampled(split, [(path, s.sizes[key]) for s in sheets for key, path in s.images.items()])


def _paths(sheets: Sequence[Sheet]) -> list[str]:
    return [str(path) for sheet in sheets for path in sheet.images.values()]


def _counted(split: str, sheets: Sequence[Sheet]) -> Finding:
    images, objects = (
        sum(len(sheet.sizes) for sheet in sheets),
        sum((sheet.objects for sheet in sheets), Counter[int]()),
    )
    boxes = _boxes(sheets)
    with_boxes = sum(len(sheet.objects) for sheet in sheets)
    empty = f", {images - with_boxes:,} of the images without one" if images > with_boxes else ""
    most = f", at most {max(objects.values())} in an image" if objects else ""
    classes = f"{len(boxes)} class{'es' if len(boxes) != 1 else ''}"
    text = f"{split}: {images:,} images, {sum(boxes.values()):,} boxes of {classes}{most}{empty}"
    return Finding("data", "ok", text)


def _unnamed(split: str) -> Finding:
    seen = f"{split}: `dataset.{split}_data_sources` names no data"
    if split == "train":
        return Finding("data", "problem", seen, "set its image_dir and json_file")
    return Finding(
        "data", "warning", f"{seen}, so there is no metric: a search needs one, plain training keeps its last epoch",
        "set its image_dir and json_file, or train with automl_policy=off",
    )  # fmt: skip


def _boxes(sheets: Sequence[Sheet]) -> Counter[int]:
    return sum((sheet.boxes for sheet in sheets), Counter[int]())


def _classes(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]], num_classes: int | None) -> Iterator[Finding]:
    """Ids, names and boxes of classes within and between the splits."""
    names: dict[int, str] = {}
    for split, sheets in splits.items():
        for sheet in sheets:
            for key, name in sheet.categories.items():
                if names.setdefault(key, name) != name:
                    yield Finding(
                        "data", "problem",
                        f"{split}: `{sheet.file}`: category {key} is `{name}`, but an earlier file calls it "
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
            f"category ids go up to {highest}, and not all below it are used ({_some(gaps)} are not): ids stay as they "
            "are, and their outputs learn nothing",
            "nothing, or number the categories from 1 on without gaps in all files",
        )  # fmt: skip
    yield from _evaluated(spec.dataset.eval_class_ids, names)
    counts = {split: _boxes(sheets) for split, sheets in splits.items()}
    if "train" in counts:
        yield from _learnt(names, counts)


def _evaluated(ids: Sequence[int] | None, names: Mapping[int, str]) -> Iterator[Finding]:
    if ids and not set(ids) <= set(names):
        yield Finding(
            "data", "problem",
            f"`dataset.eval_class_ids` must be category ids of the annotations, but is {list(ids)} and they have "
            f"{_some(sorted(names))}",
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
        yield Finding("data", "ok", f"train boxes of each class: {_some(common, 10)}")
    absent = [f"{names[key]} ({key})" for key in sorted(names) if not train[key]]
    if absent and train:
        yield Finding(
            "data", "warning", f"train: no box is of {_some(absent)}: nothing is learnt of {_them(absent)}",
            f"annotate {_them(absent)}, or take {_them(absent)} out of `categories`",
        )  # fmt: skip
    for split, boxes in counts.items():
        strange = [f"{names[key]} ({key})" for key in sorted(boxes) if not train[key]]
        if split != "train" and strange and train:
            yield Finding(
                "data", "warning", f"{split}: boxes of {_some(strange)}, which training never sees, count as misses",
                f"annotate {_them(strange)} in the training data too, or split the images anew",
            )  # fmt: skip
        unasked = [f"{names[key]} ({key})" for key in sorted(names) if train[key] and not boxes[key]]
        if split != "train" and unasked and boxes:
            yield Finding(
                "data", "note", f"{split}: no box is of {_some(unasked)}, so the metric does not know {_them(unasked)}",
                f"put images with {_them(unasked)} into {split}",
            )  # fmt: skip
    few = [f"{names[key]} ({train[key]})" for key in sorted(names) if 0 < train[key] < FEW_BOXES]
    if few:
        yield Finding(
            "data", "warning", f"train: fewer than {FEW_BOXES} boxes of {_some(few)}", "annotate more, or join classes"
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


def _amounts(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]]) -> Iterator[Finding]:
    """Whether there is enough of each split."""
    images = {split: sum(len(sheet.sizes) for sheet in sheets) for split, sheets in splits.items()}
    boxes = {split: sum(_boxes(sheets).values()) for split, sheets in splits.items()}
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
    crowded = max((n for sheets in splits.values() for sheet in sheets for n in sheet.objects.values()), default=0)
    if crowded > spec.model.num_queries:
        yield Finding(
            "data", "warning",
            f"an image holds {crowded} boxes, but `model.num_queries` is {spec.model.num_queries}: the rest is missed",
            f"set model.num_queries={min(900, -(-crowded // 50) * 50)}" + (" and cut images" if crowded > 900 else ""),
        )  # fmt: skip


def _sizes(spec: ExperimentSpec, splits: Mapping[str, Sequence[Sheet]]) -> Iterator[Finding]:
    """Boxes that resizing makes too small to be found."""
    for split, sheets in splits.items():
        tiny, boxes = sum(sheet.tiny for sheet in sheets), sum(_boxes(sheets).values())
        if tiny and split != "test":
            aug, cell = spec.dataset.augmentation, sheets[0].cell
            yield Finding(
                "data", "warning" if tiny > TINY_SHARE * boxes else "note",
                f"{split}: {tiny:,} of {boxes:,} boxes are below {cell} x {cell} pixels, a cell of the finest feature "
                f"map, once images are resized to {aug.test_random_resize} (at most {aug.random_resize_max_size})",
                "raise dataset.augmentation.test_random_resize and scales, add stage 0 to "
                "model.return_interm_indices, or cut the images into tiles",
            )  # fmt: skip


def _some(names: Sequence[object], shown: int = NAMED) -> str:
    return ", ".join(map(str, names[:shown])) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _them(names: Sequence[object]) -> str:
    return "it" if len(names) == 1 else "them"
