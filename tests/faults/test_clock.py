"""A clock that jumps, injected: no deadline comes early, none is missed for ever, and the sweep ends as it should."""

from collections.abc import Iterator
from pathlib import Path

import every_write
import pytest
import rig

from hpo import sweep as sweeping
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec

pytestmark = pytest.mark.faults


def readings(*leaps: float) -> Iterator[float]:
    """A second passes between readings; then it leaps, again and again."""
    now = 1e6
    while True:
        for leap in leaps:
            for _ in range(7):
                now += 1.0
                yield now
            now += leap


@pytest.mark.parametrize("leap", [(3e8, -3e8), (-3600.0,), (86400.0,)], ids=["there and back", "back", "on"])
def test_sweep_with_a_deadline(tmp_path: Path, leap: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(rig.BOWL))
    monkeypatch.setattr(sweeping, "_execute", every_write.inline)
    monkeypatch.setattr(sweeping, "workers", every_write.no_ray)
    clock = readings(*leap)
    run = tmp_path / "results" / "run"
    spec = ExperimentSpec.from_dict({"train": {"num_epochs": 3}})
    block = SweepSpec(trials=4, searcher="random", seed=5, hours=2.0)
    sweeping.run_sweep(
        run, spec, block, every_write.SPACE, console=every_write.quiet(), train="bowl:train", clock=lambda: next(clock)
    )
    rig.check_whole(run, 4, {})
    rig.check_mlflow(run)
