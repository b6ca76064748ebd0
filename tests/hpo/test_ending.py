"""A search whose trade-offs are all deployed: what is handed over is the one that was chosen there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from deploy import trt
from deploy.spec import DeploySpec, ExportSpec
from hpo import ending, runs
from hpo.choice import FOLDER
from hpo.result import SweepResult, TrialRecord
from model.handoff import Handoff
from model.metrics import VAL_MAP50
from model.spec import DatasetSpec, ExperimentSpec, Source
from schemas.structure import unstructure
from tests.hpo.trials import trial

pytestmark = pytest.mark.usefixtures("own_cache")


def no_tensorrt(name: str) -> ModuleType:
    raise ImportError(f"No module named '{name}'")


def trained(run: Path, number: int, source: Path, map50: float, ms: float) -> TrialRecord:
    checkpoint = run / "trials" / str(number) / "model_best.pth"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(source, checkpoint)
    params = {"train.optim.lr": 0.1 * number}
    return trial(number, map50, params=params, checkpoint=checkpoint, costs={"latency": ms})


def test_the_trade_off_that_deploys_best_is_handed_over(
    tiny_checkpoint: Path,
    other_checkpoint: Callable[..., Path],
    tiny_pictures: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trt, "import_module", no_tensorrt)
    run = tmp_path / "run"
    # What training measured says that trial 1 is the best; deployed, it finds nothing, and trial 2, whose weights drew
    # the truth of the pictures, does.
    trials = (
        trained(run, 0, tiny_checkpoint, 0.1, 99.0),  # dominated
        trained(run, 1, other_checkpoint(dim_feedforward=32), 0.9, 50.0),
        trained(run, 2, tiny_checkpoint, 0.3, 20.0),
    )
    result = SweepResult(
        run_dir=run, metric=VAL_MAP50, trials=trials, budget=3, space_hash="abc", seed=0, goals={"latency": "minimize"}
    )
    assert result.best is trials[1]
    sections = {"export": ExportSpec(input_height=64, input_width=64), "deploy": DeploySpec(objective="accuracy")}
    runs.write_sections(run, {name: unstructure(section) for name, section in sections.items()})
    spec = ExperimentSpec(dataset=DatasetSpec(val_data_sources=(tiny_pictures,)))
    chosen, delivery = ending._hand_over_front(run, spec, result)
    assert chosen is trials[2]
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["1", "2"]
    told = Handoff.read(run / "handoff.json")
    assert told.checkpoint == "trials/2/model_best.pth"
    assert told.lineage["trial"] == 2
    assert told.lineage["values"] == {"train.optim.lr": 0.2}
    one, two = (json.loads((run / FOLDER / number / "delivery.json").read_text())["rows"] for number in "12")
    assert one[1]["map50"]["val"] < two[1]["map50"]["val"] == delivery.rows[1].map50["val"]
    assert delivery.rows[1].file == run / "model.onnx"
    assert "trial 2 (mAP50" in delivery.remarks[0]
    assert "the most accurate of 2 trade-offs, as deployed in FP32" in delivery.remarks[0]
    assert "one of 2 trade-offs" in capsys.readouterr().out
