"""Image files by their bytes: the same picture twice, pictures that cannot be decoded. Knows no boxes and no classes.

Two files are the same when their contents are; only files of equal size are read for it.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from model.data.cache import UNREADABLE_SHARE
from model.data.transforms import decode
from model.errors import DataError
from model.findings import Finding, Level

HASHED_BYTES = 2 << 30
"""Read at most to compare files."""
DECODED = 200
"""Images of a split that are decoded, spread evenly over it."""
DECODED_PIXELS = 400_000_000
"""Of all of them; two hundred of two megapixels."""


def duplicates(splits: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Pictures that are in two splits, or twice in one."""
    groups, whole = same_contents(splits)
    if not whole:
        yield Finding(
            "data", "note", f"files of equal size were compared up to {HASHED_BYTES >> 30} GB of them, not all",
            "look for copies between the splits yourself",
        )  # fmt: skip
    shared = 0
    for one, other in combinations(splits, 2):
        both = [group for group in groups if one in group and other in group]
        shared += len(both)
        if both:
            first = f"{both[0][one][0]} and {both[0][other][0]}"
            count = sum(len(group[other]) for group in both)
            why = "the metric rewards learning by heart" if one == "train" else "the final score was used to choose"
            yield Finding(
                "data", "warning", f"{count:,} of {len(splits[other]):,} images of {other} are also in {one} "
                f"(the same bytes), the first: {first}; {why}",
                f"take them out of {other} or of {one}",
            )  # fmt: skip
        names = {Path(path).name for path in splits[one]} & {Path(path).name for path in splits[other]}
        names -= {Path(path).name for group in both for path in group[other]}
        smaller = min(len(splits[one]), len(splits[other]))
        if names and 2 * len(names) < smaller:  # more of them: the splits are numbered alike
            yield Finding(
                "data", "note", f"{len(names):,} file names are in {one} and in {other} with other bytes, the first: "
                f"{min(names)}", "look whether they are the same picture saved again",
            )  # fmt: skip
    for split in splits:
        copies = sum(len(set(group[split])) - 1 for group in groups if len(set(group.get(split, ()))) > 1)
        if copies:
            pair = next(group[split] for group in groups if len(set(group.get(split, ()))) > 1)
            yield Finding(
                "data", "warning" if split != "train" else "note",
                f"{split}: {copies:,} of {len(splits[split]):,} images are copies of another, the first: "
                f"{pair[0]} and {pair[1]}",
                "take the copies out, and see that their boxes agree",
            )  # fmt: skip
    if not shared and whole and len(splits) > 1:
        yield Finding("data", "ok", f"no image of one split is in another ({', '.join(splits)}; compared by content)")


def same_contents(splits: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, list[str]]], bool]:
    """Groups of files with the same content: split -> its paths; and whether all that could be were compared."""
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split, paths in splits.items():
        for path in paths:
            by_size[os.stat(path).st_size].append((split, path))
    by_content: dict[tuple[int, bytes], dict[str, list[str]]] = {}
    read = 0
    for size, files in by_size.items():
        if len(files) < 2 or not size:
            continue
        read += size * len({path for _, path in files})
        if read > HASHED_BYTES:
            break
        contents = {path: _content(path) for path in dict.fromkeys(path for _, path in files)}
        for split, path in files:
            by_content.setdefault((size, contents[path]), {}).setdefault(split, []).append(path)
    groups = [group for group in by_content.values() if sum(map(len, group.values())) > 1]
    return groups, read <= HASHED_BYTES


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # told by whoever decodes it
        return path.encode()


def sampled(split: str, images: Sequence[tuple[Path, tuple[int, int]]]) -> Iterator[Finding]:
    """Decodes some images of a split. images: path, and (height, width) as its row says, 0 where it does not."""
    if not images:
        return
    places = sorted({round(place) for place in np.linspace(0, len(images) - 1, min(DECODED, len(images)))})
    unreadable: list[str] = []
    other_size: list[str] = []
    pixels = looked = 0
    for path, (height, width) in (images[place] for place in places):
        if pixels > DECODED_PIXELS:
            break
        looked += 1
        try:
            high, wide = decode(path).shape[:2]
        except DataError as error:
            unreadable.append(str(error))
            continue
        pixels += high * wide
        if height and (height, width) != (high, wide):
            other_size.append(f"{path}, {wide} x {high} pixels and not {width} x {height}")
    of = f"{looked:,} of {len(images):,}" if looked < len(images) else f"all {looked:,}"
    if unreadable:
        refused = len(unreadable) > max(1, int(looked * UNREADABLE_SHARE)) or len(unreadable) == looked
        level: Level = "problem" if refused else "warning"
        what = "more than training skips" if refused else "training skips them"
        yield Finding(
            "data", level,
            f"{split}: {len(unreadable):,} of {looked:,} images cannot be decoded ({of} were tried), {what}, the "
            f"first: {unreadable[0].partition('; ')[0]}",
            "replace the files, or take them out of `images`",
        )  # fmt: skip
    if other_size:
        yield Finding(
            "data", "warning",
            f"{split}: {len(other_size):,} of {looked:,} images have another size than their row says ({of} were "
            f"decoded), the first: {other_size[0]}",
            "correct width and height in `images`, and see that the boxes fit",
        )  # fmt: skip
    if not unreadable and not other_size:
        yield Finding("data", "ok", f"{split}: {of} images were decoded and have the size that is stated")
