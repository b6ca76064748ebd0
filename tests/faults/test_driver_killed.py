"""kill -9 of the driver: at random moments, and between any two things that it writes."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rig

pytestmark = pytest.mark.faults
KILLS = 10


@pytest.mark.timeout(1200)
def test_ten_times_at_random_moments(tmp_path: Path) -> None:
    """One sweep, its driver killed ten times: some of it in starting, some in mid-epoch, some in ending."""
    moments = random.Random(20261123)
    driver = rig.Driver(tmp_path, trials=10, epochs=8, epoch_s=0.15)
    before: dict[int, str] = {}
    for kill in range(KILLS):
        trained = driver.epochs_trained()
        driver.start("scheduler=none")
        if kill % 3 == 0:  # anywhere in its life, starting included
            time.sleep(moments.uniform(0.5, 12.0))
        else:  # some epochs after it got to work
            more = moments.randint(1, 9)
            driver.until(lambda now=trained + more: driver.epochs_trained() >= now, f"{more} more epochs")
            time.sleep(moments.uniform(0.0, 0.3))
        if not driver.alive:
            break
        driver.kill()
        rig.gone(driver.workers())
        assert before == rig.bits(driver.run, before), "finished trials are as they were"
        before = rig.bits(driver.run, rig.finished(driver.run))
        print(f"kill {kill + 1}: {len(before)} trials finished, {driver.epochs_trained()} epochs trained")
    assert kill == KILLS - 1, "the sweep must outlive all kills"
    driver.start()
    driver.succeed()
    rig.check_whole(driver.run, 10, before)
    rig.check_mlflow(driver.run)


@pytest.mark.timeout(1200)
def test_between_any_two_writes(tmp_path: Path) -> None:
    """Of a sweep without Ray, killed before each commit to the study and before each file gets its name, the states
    that a crash can leave are all there are. Here every sixth; the script alone takes all."""
    script = Path(__file__).with_name("every_write.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "--step", "6", "--seed", "1"],
        env=rig.environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 25
    assert [each for each in found if each["problem"]] == []
