"""Trials that are shorter or longer than the schedule was written for."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hpo.epochs import VALIDATIONS, rescaled_space, scale
from model.optim import drops
from model.spec import ExperimentSpec
from search_spaces.space import Parameter, Rule, SearchSpace


def spec(**train: Any) -> ExperimentSpec:
    return ExperimentSpec.from_dict({"train": train})


def test_everything_keeps_its_share() -> None:
    found = scale(
        spec(
            num_epochs=50,
            validation_interval=5,
            checkpoint_interval=10,
            optim={"lr_steps": [40], "lr_step_size": 20, "warmup_steps": 100},
        ),
        10,
    )
    train = found.spec.train
    assert (train.num_epochs, train.validation_interval, train.checkpoint_interval) == (10, 1, 2)
    assert (train.optim.lr_steps, train.optim.lr_step_size, train.optim.warmup_steps) == ((8,), 4, 20)
    assert found.adjustments == (
        "train.num_epochs 50 -> 10",
        "train.validation_interval 5 -> 1",
        "train.checkpoint_interval 10 -> 2",
        "train.optim.lr_steps [40] -> [8]",
        "train.optim.lr_step_size 20 -> 4",
        "train.optim.warmup_steps 100 -> 20",
    )


def test_five_validations_without_another_number_of_epochs() -> None:
    found = scale(spec(num_epochs=20, validation_interval=10, optim={"lr_steps": [15]}), None)
    assert found.spec.train.validation_interval == 4
    assert found.spec.train.optim.lr_steps == (15,)
    assert found.adjustments == ("train.validation_interval 10 -> 4",)
    assert scale(spec(num_epochs=3, validation_interval=3), None).spec.train.validation_interval == 1


def test_a_spec_that_fits_is_left_alone() -> None:
    fitting = spec(num_epochs=20, validation_interval=4)
    assert scale(fitting, None) == (fitting, ())
    assert scale(fitting, 20) == (fitting, ())


def test_checkpoints_by_steps_stay() -> None:
    by_steps = spec(num_epochs=50, checkpoint_interval=300, checkpoint_interval_unit="step")
    assert scale(by_steps, 10).spec.train.checkpoint_interval == 300


@given(
    written=st.integers(1, 300),
    wanted=st.integers(1, 300),
    interval=st.integers(1, 300),
    step=st.integers(1, 300),
)
def test_any_lengths(written: int, wanted: int, interval: int, step: int) -> None:
    before = spec(num_epochs=written, validation_interval=min(interval, written), optim={"lr_steps": [step]})
    found = scale(before, wanted)
    train = found.spec.train
    assert found.spec.problems() == []
    assert train.num_epochs == wanted
    assert wanted // train.validation_interval >= min(VALIDATIONS, wanted)
    assert scale(found.spec, wanted) == (found.spec, ())
    # The drop comes at the same share of the run, to half an epoch.
    late = [drops(train.optim, epoch, 0.0) > 0 for epoch in range(wanted)]
    if step * wanted / written >= 1:
        assert abs((late.index(True) if True in late else min(wanted, train.optim.lr_steps[0])) - min(
            wanted, step * wanted / written)) <= 0.5  # fmt: skip


def test_space_follows() -> None:
    drop = Parameter(name="drop", kind="float", low=0.1, high=0.9, default=0.5)
    rule = Rule(kind="milestone", target="train.optim.lr_steps", of=("train.num_epochs",), coordinates=("drop",))
    space = SearchSpace(parameters=(drop,), rules=(rule,), context={"train.num_epochs": 50})
    assert rescaled_space(space, 10).resolve({"drop": 0.5}) == {"train.optim.lr_steps": [5]}
    assert rescaled_space(space, 50) is space
