"""Which opening finds most on a smooth model of the real detector's scores, where five real searches cannot tell.

    OMP_NUM_THREADS=1 python tests/benchmarks/openings.py --out runs/arms --seeds 24

Reads what arms.py has measured: every trial of `narrow` and `full` is a point of our narrow space with its best
val_mAP50. A Gaussian process through them stands for the detector, with its own estimate of a seed's noise. What counts
is the model's value of the trial that looks best. The first trial is always the default.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import arms
import numpy as np
import optuna
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from hpo import cube, proposals
from hpo.searchers import sampler, storable, suggest
from hpo.spec import Request, with_values

BUDGETS = (8, 14)


class Opening(NamedTuple):
    name: str
    searcher: str
    spread: float
    inside: float


OPENINGS = (
    Opening("random draws, no model", "random", 0.3, 0.3),
    Opening("around the default", "gp", 0.3, 0.0),
    Opening("its centre kept 0.3 from the ends (taken)", "gp", 0.3, 0.3),
    Opening("its centre in the middle", "gp", 0.3, 0.5),
    Opening("uniform", "gp", 50.0, 0.5),
)


class Model(NamedTuple):
    fitted: GaussianProcessRegressor
    noise: float
    """Standard deviation of a seed."""

    def value(self, ways: list[float]) -> float:
        return float(self.fitted.predict([ways])[0])


def measured(path: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """(spec values, best val_mAP50) of the trials in our own space."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for trial in [row] if row["arm"] == "narrow" else row["trials"] if row["arm"] == "full" else ():
            if trial["points"]:
                yield trial["values"], max(value for _, value in trial["points"])


def fit(request: Request, path: Path) -> Model:
    space = request.space()
    places, values = [], []
    for changed, value in measured(path):
        places.append(cube.ways(space, space.encode(with_values(request.spec, changed).to_dict())))
        values.append(value)
    lengths = Matern(length_scale=[1.0] * len(space.parameters), length_scale_bounds=(0.15, 20.0), nu=2.5)
    kernel = ConstantKernel(0.05) * lengths + WhiteKernel(0.003, (1e-4, 0.3))
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=4, random_state=0)
    model.fit(np.array(places), np.array(values))
    noise = math.sqrt(model.kernel_.k2.noise_level) * statistics.pstdev(values)
    print(f"{len(values)} trials, noise {noise:.3f}, {model.kernel_}", flush=True)
    return Model(model, noise)


def search(request: Request, model: Model, searcher: str, seed: int, trials: int) -> float:
    space, rng = request.space(), random.Random(seed)
    study = optuna.create_study(direction="maximize", sampler=sampler(searcher, seed, 0, space=space))
    study.enqueue_trial({parameter.name: storable(parameter.default) for parameter in space.parameters})
    seen = []
    for _ in range(trials):
        trial = study.ask()
        true = model.value(cube.ways(space, suggest(trial, space)))
        seen.append((true + rng.gauss(0.0, model.noise), true))
        study.tell(trial, seen[-1][0])
    return max(seen)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"), help="what arms.py wrote")
    parser.add_argument("--seeds", type=int, default=24)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out = args.out.absolute()
    request = arms.prepared(out, 0)
    model = fit(request, out / "results.jsonl")
    print("| opening | " + " | ".join(f"{budget} trials" for budget in BUDGETS) + " |", flush=True)
    print("|---|" + "---|" * len(BUDGETS))
    for opening in OPENINGS:
        proposals.SPREAD, proposals.INSIDE = opening.spread, opening.inside
        cells = []
        for budget in BUDGETS:
            found = [search(request, model, opening.searcher, seed, budget) for seed in range(args.seeds)]
            cells.append(f"{statistics.mean(found):.3f} ± {statistics.stdev(found) / math.sqrt(len(found)):.3f}")
        print(f"| {opening.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
