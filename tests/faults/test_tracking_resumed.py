"""MLflow after a driver was killed and its sweep resumed, compared value by value with the study."""

import subprocess
import sys
from pathlib import Path

import pytest
import rig

from hpo.tracking import QUEUE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_killed_after_six_of_ten_trials(tmp_path: Path) -> None:
    """Ten children afterwards, none of them running, each with the parameters and every metric of its trial."""
    run, script = tmp_path / "results" / "run", Path(__file__).with_name("without_ray.py")
    env = rig.environment()
    env.pop("MLFLOW_TRACKING_URI", None)
    first = subprocess.run([sys.executable, str(script), str(run), "6"], env=env, check=False)
    assert first.returncode == -9
    before = rig.bits(run, rig.finished(run))
    assert len(before) == 6
    subprocess.run([sys.executable, str(script), str(run), "0"], env=env, check=True)
    rig.check_whole(run, 10, before, retrained=1)
    rig.check_mlflow(run)
    found = rig.mlflow_runs(f"sqlite:///{run.parent / 'mlflow.db'}", run)
    assert sorted(found) == list(range(-1, 10))
    assert not [each for each in found.values() if each.info.status == "RUNNING"]
    assert (run / QUEUE).read_text() == ""
