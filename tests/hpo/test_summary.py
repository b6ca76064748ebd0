"""A sweep as MLflow shows it: the page of Markdown, and the numbers that rise as trials end."""

from dataclasses import replace
from pathlib import Path

from hpo.result import Outcome, SweepResult, TrialRecord
from hpo.summary import ROWS, progress, summary
from model.metrics import VAL_MAP50, Measurement, Metric


def trial(
    number: int, value: float | None, outcome: Outcome | None, end: int | None, gpu_s: float = 0.0
) -> TrialRecord:
    measured = () if value is None else (Measurement(epoch=1, values={VAL_MAP50.name: value}, seconds=5.0),)
    return TrialRecord(
        number=number,
        baseline=number == 0,
        outcome=outcome,
        reason=None,
        sample={},
        params={},
        adjustments=(),
        measurements=measured,
        seconds=5.0,
        checkpoint=None,
        end=end,
        sweep_gpu_seconds=gpu_s,
    )


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
        trial(0, 0.4, Outcome.COMPLETED, 2, gpu_s=300),
        trial(1, 0.9, Outcome.PRUNED, 0, gpu_s=100),
        trial(2, None, Outcome.FAILED, 1, gpu_s=200),
        trial(3, 0.7, None, None),
        trial(4, 0.6, Outcome.COMPLETED, 3, gpu_s=400),
        trial(5, 0.5, Outcome.COMPLETED, 4, gpu_s=400),
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
    trials = [trial(n, 0.1 * n, Outcome.COMPLETED if n % 2 else Outcome.PRUNED, (5 * n) % 7) for n in range(7)]
    whole = progress(sweep(*trials))
    for count in range(8):
        some = [one for one in trials if one.end is not None and one.end < count]
        assert progress(sweep(*some)) == whole[:count]


def test_the_verdict_comes_first_and_the_next_commands_last() -> None:
    done = summary(
        sweep(trial(0, 0.4, Outcome.COMPLETED, 0), trial(1, 0.5, Outcome.COMPLETED, 1), ended="2 of 2 trials")
    )
    lines = done.splitlines()
    assert lines[0].startswith("**Trial 1 won with val\\_mAP50 0.5000")
    assert "| 0 (default) | completed |" in done
    assert "0.5 hours by the wall" in done
    assert lines[-1].startswith("- `ddetr resume /runs/a --add-trials")
    early = summary(sweep(trial(0, None, None, None)))
    assert early.startswith("**No trial has completed yet.**")
    assert "0 of 9 trials are over" in early
    assert "ddetr stop /runs/a" in early


def test_it_fits_into_a_tag_and_names_from_data_are_no_markup() -> None:
    many = [trial(n, 0.1, Outcome.COMPLETED, n) for n in range(60)]
    page = summary(sweep(*many))
    assert f"{60 - ROWS} more trials" in page
    assert len(page) < 5000
    bad = replace(trial(0, 0.1, Outcome.FAILED, 0), reason="<script>|`x`")
    assert "<script>" not in summary(sweep(bad, ended="<b>"))
