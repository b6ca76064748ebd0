"""The winner in MLflow: one logged model in the ONNX flavour, a version under a name, found by its alias."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from onnx import TensorProto, helper

from hpo.files import write_json
from hpo.mlflow_store import EXPERIMENT, tracking_uri
from hpo.registry import name_of, register
from hpo.result import Outcome
from hpo.runs import read_sweep
from hpo.tracking import QUEUE, Tracker, plain_run
from model.metrics import VAL_MAP50, Measurement
from model.spec import ExperimentSpec

SPEC = ExperimentSpec.from_dict({"train": {"seed": 7}})


@pytest.fixture
def root(tmp_path: Path, mlflow_store: Path) -> Path:
    folder = tmp_path / "results"
    shutil.copytree(mlflow_store, folder)
    return folder


def finished(root: Path, name: str, slope: float = 1.0) -> Path:
    """A run folder as the handoff leaves it, with a network that multiplies pixels by `slope`."""
    run = root / name
    run.mkdir(exist_ok=True)
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    result = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 3, 8, 8])
    factor = helper.make_tensor("slope", TensorProto.FLOAT, [], [slope])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["images", "slope"], ["boxes"])], "g", [image], [result], [factor]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), run / "model.onnx")
    digest = sha256((run / "model.onnx").read_bytes()).hexdigest()
    write_json({"onnx_sha256": digest}, run / "model.onnx.json")
    write_json({"checkpoint": "x"}, run / "handoff.json")
    write_json({"winner": 0.6, "default": 0.5}, run / "evaluation" / "test.json")
    return run


def hand_over(run: Path, **more: Any) -> list[str]:
    said: list[str] = []
    given = {"trial": 3, "metric": VAL_MAP50.name, "value": 0.7, "params": {"train.optim.lr": 1e-3}, **more}
    register(run, SPEC, note=said.append, **given)
    return said


def store(root: Path) -> tuple[MlflowClient, str]:
    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return client, experiment.experiment_id


def test_once_however_often_it_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(root, "digits-20260101-120000", slope=3.0)
    tracker = Tracker(root, run.name)
    tracker.begin({"trials": 1})
    tracker.close()
    assert hand_over(run) == ["registered in MLflow: models:/ddetr-digits@champion"]
    hand_over(run)
    client, experiment = store(root)
    (model,) = client.search_logged_models([experiment])
    assert str(model.status) == "READY"
    assert model.params == {"train.optim.lr": "0.001"}
    (version,) = client.search_model_versions("name='ddetr-digits'")
    tags = {name: version.tags[name] for name in ("trial.number", "winner_val_mAP50", "test_mAP50", "sweep.id")}
    assert tags == {"trial.number": "3", "winner_val_mAP50": "0.7", "test_mAP50": "0.6", "sweep.id": str(run)}
    assert "on images that chose nothing" in version.description
    parent = client.get_run(version.run_id)
    assert parent.data.tags["sweep.model"] == "models:/ddetr-digits/1"
    assert parent.data.metrics["test_mAP50"] == 0.6
    assert parent.data.metrics["default_test_mAP50"] == 0.5
    assert [one.model_id for one in parent.outputs.model_outputs] == [model.model_id]
    assert "handoff.json" in {one.path for one in client.list_artifacts(parent.info.run_id)}

    import mlflow

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: tracking_uri(root))
    mlflow.set_tracking_uri(tracking_uri(root))
    try:
        loaded = mlflow.pyfunc.load_model("models:/ddetr-digits@champion")
        flavors = mlflow.models.get_model_info("models:/ddetr-digits@champion").flavors
    finally:
        mlflow.set_tracking_uri(None)
    assert sorted(flavors) == ["onnx", "python_function"]
    assert flavors["python_function"]["loader_module"] == "mlflow.onnx"
    assert not list((root / "mlartifacts").rglob("*.pkl"))
    assert [(one.name, one.shape) for one in loaded.metadata.signature.inputs] == [("images", (-1, 3, 8, 8))]
    ones = np.ones((2, 3, 8, 8), dtype=np.float32)
    assert np.array_equal(loaded.predict(ones)["boxes"], 3 * ones)


def test_a_later_winner_takes_the_alias_and_an_earlier_one_does_not_take_it_back(root: Path, monkeypatch: Any) -> None:
    first, second = finished(root, "a-20260101-120000"), finished(root, "a-20260102-120000", slope=2.0)
    for run, day in ((first, "01"), (second, "02"), (first, "01")):
        monkeypatch.setattr("time.strftime", lambda *_, day=day: f"2026-01-{day}T00:00:00Z")
        hand_over(run, name="mine")
    client, _ = store(root)
    versions = {one.tags["sweep.id"]: one.version for one in client.search_model_versions("name='mine'")}
    assert sorted(versions) == [str(first), str(second)]
    assert client.get_model_version_by_alias("mine", "champion").version == versions[str(second)]


def test_away_and_heard_later_and_replaced_meanwhile(root: Path, tmp_path: Path) -> None:
    """What an outage kept is sent by the next run; a file that is another by then is left to its own event."""
    run = finished(root, "b-20260101-120000")
    aside = tmp_path / "aside.db"
    (root / "mlflow.db").rename(aside)
    (root / "mlflow.db").mkdir()  # a database that cannot be opened
    said = hand_over(run)
    finished(root, "b-20260101-120000", slope=5.0)
    said += hand_over(run)
    assert "registered" not in " ".join(said)
    assert "events; they are kept" in said[-1]
    (root / "mlflow.db").rmdir()
    aside.rename(root / "mlflow.db")
    other = Tracker(root, "next")
    other.begin({"trials": 1})
    other.close()
    assert (run / QUEUE).read_text() == ""
    client, experiment = store(root)
    (model,) = client.search_logged_models([experiment])
    assert model.tags["onnx.sha256"] == json.loads((run / "model.onnx.json").read_text())["onnx_sha256"]
    assert client.get_model_version_by_alias("ddetr-b", "champion").version in (1, "1")


def test_a_plain_training_is_a_candidate(root: Path) -> None:
    run = finished(root, "c-20260101-120000")
    tracked = plain_run(run, {"train.optim.lr": 2e-4})
    tracked.log(Measurement(epoch=1, values={VAL_MAP50.name: 0.4}, seconds=1.0))
    tracked.finish(Outcome.COMPLETED)
    assert hand_over(run, plain=True, trial=0) == ["registered in MLflow: models:/ddetr-c@candidate"]
    client, experiment = store(root)
    (found,) = client.search_runs([experiment])
    assert found.data.tags["sweep.model"] == "models:/ddetr-c/1"
    assert found.info.status == "FINISHED"
    assert "handoff.json" in {one.path for one in client.list_artifacts(found.info.run_id)}


def test_names(root: Path) -> None:
    assert name_of(Path("/x/quickstart-20261125-183000")) == "ddetr-quickstart"
    assert name_of(Path("/x/quickstart-20261125-183000-2")) == "ddetr-quickstart"
    assert name_of(Path("/x/my spec: new-20261125-183000")) == "ddetr-my-spec-new"
    run = finished(root, "d-20260101-120000")
    write_json({"sweep": {"model_name": "cars"}}, run / "sweep.json")
    assert read_sweep(run)["model_name"] == "cars"
