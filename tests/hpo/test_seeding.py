"""Points that a user wrote, and the best of an earlier run, in the coordinates of a space."""

import dataclasses
from pathlib import Path

import pytest

from hpo.errors import RunError
from hpo.ledger import Ledger
from hpo.result import Outcome
from hpo.seeding import best_of, sample_of
from model.metrics import VAL_MAP50, Measurement
from model.spec import ExperimentSpec
from search_spaces.space import Parameter, SearchSpace

LR, DECAY = "train.optim.lr", "train.optim.weight_decay"


@pytest.fixture
def earlier(tmp_path: Path, spec: ExperimentSpec, space: SearchSpace) -> Path:
    """Values 0.1, 0.2, ... in the order of numbers; trial 3 was pruned, trial 4 measured nothing."""
    run = tmp_path / "earlier"
    run.mkdir()
    points = [{LR: rate, DECAY: 1e-3} for rate in (1e-4, 5e-4, 1e-3, 2e-3)]
    ledger = Ledger.create(run, spec, space, searcher="random", seed=1, budget=5, points=points, metric=VAL_MAP50)
    for place in range(5):
        number = ledger.next()
        assert number is not None
        if place < 4:
            ledger.record(number, Measurement(epoch=1, values={VAL_MAP50.name: 0.1 * (place + 1)}, seconds=1.0))
        outcome = (Outcome.COMPLETED, Outcome.PRUNED, Outcome.FAILED)[max(0, place - 2)]
        ledger.finish(number, outcome, reason="because" if place == 4 else None)
    return run


@pytest.mark.parametrize("point", [{"lr": 5e-5}, {LR: 5e-5}, {"train": {"optim": {"lr": 5e-5}}}, {"optim.lr": 5e-5}])
def test_every_way_to_write_a_point(spec: ExperimentSpec, space: SearchSpace, point: dict) -> None:
    assert sample_of(point, spec, space) == pytest.approx({LR: 5e-5, DECAY: spec.train.optim.weight_decay})


@pytest.mark.parametrize(
    ("point", "complaint"),
    [
        ({"lr": 1.0}, "would become 0.002"),
        ({"num_epochs": 3}, "holds searched keys only"),
        ({"l": 1}, "but `l` is not"),
    ],
)
def test_point_that_would_be_changed_is_refused(
    spec: ExperimentSpec, space: SearchSpace, point: dict, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        sample_of(point, spec, space)


def test_best_first_and_said(earlier: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    found = best_of(earlier, spec, space, most=2)
    assert [point[LR] for point in found.points] == pytest.approx([1e-3, 5e-4])
    assert found.lines[0] == ("from earlier/3 (val_mAP50 0.4000): train.optim.lr=0.001, train.optim.weight_decay=0.001")
    assert len(best_of(earlier, spec, space).points) == 4, "what measured nothing is no seed"


def test_moved_into_a_narrower_range_and_said(earlier: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    narrow = dataclasses.replace(space, parameters=(dataclasses.replace(space[LR], high=4e-4), *space.parameters[1:]))
    found = best_of(earlier, spec, narrow)
    assert [point[LR] for point in found.points] == pytest.approx([4e-4, 1e-4, 2e-4]), "equal ones once"
    assert "train.optim.lr 0.001 -> 0.0004 (its range ends there)" in found.lines[0]


def test_what_is_not_searched_here_keeps_the_spec(earlier: Path, spec: ExperimentSpec, space: SearchSpace) -> None:
    found = best_of(earlier, spec, dataclasses.replace(space, parameters=(space[LR],)))
    assert found.points[0] == pytest.approx({LR: 1e-3})
    assert found.lines[0].endswith("; not searched here: train.optim.weight_decay")


def test_nothing_in_common(earlier: Path, spec: ExperimentSpec) -> None:
    other = Parameter(name="model.dec_layers", kind="int", low=5, high=7, default=6)
    with pytest.raises(RunError, match="searched what is searched here"):
        best_of(earlier, spec, SearchSpace(parameters=(other,)))
