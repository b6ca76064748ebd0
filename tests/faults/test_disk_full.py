"""A full disk in mid-sweep: the driver ends with what to free, and the sweep goes on without a loss when there is room.

Study, checkpoints, MLflow's database and its queue lie on the same small file system, all of them full at once.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Takes all that is left."""
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        return


def test_full_disk_in_mid_sweep(tmp_path: Path, small_disk: Path) -> None:
    driver = rig.Driver(small_disk, trials=6, epochs=8, epoch_s=0.3)
    driver.log = tmp_path / "log"
    driver.start("scheduler=none")
    driver.until(lambda: rig.finished(driver.run), "a finished trial")
    filler = small_disk / "filler"
    fill(filler)
    assert driver.end() != 0
    said = driver.log.read_text()
    assert "must have room for checkpoints and the study, but it is full" in said
    assert "goes on without a loss" in said
    filler.unlink()
    rig.gone(driver.workers())
    before = rig.bits(driver.run, rig.finished(driver.run))
    assert before
    assert len(before) < 6
    driver.start()
    driver.succeed()
    rig.check_whole(driver.run, 6, before, retrained=1)
    rig.check_mlflow(driver.run)
