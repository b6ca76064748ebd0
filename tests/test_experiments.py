"""Every ready spec can be read, and its space derived; none needs its data for that."""

from pathlib import Path

import pytest

from hpo.spec import read_request

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
SPECS = sorted(EXPERIMENTS.glob("*.yaml"))


def test_there_are_some() -> None:
    assert [path.name for path in SPECS] == ["quickstart.yaml"]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_experiment_loads(path: Path) -> None:
    request = read_request(path)
    assert request.space().parameters


def test_the_quickstart_sets_data_sizes_and_epochs_only() -> None:
    """Its learning rates and regularisation are the packaged defaults, so that its trial 0 is an honest default."""
    raw = read_request(EXPERIMENTS / "quickstart.yaml").raw
    assert set(raw["train"]) == {"num_epochs", "activation_checkpoint"}
    assert "dropout_ratio" not in raw["model"]
    assert "horizontal_flip_prob" not in raw["dataset"]["augmentation"]
