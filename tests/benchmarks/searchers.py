"""Which searcher finds more with 8, 20 and 50 trials, on surfaces that cost nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/searchers.py random tpe gp --seeds 20 --jobs 2

A surface is a bowl in the logarithms of our narrow space (6 dimensions), of a wide one (14, with integers and choices)
or of a fresh one (the narrow space of a detector from random weights, where the default stands at the low end of both
rates): the learning rate matters most and pulls at the backbone's ratio, noise is that of a seed, and beyond an edge
training diverges to a plateau. Where the optimum lies: `near` the default, `off` it in the learning rate (as for a
small detector from random weights), or `far`, anywhere. What counts is the true value of the trial that looks best.
Trials run one at a time or four at a time; the first is always the default.

`--opening` compares openings of one searcher: finished trials before the model, their spread around the default, and
how far from the ends of a range their centre stays.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import optuna

from hpo import cube, proposals
from hpo.searchers import sampler, storable, suggest
from search_spaces.space import Parameter, SearchSpace

KINDS = ("near", "off", "far")
BUDGETS = (8, 20, 50)
TOP, NOISE, PLATEAU = 0.72, 0.012, 0.03


def _float(name: str, low: float, high: float, default: float, scale: Any = "linear") -> Parameter:
    return Parameter(name=name, kind="float", low=low, high=high, default=default, scale=scale)


NARROW = (
    (_float("lr", 2e-5, 2e-3, 2e-4, "log"), 6.4),
    (_float("backbone", 0.02, 0.5, 0.1, "log"), 2.0),
    (_float("decay", 1e-5, 1e-2, 1e-4, "log"), 0.5),
    (_float("dropout", 0.0, 0.4, 0.3), 0.6),
    (_float("drop", 0.5, 0.95, 0.8), 0.5),
    (_float("flip", 0.0, 0.5, 0.5), 0.25),
)
WIDE = (
    *NARROW,
    (_float("lr_decay", 0.05, 0.5, 0.1, "log"), 0.2),
    (_float("mult", 0.03, 1.0, 0.1, "log"), 0.2),
    (_float("clip", 0.05, 1.0, 0.1, "log"), 0.4),
    (Parameter(name="encoder", kind="int", low=3, high=9, default=6), 0.5),
    (Parameter(name="queries", kind="int", low=150, high=600, default=300), 0.4),
    (Parameter(name="batch", kind="int", low=2, high=8, scale="log", default=4), 0.4),
    (Parameter(name="optimizer", kind="categorical", choices=("AdamW", "SGD", "Adam"), default="AdamW"), 0.3),
    (Parameter(name="crop", kind="categorical", choices=(None, 640, 800), default=None), 0.15),
)
FRESH = (
    (_float("lr", 1e-4, 5e-3, 2e-4, "log"), 6.4),
    (_float("backbone", 0.1, 1.0, 0.1, "log"), 2.0),
    (_float("decay", 1e-5, 1e-3, 1e-4, "log"), 0.5),
    (_float("dropout", 0.0, 0.4, 0.3), 0.6),
    (_float("drop", 0.7, 0.95, 0.95), 0.5),
    (_float("flip", 0.0, 0.5, 0.5), 0.25),
)
SPACES = {"narrow": NARROW, "wide": WIDE, "fresh": FRESH}


def space(shape: str) -> SearchSpace:
    return SearchSpace(parameters=tuple(parameter for parameter, _ in SPACES[shape]))


def surface(shape: str, kind: str, seed: int) -> Callable[[dict[str, Any]], float]:
    """Sample -> true value, at most TOP."""
    rng = random.Random(f"{shape}/{kind}/{seed}")
    where, losses = {}, {}
    for parameter, _ in SPACES[shape]:
        default = cube.way(parameter, parameter.default)
        place = min(max(rng.gauss(default, 0.2), 0.0), 1.0) if kind == "near" else rng.random()
        where[parameter.name] = rng.uniform(0.6, 0.85) if kind == "off" and parameter.name == "lr" else place
        losses[parameter.name] = {repr(choice): rng.random() for choice in parameter.choices}
    edge = where["lr"] + rng.uniform(0.12, 0.3)

    def value(sample: dict[str, Any]) -> float:
        away: dict[str, float] = {}
        for parameter, _ in SPACES[shape]:
            at = cube.way(parameter, sample[parameter.name])
            away[parameter.name] = at - where[parameter.name]
            if parameter.choices:
                away[parameter.name] = losses[parameter.name][repr(sample[parameter.name])]
            if parameter.name == "lr" and at > edge:
                return PLATEAU
        bowl = sum(weight * away[parameter.name] ** 2 for parameter, weight in SPACES[shape])
        return max(TOP * math.exp(-bowl - 1.6 * away["lr"] * away["backbone"]), 0.01)

    return value


def search(searcher: str, shape: str, kind: str, seed: int, at_a_time: int, trials: int) -> tuple[list[float], float]:
    """The true value of the trial that looks best, after each of BUDGETS; the longest ask in seconds."""
    box, value, noise = space(shape), surface(shape, kind, seed), random.Random(seed)
    study = optuna.create_study(direction="maximize", sampler=sampler(searcher, seed, 0, space=box))
    study.enqueue_trial({parameter.name: storable(parameter.default) for parameter in box.parameters})
    running: list[tuple[optuna.Trial, float]] = []
    seen: list[tuple[float, float]] = []
    longest = 0.0
    while len(seen) < trials:
        while len(running) < at_a_time and len(running) + len(seen) < trials:
            begun = time.perf_counter()
            trial = study.ask()
            sample = suggest(trial, box)
            longest = max(longest, time.perf_counter() - begun)
            running.append((trial, value(sample)))
        trial, true = running.pop(0)
        looks = true + noise.gauss(0.0, NOISE) if true > PLATEAU else true
        study.tell(trial, looks)
        seen.append((looks, true))
    return [max(seen[:budget])[1] for budget in BUDGETS if budget <= trials], longest


def rows(args: argparse.Namespace, pool: ProcessPoolExecutor) -> Iterator[str]:
    budgets = [budget for budget in BUDGETS if budget <= args.trials]
    yield (
        "| space | optimum | at a time | searcher | " + " | ".join(f"{b} trials" for b in budgets) + " | longest ask |"
    )
    yield "|---|---|---|---|" + "---|" * (len(budgets) + 1)
    for shape in args.spaces:
        for kind in args.kinds:
            for at_a_time in args.at_a_time:
                for searcher in args.searchers:
                    runs = [
                        pool.submit(search, searcher, shape, kind, seed, at_a_time, args.trials)
                        for seed in range(args.seeds)
                    ]
                    found = [run.result() for run in runs]
                    cells = []
                    for values in zip(*(best for best, _ in found), strict=True):
                        error = statistics.stdev(values) / math.sqrt(len(values))
                        cells.append(f"{statistics.mean(values):.3f} ± {error:.3f}")
                    longest = statistics.median(longest for _, longest in found)
                    yield f"| {shape} | {kind} | {at_a_time} | {searcher} | {' | '.join(cells)} | {longest:.2f} s |"


def _opening(startup: int, spread: float, inside: float) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    proposals.Learning.startup, proposals.SPREAD, proposals.INSIDE = startup, spread, inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("searchers", nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=max(BUDGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--at-a-time", nargs="+", type=int, default=[1, 4])
    now = (proposals.Learning.startup, proposals.SPREAD, proposals.INSIDE)
    parser.add_argument("--opening", nargs=3, type=float, metavar=("STARTUP", "SPREAD", "INSIDE"), default=now)
    args = parser.parse_args()
    startup, (spread, inside) = int(args.opening[0]), args.opening[1:]
    print(f"startup {startup}, spread {spread}, inside {inside}, {args.seeds} seeds: mean ± standard error", flush=True)
    with ProcessPoolExecutor(args.jobs, initializer=_opening, initargs=(startup, spread, inside)) as pool:
        for row in rows(args, pool):
            print(row, flush=True)


if __name__ == "__main__":
    main()
