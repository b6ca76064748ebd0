"""What the benchmarks rest on: draws as the peer makes them, and results that a kill does not lose. No training."""

import dataclasses
import json
import math
import random
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as when a benchmark is run by its path

import arms
import peer_draws
import raw_bounds
import short_training
import trial_pool

from hpo.spec import read_request
from model.spec import ExperimentSpec
from schemas import packaged

SCHEMA = packaged.schema("train")
DRAWS = [peer_draws.draw(SCHEMA, random.Random(number)) for number in range(4000)]


def test_all_sixteen_are_drawn_inside_the_schema() -> None:
    assert {len(draw) for draw in DRAWS} == {16}
    for draw in DRAWS:
        for name, value in draw.items():
            leaf = SCHEMA.leaves[name]
            assert leaf.low <= value <= (leaf.high if leaf.high is not None else 2 * leaf.default)


def test_the_figures_known_of_the_peer() -> None:
    # 4,000 draws: a share of one half has sd 0.008 and a median in [0, 1] sd 0.008, so the margins are over 6 sd.
    def share(name: str, low: float, high: float) -> float:
        return sum(low <= draw[name] <= high for draw in DRAWS) / len(DRAWS)

    assert abs(share("train.optim.lr", 1e-3, 1) - 0.90) < 0.05
    assert abs(share("train.optim.weight_decay", 0, 1e-3) - 0.01) < 0.01
    assert abs(statistics.median(draw["train.optim.lr_backbone"] for draw in DRAWS) - 5e-4) < 5e-5
    assert {draw["dataset.batch_size"] for draw in DRAWS} == set(range(1, 9))
    assert {draw["dataset.workers"] for draw in DRAWS} == set(range(1, 17))
    crops = [draw[peer_draws.CROP_MIN] for draw in DRAWS]
    assert (min(crops), max(crops)) == (32, 768)
    assert all(draw[peer_draws.CROP_MIN] <= draw[peer_draws.CROP_MAX] for draw in DRAWS)
    capped = sum(draw["model.num_select"] == draw["model.num_queries"] for draw in DRAWS) / len(DRAWS)
    assert abs(capped - 0.50) < 0.05


def test_a_plan_alternates_and_spreads_the_default() -> None:
    names = [name for name, _ in raw_bounds.plan(30, 5, 0, 60.0)]
    assert [name for name in names if "default" not in name][:4] == ["raw/0", "narrow/0", "raw/1", "narrow/1"]
    assert [place for place, name in enumerate(names) if "default" in name] == [0, 13, 26, 39, 52]


def test_a_trial_without_a_score_counts_as_nothing_found() -> None:
    rows = [{"arm": "raw", "score": None}, {"arm": "raw", "score": 0.3}, {"arm": "narrow", "score": 0.5}]
    assert raw_bounds.scores(rows, "raw") == [0.0, 0.3]


def test_bootstrap_interval_holds_the_difference() -> None:
    low, high = raw_bounds.difference([0.1] * 20, [0.4] * 20)
    assert low == high == 0.4 - 0.1


def _square(number: int) -> dict[str, int]:
    return {"square": number * number}


def test_a_pool_goes_on_after_a_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"job": "a", "square": -1}) + '\n{"job": "b", "squ')
    done = trial_pool.run(_square, [("a", (1,)), ("b", (2,))], path, 1)
    assert done["a"]["square"] == -1  # not run again
    assert done["b"]["square"] == 4
    assert trial_pool.load(path) == done


class Trainer:
    """A training whose score after an epoch is that epoch over ten; counts how often it is begun."""

    def __init__(self) -> None:
        self.begun = 0

    def __call__(
        self, spec: ExperimentSpec, cpu_s: float = math.inf, judge: short_training.Judge | None = None
    ) -> short_training.Scored:
        self.begun += 1
        curve = []
        for epoch in range(1, spec.train.num_epochs + 1):
            curve.append({"epochs": float(epoch), "cpu_s": 7.0 * epoch, "val_mAP50": epoch / 10})
            if judge is not None and judge(curve[-1]):
                break
        return short_training.Scored(
            curve=tuple(curve), epochs=len(curve), steps=0, cpu_s=7.0 * len(curve), validation_cpu_s=0.0
        )


def test_a_kept_training_is_told_again_and_prolonged_where_it_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer()
    monkeypatch.setattr(short_training, "train_for", train)
    spec = ExperimentSpec()
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, num_epochs=6))
    told: list[float] = []

    def until(last: int) -> list[float]:
        told.clear()

        def judge(one: dict[str, float]) -> bool:
            told.append(one["epochs"])
            return one["epochs"] >= last

        arms.cached(spec, tmp_path, math.inf, judge)
        return list(told)

    assert until(3) == [1, 2, 3]
    assert until(2) == [1, 2]
    assert train.begun == 1
    assert until(9) == [1, 2, 3, 4, 5, 6]
    assert until(5) == [1, 2, 3, 4, 5]
    assert until(9) == [1, 2, 3, 4, 5, 6]
    assert train.begun == 2


def test_progress_of_a_search_and_of_random_draws() -> None:
    rows = {
        "search/0": {"trials": [{"points": [[1, 0.1], [2, 0.3]]}, {"points": [[3, 0.2], [4, 0.4]]}]},
        **{f"raw/0/{number}": {"points": [[2.5, 0.1 * number]]} for number in range(arms.TRIALS)},
    }
    search, raw = arms.progress(rows, "search", 0), arms.progress(rows, "raw", 0)
    assert search == [(1, 0.1), (2, 0.3), (3, 0.3), (4, 0.4)]
    assert arms.first_at(search, 0.25) == 2
    assert arms.first_at(search, 0.5) == math.inf
    assert arms.best_at(raw, 0.0) == 0.0
    assert arms.best_at(raw, arms.EPOCHS + 2.5) == 0.1


@pytest.mark.slow
def test_a_search_spends_its_epochs_on_the_real_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer()
    monkeypatch.setattr(short_training, "train_for", train)
    request = read_request(None, ["train.num_epochs=6"])
    monkeypatch.setattr(arms, "prepared", lambda out, seed: request)
    full = arms.search("full", 0, tmp_path)
    assert [len(trial["points"]) for trial in full["trials"]] == [6] * 8
    assert train.begun == 8
    search = arms.search("search", 0, tmp_path)
    assert [at for trial in search["trials"] for at, _ in trial["points"]] == list(range(1, 49))
    assert search["trials"][0]["values"] == full["trials"][0]["values"]
    assert train.begun < 8 + len(search["trials"])  # the first of both are one training
    assert arms.search("search", 0, tmp_path) == search
