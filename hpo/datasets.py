"""Which data a run learns from, told by a digest: annotation files by content, images by name and size.

No image is read, so a million of them take seconds. The same data in another folder has the same digest, and in S3.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.files import write_json

if TYPE_CHECKING:
    from model.spec import ExperimentSpec, Source

FILE = "datasets.json"
"""In the run folder: what the data was when the run began."""
LENGTH = 32
"""Of a digest; MLflow takes 36 characters."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    context: str
    """train, val or test."""
    name: str
    digest: str
    source: str
    """Paths or addresses of the annotation files."""


def datasets_of(spec: "ExperimentSpec") -> tuple[Dataset, ...]:
    """Of every split that the spec names. Raises OSError and DataError for data that is not there."""
    data = spec.dataset
    splits = {"train": data.train_data_sources, "val": data.val_data_sources, "test": (data.test_data_sources,)}
    named = {context: [one for one in sources if one.json_file] for context, sources in splits.items()}
    return tuple(_dataset(context, sources) for context, sources in named.items() if sources)


def known(run_dir: Path, spec: "ExperimentSpec") -> tuple[Dataset, ...]:
    """The datasets of a run, looked at once and kept in its folder; none where the data is gone before that."""
    from model.errors import DataError

    path = run_dir / FILE
    if path.is_file():
        return tuple(Dataset(**one) for one in json.loads(path.read_text(encoding="utf-8")))
    try:
        found = datasets_of(spec)
    except (OSError, DataError):  # whoever trains on it says so, with the fix
        return ()
    write_json([asdict(one) for one in found], path)
    return found


def joint_digest(datasets: Sequence[Dataset]) -> str:
    """One digest for what trials are compared on: training and validation data."""
    digest = hashlib.sha256()
    for one in datasets:
        if one.context != "test":
            digest.update(f"{one.context} {one.digest}\n".encode())
    return digest.hexdigest()[:LENGTH]


def _dataset(context: str, sources: "Sequence[Source]") -> Dataset:
    from model.data.sources import annotation_files, is_remote, sizes

    digest, paths, where = hashlib.sha256(), list[Path](), list[str]()
    for source in sources:
        assert source.json_file is not None
        files = annotation_files(source.json_file)
        paths += files
        where += [source.json_file] if is_remote(source.json_file) else map(str, files)
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        if source.image_dir:
            for image, size in sizes(source.image_dir):
                digest.update(f"{image} {size}\n".encode("utf-8", "surrogateescape"))
    name = "+".join(dict.fromkeys(f"{path.parent.name}/{path.stem}" for path in paths))
    named = "; ".join(where)[:2000]
    return Dataset(context=context, name=name[:200], digest=digest.hexdigest()[:LENGTH], source=named)
