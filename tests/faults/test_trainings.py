"""What can go wrong inside a training, with the real detector: a torn checkpoint, a loss of NaN, no memory."""

from pathlib import Path
from typing import Any

import pytest
import rig
import yaml

from hpo.result import Outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]


def test_torn_checkpoint_divergence_and_memory(tmp_path: Path, digits_spec: dict[str, Any]) -> None:
    """The driver is killed in trial 0 and its newest checkpoint torn, as by a power cut; the other trials meet their
    trouble before or after."""
    digits_spec["train"]["num_epochs"] = 4
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(digits_spec))
    driver = rig.Driver(tmp_path, trials=5)
    driver.start("train=hazards:train", f"spec={spec}", "scheduler=none", "concurrent=2")
    latest = driver.run / "trials/0/dd_model_latest.pth"
    driver.until(lambda: latest.exists() and "epoch_001" in latest.resolve().name, "the second epoch's checkpoint")
    driver.kill()
    torn = latest.resolve()
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    before = rig.bits(driver.run, rig.finished(driver.run))
    assert 0 not in before, "the driver was killed too late; the test must wait less"

    driver.start()
    driver.succeed()
    result = rig.check_whole(driver.run, 5, before)
    rig.check_mlflow(driver.run)
    torn_one, diverged, halved, never, fine = result.trials
    assert [trial.outcome for trial in (torn_one, halved, fine)] == [Outcome.COMPLETED] * 3
    assert len(torn_one.measurements) == 4
    assert any("cannot be gone on from" in text for text in torn_one.adjustments)
    assert diverged.outcome is Outcome.INFEASIBLE
    assert "diverged" in (diverged.reason or "")
    assert never.outcome is Outcome.INFEASIBLE
    assert "one image at once does not fit" in (never.reason or "")
    assert [text for text in halved.adjustments if "out of memory" in text] == ["images at once 8 -> 4 (out of memory)"]
    assert result.best is not None
    assert result.best.number in (0, 2, 4)
    print([(trial.number, trial.outcome, trial.adjustments, trial.reason) for trial in result.trials])
