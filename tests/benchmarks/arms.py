"""Four ways to spend the budget of eight full trials on the real detector, five times each: what a search is worth.

    python tests/benchmarks/arms.py --out runs/arms --jobs 2 --plot experiments/plots/arms.png

raw      random draws from the raw schema bounds (peer_draws.py), nothing stopped early
narrow   random draws from our narrow space, nothing stopped early
full     our default search (trial 0 is the default, searcher `auto`), nothing stopped early
search   our default search with its scheduler: the epochs it saves go into more trials

A full trial is six epochs over 400 of the quickstart's pictures, about 45 CPU seconds for the default. A raw trial may
cost any amount an epoch, so it ends after those CPU seconds (validation not counted) and is charged six epochs. The
searches run on the real ledger, searchers and schedulers, one trial after another, without Ray: what is compared is
which trials are chosen and stopped. The seed of a run is that of its draws and of its trainings.

Every finished training is kept by the digest of its spec, so `search` takes over what it shares with `full`, and the
same command goes on after a kill.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trial_pool

if TYPE_CHECKING:
    from hpo.spec import Request
    from model.spec import ExperimentSpec

SPEC = Path("experiments/quickstart.yaml")
IMAGES, EPOCHS, TRIALS = 400, 6, 8
TOTAL = EPOCHS * TRIALS
ARMS = {
    "raw": "random, raw bounds",
    "narrow": "random, our space",
    "full": "our search, nothing stopped",
    "search": "our search",
}
SCHEDULER = {"full": "none", "search": "asha"}


def random_trial(arm: str, seed: int, number: int, out: Path, cpu_s: float) -> Mapping[str, Any]:
    """One trial of a random arm: its points (epochs charged so far, val_mAP50)."""
    import peer_draws
    from raw_bounds import LONG

    from hpo.spec import with_values
    from model.errors import SpecError
    from schemas import packaged

    request = prepared(out, seed)
    rng = random.Random(f"{seed}/{arm}/{number}")
    if arm == "raw":
        values = {**peer_draws.draw(packaged.schema("train"), rng), "train.num_epochs": LONG}
    else:
        space = request.space()
        values = space.resolve(space.draw(rng))
    row = {"arm": arm, "seed": seed, "number": number, "values": values}
    try:
        spec = with_values(request.spec, values)
    except SpecError as error:
        return {**row, "outcome": "infeasible", "reason": str(error), "points": []}
    limit = cpu_s if arm == "raw" else math.inf
    found = cached(spec, out / "trials", limit)
    cost = cpu_s / EPOCHS if arm == "raw" else 1.0  # CPU seconds, or epochs, that count as one epoch
    at = "cpu_s" if arm == "raw" else "epochs"
    points = [(min(one[at] / cost, EPOCHS), one["val_mAP50"]) for one in found["curve"]]
    return {**row, "outcome": "diverged" if found["diverged"] else "scored", "points": points, "cpu_s": found["cpu_s"]}


def search(arm: str, seed: int, out: Path) -> Mapping[str, Any]:
    """One search until the epochs of the budget are spent, with the points of all its trials."""
    from hpo import schedulers, searchers
    from hpo.ledger import Ledger
    from hpo.result import Outcome
    from model.metrics import VAL_MAP50, Measurement
    from model.spec import ExperimentSpec
    from schemas import yamlio

    request = prepared(out, seed)
    space, folder = request.space(), out / "studies" / f"{arm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed; its trainings are kept
    folder.mkdir(parents=True)
    searcher, because = searchers.resolve("auto", space, TRIALS)
    ledger = Ledger.create(
        folder, request.spec, space, searcher=searcher, seed=seed, budget=TOTAL, points=(), metric=VAL_MAP50
    )
    rule = schedulers.make(SCHEDULER[arm], epochs=EPOCHS, metric=VAL_MAP50, seed=seed)
    trials: list[dict[str, Any]] = []
    spent = 0

    def judge(number: int, one: Mapping[str, float]) -> bool:
        nonlocal spent
        spent += 1
        epoch = round(one["epochs"])
        trials[-1]["points"].append((spent, one["val_mAP50"]))
        ledger.record(number, Measurement(epoch=epoch, values={"val_mAP50": one["val_mAP50"]}, seconds=one["cpu_s"]))
        return spent >= TOTAL or rule.judge(number, ledger.curves).action == "stop"

    while spent < TOTAL and (number := ledger.next()) is not None:
        trials.append({"number": number, "points": []})
        spec = ExperimentSpec.from_dict(yamlio.load(ledger.folder(number) / "spec.yaml").data)
        found = cached(spec, out / "trials", math.inf, lambda one, number=number: judge(number, one))
        outcome = Outcome.COMPLETED if len(ledger.curves[number]) == EPOCHS else Outcome.PRUNED
        reason = None
        if found["diverged"]:
            spent += 1  # the epoch that it did not finish
            outcome, reason = Outcome.INFEASIBLE, found["diverged"]
        ledger.finish(number, outcome, reason=reason)
        trials[-1] |= {"outcome": outcome.value, "values": ledger.record_of(number).params, "cpu_s": found["cpu_s"]}
    return {"arm": arm, "seed": seed, "searcher": searcher, "because": because, "trials": trials}


def cached(
    spec: "ExperimentSpec", folder: Path, cpu_s: float, judge: Callable[[Mapping[str, float]], bool] | None = None
) -> Mapping[str, Any]:
    """The training of `spec`, or, where one that went at least as far is known, its record told to the judge."""
    from short_training import train_for

    identity = json.dumps([spec.to_dict(), None if math.isinf(cpu_s) else cpu_s], sort_keys=True)
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    told = 0

    def tell(one: Mapping[str, float]) -> bool:
        nonlocal told
        told += 1
        if told <= already:
            return False  # a training that is done again because the kept one ended too early
        return judge is not None and judge(one)

    already = 0
    known: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if known is not None:
        stopped = any(tell(one) for one in known["curve"])
        if stopped or known["ended"]:
            return known
        already, told = told, 0
    scored = train_for(spec, cpu_s, tell)
    ended = judge is None or bool(scored.diverged) or len(scored.curve) >= spec.train.num_epochs
    found = {**dataclasses.asdict(scored), "ended": ended}
    _write(path, found)
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all; two processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


def prepared(out: Path, seed: int) -> "Request":
    """The quickstart's request on the first IMAGES training pictures, of EPOCHS epochs, with this training seed."""
    from hpo.spec import read_request

    path = (out / "train.json").absolute()
    overrides = [f"train.num_epochs={EPOCHS}", f"train.seed={1234 + seed}"]
    request = read_request(SPEC, overrides)
    source = request.spec.dataset.train_data_sources[0]
    assert source.json_file is not None
    if not path.exists():
        _write(path, _first(json.loads(Path(source.json_file).read_text(encoding="utf-8")), IMAGES))
    sources = json.dumps([{"image_dir": source.image_dir, "json_file": str(path)}])
    return read_request(SPEC, [*overrides, f"dataset.train_data_sources={sources}"])


