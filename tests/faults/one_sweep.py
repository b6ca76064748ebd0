"""A driver to be tormented: begins or resumes a sweep of the stand-in training, as a console script would.

Arguments: begin|resume, the run folder, trials, epochs, and as name=value: train (module:function), spec (a file), keys
of the `automl:` block.
"""

import sys
from pathlib import Path

import yaml

from hpo.sweep import resume_sweep, run_sweep
from hpo.sweep_spec import SweepSpec
from model.spec import ExperimentSpec
from search_spaces.space import Parameter, SearchSpace

SPACE = SearchSpace(
    parameters=(
        Parameter(name="train.optim.lr", kind="float", low=2e-5, high=2e-3, scale="log", default=2e-4),
        Parameter(name="train.optim.weight_decay", kind="float", low=1e-6, high=1e-2, scale="log", default=1e-4),
    )
)


def main(what: str, run: str, trials: str, epochs: str, *more: str) -> None:
    if what == "resume":
        resume_sweep(Path(run))
        return
    block = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in more)}
    train, spec = block.pop("train", "bowl:train"), {"train": {"num_epochs": int(epochs)}}
    if "spec" in block:
        spec = yaml.safe_load(Path(block.pop("spec")).read_text(encoding="utf-8"))
    run_sweep(
        Path(run),
        ExperimentSpec.from_dict(spec),
        SweepSpec(**{"trials": int(trials), "concurrent": 2, "searcher": "random", "seed": 5} | block),
        SPACE,
        train=train,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
