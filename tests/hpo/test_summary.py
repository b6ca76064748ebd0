"""A sweep as MLflow shows it: the page of Markdown, and the numbers that rise as trials end."""

from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt

from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.summary import ROWS, progress, summary
from model.metrics import VAL_MAP50, Metric
from tests.hpo.trials import trial


def sweep(*trials: TrialRecord, ended: str | None = None, metric: Metric = VAL_MAP50) -> SweepResult:
    return SweepResult(
        run_dir=Path("/runs/a"),
        metric=metric,
        trials=trials,
        budget=9,
        space_hash="",
        seed=0,
        ended=ended,
        seconds=1800.0,
    )


def test_best_so_far_in_the_order_in_which_trials_ended() -> None:
    trials = (
        trial(0, 0.4, end=2, sweep_gpu_seconds=300),
        trial(1, 0.9, outcome=Outcome.PRUNED, end=0, sweep_gpu_seconds=100),
        trial(2, outcome=Outcome.FAILED, end=1, sweep_gpu_seconds=200),
        trial(3, 0.7, outcome=None),
        trial(4, 0.6, end=3, sweep_gpu_seconds=400),
        trial(5, 0.5, end=4, sweep_gpu_seconds=400),
    )
    name = "best_val_mAP50"
    best = [(step, metrics.get(name)) for step, metrics in progress(sweep(*trials))]
    assert best == [(1, 0.9), (2, 0.9), (3, 0.4), (4, 0.6), (5, 0.6)], "a completed trial counts before a stopped one"
    hours = [round(3600 * metrics["gpu_hours"]) for _, metrics in progress(sweep(*trials))]
    assert hours == [100, 200, 300, 400, 400]
    lowest = [metrics[name] for _, metrics in progress(sweep(*trials, metric=Metric("val_mAP50", "minimize")))]
    assert lowest == [0.9, 0.9, 0.4, 0.4, 0.4]


def test_each_prefix_says_what_the_whole_says_of_it() -> None:
    """So that a resumed sweep writes the points that were written before."""
    outcomes = (Outcome.PRUNED, Outcome.COMPLETED)
    trials = [trial(n, 0.1 * n, outcome=outcomes[n % 2], end=(5 * n) % 7) for n in range(7)]
    whole = progress(sweep(*trials))
    for count in range(8):
        some = [one for one in trials if one.end is not None and one.end < count]
        assert progress(sweep(*some)) == whole[:count]


def test_the_verdict_comes_first_and_the_next_commands_last() -> None:
    done = summary(sweep(trial(0, 0.4, end=0), trial(1, 0.5, end=1), ended="2 of 2 trials"))
    lines = done.splitlines()
    assert lines[0].startswith("**Trial 1 won with val\\_mAP50 0.5000")
    assert "| 0 (default) | completed |" in done
    assert "0.5 hours by the wall" in done
    assert lines[-1].startswith("- `ddetr resume /runs/a --add-trials")
    early = summary(sweep(trial(0, outcome=None)))
    assert early.startswith("**No trial has completed yet.**")
    assert "0 of 9 trials are over" in early
    assert "ddetr stop /runs/a" in early


def test_it_fits_into_a_tag_and_names_from_data_are_no_markup() -> None:
    many = [trial(n, 0.1, end=n) for n in range(60)]
    page = summary(sweep(*many))
    assert f"{60 - ROWS} more trials" in page
    assert len(page) < 5000
    bad = trial(0, 0.1, outcome=Outcome.FAILED, end=0, reason="<script>|`x`")
    assert "<script>" not in summary(sweep(bad, ended="<b>"))


def test_the_name_of_a_run_is_no_markup() -> None:
    evil = replace(
        sweep(trial(0, 0.1, end=0), ended="1 of 9 trials"), run_dir=Path("/runs/`<script>alert(1)</script>``")
    )
    page = MarkdownIt().render(summary(evil))
    assert "<script" not in page
    assert "/runs/`&lt;script&gt;alert(1)&lt;/script&gt;``" in page
