"""Draws from the raw schema bounds against random draws from our narrow space: the same detector, data, CPU seconds.

    python tests/benchmarks/raw_bounds.py --out runs/raw_bounds --jobs 2

Three kinds of jobs, in turn: `raw` sets all 16 `automl_default_parameters` (see peer_draws.py), `narrow` a random point
of the derived space, `default` the spec as it stands under another training seed. A draw that the spec's own rules
refuse is `infeasible` and is neither repaired nor replaced; one whose loss leaves the finite numbers is `diverged`.

A narrow trial plans for the six epochs of the spec, about what the default does in the time, so that its drop of the
learning rate comes before the end. The schedule of the other two does not depend on the length (`lr_steps: [40]`), so
they may go on for as many epochs as fit. A trial's score is the best of its validations, the last one at its stop.
"""

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trial_pool

SPEC = Path("experiments/quickstart.yaml")
LONG = 39
"""Epochs of a trial whose learning rate never drops: more than fit, and before the drop of the schema's default."""


def work(arm: str, number: int, seed: int, cpu_s: float) -> Mapping[str, Any]:
    """One trial, from its draw to its score."""
    import peer_draws
    from short_training import train_for

    from hpo.spec import read_request, with_values
    from model.errors import SpecError
    from schemas import packaged

    started = time.monotonic()
    request = read_request(SPEC)
    rng = random.Random(f"{seed}/{arm}/{number}")
    values: dict[str, Any] = {"train.num_epochs": LONG}
    if arm == "raw":
        values |= peer_draws.draw(packaged.schema("train"), rng)
    elif arm == "narrow":
        space = request.space()
        values = space.resolve(space.draw(rng))
    else:
        values["train.seed"] = request.spec.train.seed + number
    row: dict[str, Any] = {"arm": arm, "number": number, "values": values}
    try:
        spec = with_values(request.spec, values)
    except SpecError as error:
        return {**row, "outcome": "infeasible", "reason": str(error), "score": None}
    scored = train_for(spec, cpu_s)
    outcome = "diverged" if scored.diverged else "scored"
    more = {**dataclasses.asdict(scored), "last": scored.last, "wall_s": round(time.monotonic() - started, 1)}
    return {**row, "outcome": outcome, "score": None if scored.diverged else scored.best, **more}


def plan(trials: int, defaults: int, seed: int, cpu_s: float) -> list[tuple[str, tuple[Any, ...]]]:
    """Raw and narrow in turn, the default's repetitions spread among them: what drifts in the machine drifts alike."""
    jobs = []
    for number in range(trials):
        if number * defaults % trials < defaults:
            again = number * defaults // trials
            jobs.append((f"default/{again}", ("default", again, seed, cpu_s)))
        jobs += [(f"{arm}/{number}", (arm, number, seed, cpu_s)) for arm in ("raw", "narrow")]
    return jobs


def scores(rows: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """By arm, one for every trial that was asked for: what could not run, or diverged, found nothing (0)."""
    return sorted(row["score"] or 0.0 for row in rows if row["arm"] == arm)


def difference(a: Sequence[float], b: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of median(b) - median(a)."""
    rng = random.Random(0)
    found = sorted(
        statistics.median(rng.choices(b, k=len(b))) - statistics.median(rng.choices(a, k=len(a))) for _ in range(draws)
    )
    return found[int(0.025 * draws)], found[int(0.975 * draws)]


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| | trials | infeasible | diverged | median | quartiles | best | above default | epochs (median) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    default = statistics.median(scores(rows, "default"))
    for arm in ("raw", "narrow", "default"):
        mine, found = [row for row in rows if row["arm"] == arm], scores(rows, arm)
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        ends = [sum(row["outcome"] == end for row in mine) for end in ("infeasible", "diverged")]
        above = sum(score > default for score in found)
        epochs = statistics.median(row["epochs"] for row in mine if row["outcome"] == "scored")
        spread = f"{low:.4f} to {high:.4f} | {found[-1]:.4f}"
        lines.append(
            f"| {arm} | {len(mine)} | {ends[0]} | {ends[1]} | {middle:.4f} | {spread} | {above} | {epochs:.1f} |"
        )
    low, high = difference(scores(rows, "raw"), scores(rows, "narrow"))
    lines.append(f"\nmedian of narrow minus median of raw: 95 % bootstrap interval {low:.4f} to {high:.4f}")
    spread = [row["cpu_s"] for row in rows if row["outcome"] == "scored"]
    lines.append(f"CPU seconds of training: {min(spread):.1f} to {max(spread):.1f}")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path, cpu_s: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    colours = {"raw": "tab:red", "narrow": "tab:blue"}
    names = {"raw": "raw schema bounds, linear", "narrow": "our narrow space"}
    default = statistics.median(scores(rows, "default"))
    jitter = random.Random(0)
    for place, arm in enumerate(colours):
        found = scores(rows, arm)
        left.scatter([place + jitter.uniform(-0.15, 0.15) for _ in found], found, s=18, color=colours[arm], alpha=0.7)
        left.hlines(statistics.median(found), place - 0.28, place + 0.28, color=colours[arm], linewidth=2)
        shares = [(rank + 1) / len(found) for rank in range(len(found))]
        right.step(shares, found, where="pre", color=colours[arm], label=names[arm])
    for axes in (left, right):
        axes.axhline(default, color="black", linestyle="--", linewidth=1, label="the default, median of its seeds")
        axes.grid(alpha=0.3)
    left.set_xticks(range(len(colours)), [names[arm] for arm in colours])
    left.set_ylabel("val_mAP50")
    left.set_title("every trial; the bar is the median")
    right.set_xlabel("share of trials at or below")
    right.legend(loc="lower left", bbox_to_anchor=(0.1, 0.08))
    figure.suptitle(f"Random draws on the digits, {cpu_s:g} CPU seconds of training each")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/raw_bounds"), help="holds results.jsonl")
    parser.add_argument("--trials", type=int, default=30, help="of each arm")
    parser.add_argument("--defaults", type=int, default=5, help="training seeds of the default")
    parser.add_argument("--cpu-seconds", type=float, default=60.0, help="of training, for every trial")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--plot", type=Path, help="where to draw the two distributions")
    given = parser.parse_args()
    jobs = plan(given.trials, given.defaults, given.seed, given.cpu_seconds)
    rows = trial_pool.run(work, jobs, given.out / "results.jsonl", given.jobs)
    asked = [rows[name] for name, _ in jobs]
    print(report(asked))
    if given.plot:
        plot(asked, given.plot, given.cpu_seconds)


if __name__ == "__main__":
    main()