def _first(coco: dict[str, Any], count: int) -> dict[str, Any]:
    images = coco["images"][:count]
    kept = {image["id"] for image in images}
    return {**coco, "images": images, "annotations": [each for each in coco["annotations"] if each["image_id"] in kept]}


def plan(seeds: int, out: Path, cpu_s: float) -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """`full` before `search` of the same seed, which takes over what they share."""
    jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    for number in range(TRIALS):
        for seed in range(seeds):
            for arm in ("raw", "narrow"):
                jobs.append((f"{arm}/{seed}/{number}", random_trial, (arm, seed, number, out, cpu_s)))
    for arm in SCHEDULER:
        jobs += [(f"{arm}/{seed}", search, (arm, seed, out)) for seed in range(seeds)]
    return jobs


Progress = list[tuple[float, float]]
"""(Epochs spent, best val_mAP50 so far), rising in both."""


def progress(rows: Mapping[str, Mapping[str, Any]], arm: str, seed: int) -> Progress:
    if arm in SCHEDULER:
        points = [tuple(point) for trial in rows[f"{arm}/{seed}"]["trials"] for point in trial["points"]]
    else:
        points = [
            (number * EPOCHS + at, value)
            for number in range(TRIALS)
            for at, value in rows[f"{arm}/{seed}/{number}"]["points"]
        ]
    best, found = 0.0, []
    for at, value in points:
        best = max(best, value)
        found.append((at, best))
    return found


