"""One Ray for all sweep tests, and a space of two parameters: the learning rate that the bowl answers to, and the
weight decay that chooses its misfortune."""

import os
import sys
from pathlib import Path

import pytest

from model.spec import ExperimentSpec
from search_spaces.space import Parameter, SearchSpace

HERE = Path(__file__).resolve().parent
LR, DECAY = "train.optim.lr", "train.optim.weight_decay"


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace(
        parameters=(
            Parameter(name=LR, kind="float", low=2e-5, high=2e-3, scale="log", default=2e-4),
            # A millionth and its multiples are misfortunes; draws fall between them almost surely.
            Parameter(name=DECAY, kind="float", low=1e-6, high=1e-2, scale="log", default=1e-4),
        )
    )


@pytest.fixture
def spec() -> ExperimentSpec:
    return ExperimentSpec.from_dict({"train": {"num_epochs": 8, "seed": 3}})


@pytest.fixture(autouse=True)
def tracking_in_the_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory):
    """Two CPUs; workers find the stand-in training by name."""
    from hpo.cluster import options, prepare

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), before)))
    prepare(None)
    import ray

    ray.init(num_cpus=2, **options(None, tmp_path_factory.mktemp("ray") / "empty"))
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty database of MLflow, to be copied: making one takes seconds."""
    from hpo.mlflow_store import connect, tracking_uri

    folder = tmp_path_factory.mktemp("store")
    uri = os.environ.pop("MLFLOW_TRACKING_URI", None)
    connect(tracking_uri(folder)).search_experiments()
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    return folder


@pytest.fixture
def bowl(monkeypatch: pytest.MonkeyPatch):
    """The stand-in training, importable here as in a worker."""
    monkeypatch.syspath_prepend(str(HERE))
    import bowl

    yield bowl
    sys.modules.pop("bowl", None)
