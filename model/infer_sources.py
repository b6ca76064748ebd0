"""Images without annotations, where their results go, and what their classes are called. Opens no image."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from model.data.archives import SUFFIXES as ARCHIVES
from model.data.archives import is_archive
from model.data.sources import is_remote, local
from model.errors import DataError
from model.spec import ExperimentSpec

log = logging.getLogger(__name__)

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))


class Picture(NamedTuple):
    path: Path
    label: Path
    """Of its label file, below the results folder."""
    drawn: Path
    """Of its annotated copy, below the results folder."""


def find_pictures(spec: ExperimentSpec) -> list[Picture]:
    """All images below `dataset.infer_data_sources.image_dir`, sorted; a path may also be one image or an archive, and
    any of them in S3.

    Outputs keep the path below the image folder, so that equal names in two folders do not collide. With
    `inference.is_internal` they are sorted by sequence instead: <sequence>/<folder>/<frame>.jpg goes to
    <sequence>/labels/<frame>.txt.
    """
    given = list(dict.fromkeys(spec.dataset.infer_data_sources.image_dir))
    if not given:
        raise DataError("`dataset.infer_data_sources.image_dir` must name images, but is unset; set it.")
    found: list[tuple[Path, PurePosixPath]] = []
    for entry, root in zip(given, _roots(given), strict=True):
        folder = local(entry)
        if folder.suffix.lower() in SUFFIXES and folder.is_file():
            found.append((folder, root.parent / folder.name))
            continue
        images = images_below(folder)
        if not images:
            archives = [each.name for each in sorted(folder.glob("*")) if is_archive(each.name)]
            hint = f"; name its archive: {folder / archives[0]}" if archives else ""
            raise DataError(f"`dataset.infer_data_sources.image_dir` must hold images, but {entry} holds none{hint}.")
        found += [(each, root / each.relative_to(folder).as_posix()) for each in images]
    if spec.inference.is_internal:
        return _by_sequence(found)
    labels = _label_names([relative for _, relative in found])
    return [
        Picture(path, "labels" / Path(label), "images_annotated" / Path(relative))
        for (path, relative), label in zip(found, labels, strict=True)
    ]


def images_below(folder: Path) -> list[Path]:
    """All image files in `folder` and the folders in it, hidden ones left out, sorted."""
    return sorted(each for each in folder.rglob("*") if _is_image(each.relative_to(folder)) and each.is_file())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _roots(given: Sequence[str]) -> list[PurePosixPath]:
    """A folder for the outputs of each entry: nothing for a single one, else as much of its path's end as tells them
    apart."""
    if len(given) == 1:
        return [PurePosixPath()]
    parts = []
    for entry in given:
        path = Path("/", entry.partition("://")[2]) if is_remote(entry) else Path(entry).expanduser().absolute()
        suffix = next((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), "")
        parts.append(path.with_name(path.name[: len(path.name) - len(suffix)]).parts[1:])
    for depth in range(1, max(map(len, parts)) + 1):
        tails = [PurePosixPath(*part[-depth:]) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    return [PurePosixPath(str(number), *part) for number, part in enumerate(parts)]  # a folder and its own archive


def _by_sequence(found: Sequence[tuple[Path, PurePosixPath]]) -> list[Picture]:
    sequences = [path.absolute().parts[-3] if len(path.absolute().parts) > 3 else "" for path, _ in found]
    # Two cameras of one sequence may have equal frame names: their folder then stays in the name.
    taken = Counter((sequence, path.name) for sequence, (path, _) in zip(sequences, found, strict=True))
    names = [
        PurePosixPath(path.name if taken[sequence, path.name] == 1 else f"{path.parent.name}/{path.name}")
        for sequence, (path, _) in zip(sequences, found, strict=True)
    ]
    full = [PurePosixPath(sequence) / name for sequence, name in zip(sequences, names, strict=True)]
    labels = [label.relative_to(sequence) for sequence, label in zip(sequences, _label_names(full), strict=True)]
    return [
        Picture(path, Path(sequence) / "labels" / label, Path(sequence) / "images_annotated" / name)
        for (path, _), sequence, label, name in zip(found, sequences, labels, names, strict=True)
    ]


def _label_names(pictures: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """<stem>.txt; or where a.jpg and a.png lie side by side, a.jpg.txt and a.png.txt."""
    taken = Counter(picture.with_suffix(".txt") for picture in pictures)
    return [
        picture.with_suffix(".txt" if taken[picture.with_suffix(".txt")] == 1 else f"{picture.suffix}.txt")
        for picture in pictures
    ]


def class_names(spec: ExperimentSpec, own: Mapping[int, str]) -> dict[int, str]:
    """The checkpoint's class names, or those of `infer_data_sources.classmap`, whose line i names category i + 1.
    Detections of a class without a name are left out."""
    file = spec.dataset.infer_data_sources.classmap
    if file is None:
        return dict(own)
    path = local(file) if is_remote(file) else Path(file)
    if not path.is_file():
        raise DataError(f"`dataset.infer_data_sources.classmap` must be a text file, but there is no {path}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"`dataset.infer_data_sources.classmap` must be text in UTF-8, but {path} is not ({error.reason} at byte "
            f"{error.start}); save it in UTF-8."
        ) from None
    names = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    missing = sorted(set(own) - set(names))
    if missing:
        log.warning("%s: no line names category %s, so its detections are left out", path, ", ".join(map(str, missing)))
    return names