def best_at(found: Progress, epochs: float) -> float:
    return max((value for at, value in found if at <= epochs), default=0.0)


def first_at(found: Progress, value: float) -> float:
    """Epochs until the best is at least `value`; infinite where it never is."""
    return next((at for at, best in found if best >= value), math.inf)


def report(rows: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    runs = {arm: [progress(rows, arm, seed) for seed in range(seeds)] for arm in ARMS}
    final = {arm: [best_at(found, TOTAL) for found in runs[arm]] for arm in ARMS}
    default = [rows[f"full/{seed}"]["trials"][0]["points"] for seed in range(seeds)]
    lines = [
        f"| arm | trials a run | median best of {seeds} seeds | lowest to highest | 95 % interval of the median | "
        f"after {TOTAL // 3} epochs |",
        "|---|---|---|---|---|---|",
    ]
    for arm, name in ARMS.items():
        count = statistics.median(len(rows[f"{arm}/{seed}"]["trials"]) if arm in SCHEDULER else TRIALS
                                  for seed in range(seeds))  # fmt: skip
        low, high = interval(final[arm])
        third = statistics.median(best_at(found, TOTAL / 3) for found in runs[arm])
        lines.append(
            f"| {name} | {count:g} | {statistics.median(final[arm]):.4f} | {min(final[arm]):.4f} to "
            f"{max(final[arm]):.4f} | {low:.4f} to {high:.4f} | {third:.4f} |"
        )
    scores = [max(value for _, value in points) for points in default]
    lines.append(f"\nthe default: median {statistics.median(scores):.4f}, {min(scores):.4f} to {max(scores):.4f}")
    for arm in ("raw", "narrow", "full"):
        target = statistics.median(final[arm])
        taken = [first_at(found, target) for found in runs["search"]]
        shown = ", ".join(f"{each:g}" for each in taken)
        lines.append(
            f"epochs our search needs for the median best of `{arm}` ({target:.4f}): {statistics.median(taken):g} of "
            f"{TOTAL} (by seed: {shown})"
        )
    told = {(rows[f"search/{seed}"]["searcher"], rows[f"search/{seed}"]["because"]) for seed in range(seeds)}
    lines += [f"searcher: {name} ({because})" for name, because in sorted(told)]
    return "\n".join(lines)


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def plot(rows: Mapping[str, Mapping[str, Any]], seeds: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colours = {"raw": "tab:red", "narrow": "tab:orange", "full": "tab:blue", "search": "tab:green"}
    places = [step / 4 for step in range(TOTAL * 4 + 1)]
    for arm, name in ARMS.items():
        runs = [progress(rows, arm, seed) for seed in range(seeds)]
        values = [sorted(best_at(found, place) for found in runs) for place in places]
        axes.plot(places, [statistics.median(each) for each in values], color=colours[arm], label=name)
        axes.fill_between(
            places, [each[0] for each in values], [each[-1] for each in values], color=colours[arm], alpha=0.12
        )
    axes.axvline(TOTAL / 3, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel(f"epochs spent (a full trial is {EPOCHS})")
    axes.set_ylabel("best val_mAP50 so far")
    axes.set_title(f"median of {seeds} seeds, lowest to highest shaded")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"), help="holds every result")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cpu-seconds", type=float, default=45.0, help="of training, for a full trial of `raw`")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="run these only")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--plot", type=Path, help="where to draw the best so far")
    given = parser.parse_args()
    jobs = plan(given.seeds, given.out.absolute(), given.cpu_seconds)
    wanted = [job for job in jobs if job[0].split("/")[0] in given.arms]
    rows = trial_pool.run(_do, [(name, (work, *arguments)) for name, work, arguments in wanted],
                          given.out / "results.jsonl", given.jobs)  # fmt: skip
    if all(name in rows for name, _, _ in jobs):
        print(report(rows, given.seeds))
        if given.plot:
            plot(rows, given.seeds, given.plot)


def _do(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> Mapping[str, Any]:
    return work(*arguments)


if __name__ == "__main__":
    main()
