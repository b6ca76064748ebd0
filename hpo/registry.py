"""The handed-over winner for MLflow's registry: under which name, by which numbers. Knows the run folder; MLflow hears
of it through the queue, so a server that is away loses nothing.

The winner of a search becomes `champion`; a training without a search, which beat nobody, becomes `candidate`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import runs
from hpo.evidence import FOLDER, TEST
from hpo.tracking import LAST_FILES, About, Model, Tracker

if TYPE_CHECKING:
    from hpo.datasets import Dataset
    from model.spec import ExperimentSpec

CHAMPION, CANDIDATE = "champion", "candidate"


def register(
    run: Path,
    spec: "ExperimentSpec",
    *,
    trial: int,
    metric: str,
    value: float | None,
    params: Mapping[str, Any],
    note: Callable[[str], None],
    name: str | None = None,
    plain: bool = False,
) -> None:
    """Tells MLflow of the files of a finished run and of its model. `value`: of the metric, that chose it; `name`: to
    register under, unless the run's own settings have one."""
    from hpo import datasets
    from hpo.mlflow_models import sha256_of

    known, scores = datasets.known(run, spec), _test_scores(run)
    tracker = Tracker(run.parent, run.name, note=note)
    tracker.describe(About(spec=spec.to_dict(), datasets=known))
    tracker.keep(LAST_FILES, plain=plain)
    sha256 = sha256_of(run / "model.onnx")
    model = Model(
        name=name or runs.read_sweep(run).get("model_name") or name_of(run),
        trial=trial,
        metrics={**({} if value is None else {f"winner_{metric}": value}), **scores},
        params=params,
        alias=CANDIDATE if plain else CHAMPION,
        remark=_remark(known, scores),
    )
    if sha256 is not None:
        tracker.register(model, sha256, plain=plain)
    if tracker.close() and sha256 is not None:
        note(f"registered in MLflow: models:/{model.name}@{model.alias}")


def name_of(run: Path) -> str:
    """`ddetr-<spec's name>`, the same for every run of one spec file: runs are called after it and the time."""
    stem = re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", run.name)
    return f"ddetr-{re.sub(r'[^A-Za-z0-9_.-]+', '-', stem)}"


def _test_scores(run: Path) -> dict[str, float]:
    """mAP50 on the test images: of the winner and, where it left a checkpoint, of the default."""
    path = run / FOLDER / TEST
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    names = {"winner": "test_mAP50", "default": "default_test_mAP50"}
    return {names[key]: float(value) for key, value in found.items() if key in names}


def _remark(known: "tuple[Dataset, ...]", scores: Mapping[str, float]) -> str:
    if "test_mAP50" in scores:
        return f"test mAP50 {scores['test_mAP50']:.4f} on images that chose nothing."
    if any(one.context == "test" for one in known):
        return "Its score on the test data is not known."
    return "There were no test data: its score is of the validation images that chose it, and optimistic."
