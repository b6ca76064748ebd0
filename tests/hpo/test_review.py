"""The launch review: what it says is what the run will do; numbers by hand."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo import review
from hpo.cluster import Share
from hpo.ledger import Ledger
from hpo.review import (
    Disk,
    checkpoint_bytes,
    clock,
    cpu_cores,
    estimate,
    first_configurations,
    print_data,
    review_plain,
    review_search,
    size,
)
from hpo.spec import read_request
from hpo.sweep_spec import SweepSpec
from model.data.coco import read_coco
from model.metrics import VAL_MAP50
from model.probe import Cost, ProbeError
from model.spec import ExperimentSpec
from search_spaces.space import SearchSpace

COST = Cost(step_seconds=0.5, val_seconds=1.0, steps=18, val_batches=1, weights=1000, per_forward=4)  # 10 s an epoch


@pytest.fixture
def long_spec() -> ExperimentSpec:
    return ExperimentSpec.from_dict({"train": {"num_epochs": 6}})  # a minute a trial


@pytest.mark.parametrize(
    ("block", "share", "expected"),
    [
        ({"trials": 8}, (1, 0.0, 2), (240.0, 0.0, 8)),
        ({"trials": 7}, (1, 0.0, 2), (240.0, 0.0, 7)),  # the last round is half empty
        ({"trials": 8}, (4, 1.0, 2), (240.0, 8 / 60, 8)),
        ({"trials": 8, "gpus_per_trial": 0.5}, (4, 0.5, 2), (240.0, 4 / 60, 8)),
        ({"trials": 8, "hours": 0.05}, (1, 0.0, 1), (180.0, 0.0, 3)),
        ({"trials": 8, "total_epochs": 15}, (1, 0.0, 1), (150.0, 0.0, 2.5)),
        ({"trials": 8, "gpu_hours": 0.05}, (1, 1.0, 1), (180.0, 0.05, 3)),
        ({"trials": 8, "confirm": 3}, (1, 1.0, 2), (360.0, 11 / 60, 8)),
    ],
)
def test_the_time_of_full_trials(
    long_spec: ExperimentSpec, block: dict[str, Any], share: tuple[int, float, int], expected: tuple[float, ...]
) -> None:
    cpus, gpus, concurrent = share
    found = estimate(COST, long_spec, SweepSpec(**block), Share(cpus=cpus, gpus=gpus, concurrent=concurrent))
    assert found == pytest.approx(expected)


def test_checkpoints_by_optimizer_and_retention(long_spec: ExperimentSpec) -> None:
    def need(trials: int, concurrent: int, **train: Any) -> int:
        return checkpoint_bytes(
            100, ExperimentSpec.from_dict({"train": {"num_epochs": 6, **train}}), trials, concurrent
        )

    assert need(1, 0) == 400 + 1200  # the best epoch's weights; weights and two moments of the last
    assert need(5, 2) == 5 * 1600 + 2 * 1200
    assert need(1, 0, optim={"optimizer": "SGD"}) == 400 + 800
    assert need(1, 0, keep_checkpoints=3) == 400 + 3 * 1200
    assert need(1, 0, keep_checkpoints=-1, checkpoint_interval=2) == 400 + 3 * 1200
    assert not Disk(needed=5, free=5).enough
    assert Disk(needed=5, free=6).enough


def test_units() -> None:
    assert [clock(one) for one in (0.2, 59, 61, 3599, 3600, 7290, 200000)] == [
        "1 s", "59 s", "1 min", "1 h 00 min", "1 h 00 min", "2 h 02 min", "2 days",
    ]  # fmt: skip
    assert [size(one) for one in (1500, 2_500_000, 3_210_000_000)] == ["2 kB", "2.5 MB", "3.21 GB"]
    assert cpu_cores() >= 1


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_the_first_configurations_are_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ExperimentSpec, space: SearchSpace, searcher: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    points = ({"train.optim.lr": 1e-4, "train.optim.weight_decay": 2e-4},)
    sweep = SweepSpec(trials=4, searcher=searcher, points=points)
    found = first_configurations(spec, sweep, space, tmp_path)
    assert [origin for origin, _ in found] == ["your spec", "point 1", "drawn", "drawn"]
    assert list((tmp_path / "tmp").iterdir()) == []

    (tmp_path / "run").mkdir()
    ledger = Ledger.create(
        tmp_path / "run", spec, space, searcher=searcher, seed=spec.train.seed, budget=4, points=points,
        metric=VAL_MAP50,
    )  # fmt: skip
    for _, params in found:
        number = ledger.next()
        assert number is not None
        assert ledger.record_of(number).params == params
    assert found[0][1] == {"train.optim.lr": 2e-4, "train.optim.weight_decay": 1e-4}


def test_a_point_that_cannot_be_tried_is_refused_before_anything_starts(
    tmp_path: Path, spec: ExperimentSpec, space: SearchSpace
) -> None:
    with pytest.raises(ValueError, match="must lie in the space"):
        first_configurations(spec, SweepSpec(points=({"lr": 5.0},)), space, tmp_path)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_classes_that_training_never_sees(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    content = json.loads((digits / "train" / "annotations.json").read_text())
    content["categories"] += [{"id": 3 + place, "name": f"other{place}"} for place in range(12)]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    spec = ExperimentSpec.from_dict({"dataset": {"train_data_sources": [
        {"image_dir": str(digits / "train" / "images.tar.gz"), "json_file": str(tmp_path / "annotations.json")}
    ]}})  # fmt: skip
    index = read_coco(spec.dataset.train_data_sources)
    print_data({"train": index})
    text = told(capsys)
    assert "images" in text
    assert f"{len(index.annotations.labels)}" in text
    assert "and 3 more classes" in text
    assert "no training box is of other0 (3), other1 (4), other2 (5), other3 (6), other4 (7) and 7 more" in text


@pytest.fixture
def request_of_digits(digits_spec: dict[str, Any], tmp_path: Path) -> Any:
    def make(**block: Any) -> Any:
        path = tmp_path / "digits.yaml"
        path.write_text(yaml.safe_dump({**digits_spec, "automl": {"trials": 4, "searcher": "random", **block}}))
        return read_request(path, data=True)

    return make


def test_memory_bounds_the_batches_that_are_searched(
    request_of_digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a GPU would answer, since there may be none here; the probe itself has tests of its own."""
    asked = []

    def measure(spec: ExperimentSpec, **how: Any) -> Cost:
        asked.append(how)
        return dataclasses.replace(COST, most_per_forward=8, per_forward=4, device="a GPU", peak_bytes=2_000_000_000)

    monkeypatch.setattr("model.probe.measure", measure)
    request = request_of_digits(params=["+batch_size"])
    splits = {"train": read_coco(request.spec.dataset.train_data_sources)}
    before = request.space()
    found = review_search(request, before, splits, tmp_path / "runs")
    assert asked[0]["most"] == 24  # images there are, below four batches of 8
    assert found.ready
    assert found.space == request.space({**request.facts, "most_per_forward": 8})
    text = told(capsys)
    (choices,) = [rule.choices for rule in found.space.rules if rule.target == "dataset.batch_size"]
    assert max(choices) == 8
    assert f"8 images at once fit the memory: dataset.batch_size is searched in {', '.join(map(str, choices))}" in text
    assert "memory: 8 images at once do not fit, 4 do" in text
    assert "2 GB of its memory" in text

    monkeypatch.setattr(review, "_free", lambda root: 1)
    again = request_of_digits()
    found = review_search(again, again.space(), splits, tmp_path / "runs")
    assert asked[1]["most"] is None
    assert (found.space, found.ready) == (again.space(), False)
    assert "that is more than there is: free some" in told(capsys)


