"""kill -9 of workers from outside, again and again: trials go on from their checkpoints, and the budget is kept."""

import os
import random
import signal
from pathlib import Path

import pytest
import rig

from hpo.locks import exclusive
from hpo.result import Outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_workers_killed_at_random(tmp_path: Path) -> None:
    chance = random.Random(7)
    driver = rig.Driver(tmp_path, trials=6, epochs=8, epoch_s=0.3)
    driver.start("scheduler=none")
    before: dict[int, str] = {}
    killed: list[int] = []
    for _ in range(4):
        trained = driver.epochs_trained()
        wanted = trained + chance.randint(2, 6)
        driver.until(lambda wanted=wanted: driver.epochs_trained() >= wanted, "more epochs")
        living = sorted(pid for pid in driver.workers() if Path(f"/proc/{pid}").exists())
        if not living:
            continue
        before = rig.bits(driver.run, rig.finished(driver.run))
        os.kill(chance.choice(living), signal.SIGKILL)
        killed.append(trained)
    result = driver.succeed()
    assert len(killed) >= 3
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 6
    rig.check_whole(driver.run, 6, before, retrained=1)
    rig.check_mlflow(driver.run)
    again = sum(len(driver.calls(number)) - 1 for number in range(6))
    assert 1 <= again <= len(killed)
    print(f"{len(killed)} workers killed, {again} trials in mid-epoch went on elsewhere")


def test_folder_that_somebody_holds_for_a_while(tmp_path: Path) -> None:
    """As the worker of a node that is cut off does, or the storage of one that lost its power: the trial waits, and it
    is nobody's failure."""
    driver = rig.Driver(tmp_path, trials=3, epochs=3)
    with exclusive(driver.run / "trials/1/.lock"):
        driver.start("scheduler=none")
        driver.until(lambda: "trial 1: its worker was lost" in driver.log.read_text(), "a lost worker")
    driver.succeed()
    result = rig.check_whole(driver.run, 3, {})
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 3
    assert "is in use by the worker of an earlier session" in driver.log.read_text()
