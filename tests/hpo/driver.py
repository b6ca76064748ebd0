"""A driver to be killed: begins a sweep of the stand-in training in the folder given, as a console script would."""

import sys
from pathlib import Path

from hpo.sweep import run_sweep
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec
from search_spaces.space import Parameter, SearchSpace

SPACE = SearchSpace(
    parameters=(Parameter(name="train.optim.lr", kind="float", low=2e-5, high=2e-3, scale="log", default=2e-4),)
)

if __name__ == "__main__":
    run_sweep(
        Path(sys.argv[1]),
        ExperimentSpec.from_dict({"train": {"num_epochs": 8}}),
        SweepSpec(trials=int(sys.argv[2]), concurrent=2),
        SPACE,
        train="bowl:train",
    )
