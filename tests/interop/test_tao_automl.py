"""TAO's own AutoML runner, in its own environment (`make interop`), searches with our trainer.

Nothing of it is imported here: it is started by its command line, on the folder that `ddetr skill` writes, and what it
says it measured is held against our status files.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.cli import main
from hpo.skill import PLAN
from model.metrics import VAL_MAP50
from schemas import packaged

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / ".venv-interop" / "bin" / "python"
RECOMMENDATIONS = 5
SEARCHED = (
    "train.optim.lr",
    "train.optim.lr_backbone",
    "train.optim.weight_decay",
    "dataset.augmentation.horizontal_flip_prob",
    "dataset.batch_size",
)

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not RUNNER.exists(), reason=f"no {RUNNER.relative_to(ROOT)}: `make interop` builds it"),
]


@pytest.fixture(scope="module")
def skill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skill") / "skill"
    assert main(["skill", str(folder)]) == 0
    return folder


def run(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """The runner's interpreter in `folder`, which is its home as well: it keeps its state there."""
    alone = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, **alone}
    return subprocess.run([RUNNER, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=1500)


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def test_it_accepts_every_action(skill: Path, tmp_path: Path) -> None:
    load = "import sys; from tao_automl.runner import validate_skill_runtime as load; print(load(*sys.argv[1:]))"
    for action in packaged.manifest()["actions"]:
        done = run(["-c", load, str(skill), action], tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_plan_as_it_is_written_waits_for_the_data(skill: Path, tmp_path: Path) -> None:
    done = run(["-m", "tao_automl.runner", str(skill / PLAN), "--platform", "virtualenv"], tmp_path)
    assert done.returncode == 1
    assert "dataset.num_classes" in done.stdout


@pytest.mark.timeout(1600)
def test_it_completes_a_search_and_reads_our_metric(skill: Path, tmp_path: Path) -> None:
    data = tmp_path / "digits"
    assert main(["make-data", "digits", "--out", str(data), "--images", "200"]) == 0
    quickstart = yaml.safe_load((ROOT / "experiments" / "quickstart.yaml").read_text())
    network = flat({key: quickstart[key] for key in ("model", "dataset", "train")})
    plan = json.loads((skill / PLAN).read_text())
    plan["ready"] = True
    plan["automl_settings"] |= {
        "automl_max_recommendations": RECOMMENDATIONS,
        "automl_delete_intermediate_ckpt": False,  # it would delete the status files that are compared below
    }
    plan["automl_hyperparameters"] = SEARCHED
    plan["custom_param_ranges"] = {"dataset.batch_size": {"valid_min": 4, "valid_max": 16}}
    params = plan["steps"][0]["params"]
    params["train_dataset_uri"], params["eval_dataset_uri"] = str(data / "train"), str(data / "val")
    params["sdk_kwargs"]["work_dir"] = str(tmp_path / "work")
    params["spec_overrides"] = {
        **{key: value for key, value in network.items() if "data_sources" not in key},
        "train.num_epochs": 2,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    done = run(["-m", "tao_automl.runner", "plan.json", "--platform", "virtualenv"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)

    assert [each["status"] for each in told["history"]] == ["success"] * RECOMMENDATIONS, done.stderr
    measured: dict[str, float] = {}
    for each in told["history"]:
        job = tmp_path / "work" / "jobs" / each["job_id"]
        (status,) = job.rglob("status.json")
        lines = [json.loads(line) for line in status.read_text().splitlines()]
        assert lines[-1]["status"] == "SUCCESS"
        ours = [line["kpi"][VAL_MAP50.name] for line in lines if VAL_MAP50.name in line.get("kpi", {})]
        assert len(ours) == 2  # a validation each epoch
        assert each["metric"] == ours[-1]
        measured[each["job_id"]] = ours[-1]
    assert max(measured.values()) > 0
    best = told["best"]
    assert best["metric_value"] == max(measured.values()) == measured[best["job_id"]]

    assert set(best["specs"]) == set(SEARCHED)
    (written,) = (tmp_path / "work" / "jobs" / best["job_id"]).rglob("experiment.yaml")
    trained = flat(yaml.safe_load(written.read_text()))
    assert {key: trained[key] for key in SEARCHED} == pytest.approx(best["specs"])
