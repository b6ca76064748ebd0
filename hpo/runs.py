"""Where runs lie and what they are called: `<results_dir or runs/>/<run id>`, `RUN/7` for a trial. Reads no results."""

import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo.errors import ResultsDirError, RunError
from hpo.files import existing
from model.spec import ExperimentSpec
from model.whole import write_text

HANDOFF, BEST = "handoff.json", "model_best.pth"
SECTIONS = "deploy.yaml"
SWEEP = "sweep.json"
"""Of a search: its settings, and by what it trains. Written last, so its presence says that the folder is complete."""


def model_file(precision: str, suffix: str) -> str:
    """What a winner's file of a precision is called: model.onnx, model.fp16.engine."""
    return f"model{suffix}" if precision == "FP32" else f"model.{precision.lower()}{suffix}"


def results_root(spec: ExperimentSpec) -> Path:
    return Path(spec.train.results_dir or spec.results_dir or "runs").resolve()


def check_root(root: Path) -> None:
    """ResultsDirError where nothing can be written at `root`; makes nothing there."""
    try:
        with tempfile.TemporaryFile(dir=existing(root)):
            pass
    except OSError as error:
        raise ResultsDirError(
            f"`results_dir` must be a folder that can be made and written, but {root} cannot ({error.strerror}); set "
            "results_dir to another, or mend its permissions."
        ) from None


def stem(run_id: str) -> str:
    """What a run's id begins with: the name of its spec."""
    return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", run_id)


def new_run(root: Path, stem: str) -> Path:
    """A fresh folder `<root>/<stem>-<date>-<time>`, stem: the spec's name; its name is the run's id for good."""
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    for place in range(1, 100):
        folder = root / (name if place == 1 else f"{name}-{place}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"a new run needs a name that is not taken, but 99 of {root / name} are; wait a second.")


def find_run(name: str, root: Path = Path("runs")) -> Path:
    """The folder of a run given by path, or by id below `root`."""
    for folder in (Path(name), root / name):
        if folder.is_dir():
            return folder.resolve()
    there = sorted(path.name for path in root.glob("*") if (path / "spec.yaml").is_file()) if root.is_dir() else []
    known = f"{root}/ holds {', '.join(there[-5:])}" if there else f"{root}/ holds none"
    raise RunError(
        f"RUN must be a run's folder or its id, but `{name}` is neither ({known}); give the folder that `ddetr train` "
        "printed."
    )


def write_sections(run: Path, sections: Mapping[str, Any]) -> None:
    """Keeps the deployment sections beside the spec, for the handoff after a resume."""
    write_text(yaml.safe_dump(dict(sections), sort_keys=False), run / SECTIONS)


def read_sections(run: Path) -> dict[str, Any]:
    path = run / SECTIONS
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(found or {})


def read_sweep(run: Path) -> dict[str, Any]:
    """The settings of a search; none of a folder that holds no search."""
    path = run / SWEEP
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(found.get("sweep", {}))