def test_a_plain_training_and_a_probe_that_failed(
    request_of_digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_of_digits()
    splits = {"train": read_coco(request.spec.dataset.train_data_sources)}
    monkeypatch.setattr("model.probe.measure", lambda *_, **__: COST)
    review_plain(request.spec, splits, tmp_path)
    assert "time: about 30 s for 3 epochs" in told(capsys)

    def fail(*_: Any, **__: Any) -> Cost:
        raise ProbeError("it burnt")

    monkeypatch.setattr("model.probe.measure", fail)
    review_plain(request.spec, splits, tmp_path)
    assert review_search(request, request.space(), splits, tmp_path).ready
    text = told(capsys)
    assert text.count("not measured, so time and disk are not estimated: it burnt") == 2
    assert "time:" not in text


def test_a_cluster_is_not_measured_from_here(
    request_of_digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    request = request_of_digits(epochs=10)
    splits = {"train": read_coco(request.spec.dataset.train_data_sources)}
    assert review_search(request, request.space(), splits, tmp_path / "runs").ready
    text = told(capsys)
    assert "Ray cluster at 10.0.0.1:6379" in text
    assert "adjusted for 10 epochs a trial: train.num_epochs 3 -> 10" in text
    assert "0: your spec" in text
    assert "time:" not in text
    assert math.isfinite(request.space().parameters[0].default)
