"""Finished work by its id, as another job takes it up: which results it left, and which of them to take first.

The folder of runs is the store. A job is `RUN`, a trial `RUN/7`, an action's folder `RUN/export`, a `results_dir` of
`deformable_detr`, or one file of any of these. Reads listings and specs; opens no checkpoint.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.errors import RunError
from hpo.runs import BEST, HANDOFF, find_run, read_sections
from model.spec import ENGINES
from schemas import dotted, yamlio

ACTIONS = ("train", "evaluate", "inference", "export", "gen_trt_engine", "quantize")
MODELS = (".pth", ".onnx", *ENGINES)
ENCRYPTED = (".tlt", ".etlt")
_NUMBERED = re.compile(r"model_epoch_(\d+)_step_(\d+)\.pth")
_TRIAL = re.compile(r"(.+)/(\d+)/?")


@dataclass(frozen=True, kw_only=True)
class Job:
    id: str
    """Stable: a run's name, with what stands behind it in `RUN/7`; the path of anything else."""
    folder: Path
    """Where it lies, and where jobs that follow it write if nothing else is said."""
    store: Path
    """The folder of runs that it belongs to."""
    files: tuple[Path, ...] = ()
    """Models, the one to take first of each kind first; never a link to the latest, unless that is what was named."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Nested, as it was trained: of a search the winner's own, with the deployment sections of the run."""
    unfinished: bool = False
    """A run without a winner."""


def find_job(name: str, root: Path = Path("runs")) -> Job:
    """The job of an id below `root`, or of a path. RunError where there is none."""
    path = _located(name, root)
    if path.is_file():
        base, file = path.parent, path.resolve()  # the link to the latest means what it points to now
        return Job(id=name, folder=base, store=_store(base), files=(file,), spec=_spec(base, file))
    run = next((each for each in path.parents if _is_run(each)), None)
    number = path.name if run is not None and path.parent.name == "trials" else None
    known = name if run is None else f"{run.name}/{number or path.relative_to(run)}"
    if _is_run(path) or (path / HANDOFF).is_file():
        return _run(path, known if run else path.name)
    files = tuple(path / each for each in ranked(_names(path)))
    spec = {**_spec(path, files[0] if files else None), **({} if run is None else read_sections(run))}
    return Job(id=known, folder=path, store=_store(path), files=files, spec=spec)


def _is_run(folder: Path) -> bool:
    return (folder / "trials").is_dir() and (folder / "spec.yaml").is_file()


def ranked(names: Iterable[str]) -> list[str]:
    """Results in the order in which they are taken: the best epoch, then the newest by epoch and step, then the
    shortest name (model.onnx before model.fp16.onnx). Those in the folders of actions come last."""

    def place(name: str) -> tuple[Any, ...]:
        folder, _, file = name.rpartition("/")
        depth = ACTIONS.index(folder) + 1 if folder in ACTIONS else 0
        numbered = _NUMBERED.fullmatch(file)
        if file == BEST:
            return depth, 0
        if numbered:
            return depth, 1, -int(numbered[1]), -int(numbered[2])
        return depth, 2, len(file), file

    return sorted(names, key=place)


def made(folder: Path) -> dict[str, str]:
    """The folders of actions below `folder`, each with how it stands: the last status of its status.json."""
    found = {}
    for name in (*ACTIONS, "trt_evaluate", "trt_inference"):
        file = folder / name / "status.json"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        if lines:
            found[name] = str(json.loads(lines[-1])["status"])
    return found


def is_numbered(file: Path) -> bool:
    """Whether a checkpoint is a whole one, of an epoch and step, optimizer included."""
    return _NUMBERED.fullmatch(file.name) is not None


def _run(run: Path, known: str) -> Job:
    """Of a search, a plain training or one of a search's trade-offs: the winner, and what was made of it."""
    handoff = run / HANDOFF
    others = [run / each for each in ranked(_names(run)) if not each.endswith(".pth")]
    if not handoff.is_file():
        return Job(id=known, folder=run, store=_store(run), files=tuple(others), unfinished=True)
    winner = Path(os.path.normpath(run / str(json.loads(handoff.read_text(encoding="utf-8"))["checkpoint"])))
    whole = next((each for each in (run, *run.parents) if _is_run(each)), run)
    spec = {**_spec(winner.parent, winner), **read_sections(whole)}
    there = (winner,) if winner.is_file() else ()
    return Job(id=known, folder=run, store=_store(run), files=(*there, *others), spec=spec)


def _names(folder: Path) -> list[str]:
    """Models in a folder and in those of actions below it. Links, and files that begin with a dot, are left out."""
    found = [*folder.glob("*"), *(each for action in ACTIONS for each in (folder / action).glob("*"))]
    return [
        each.relative_to(folder).as_posix()
        for each in found
        if each.suffix in (*MODELS, *ENCRYPTED) and each.is_file() and not each.is_symlink() and each.name[0] != "."
    ]


def _located(name: str, root: Path) -> Path:
    trial = _TRIAL.fullmatch(name)
    for base in (Path(), root):
        if (base / name).exists():
            return (base / name).absolute()
        if trial and (found := base / trial[1] / "trials" / trial[2]).is_dir():
            return found.absolute()
    run = find_run(trial[1] if trial else name, root)  # which says what there is, where there is none
    there = sorted((each.name for each in (run / "trials").glob("*") if each.name.isdigit()), key=int)
    raise RunError(f"`{name}` must name a trial of the run, but {run} has {', '.join(there) or 'none'}; name one.")


def _store(folder: Path) -> Path:
    run = next((each for each in (folder, *folder.parents) if _is_run(each)), None)
    return folder.parent if run is None else run.parent


def _spec(folder: Path, file: Path | None) -> dict[str, Any]:
    """The spec beside a file, or above it."""
    for base in (folder, *(() if file is None else (file.parent,)), folder.parent):
        for name in ("spec.yaml", "experiment.yaml"):
            if (base / name).is_file():
                return dotted.drop(yamlio.load(base / name).data, "encryption_key")
    return {}
