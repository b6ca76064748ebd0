"""What came out, against the default, and how sure that is. Knows facts; says which chance its interval covers."""

import math
import statistics
from typing import NamedTuple

from hpo.reporting.blocks import Block, Section, Text, Tiles
from hpo.reporting.facts import Facts
from hpo.reporting.names import gain
from hpo.result import Outcome, TrialRecord
from hpo.review import clock

LEVEL = 0.95


class Between(NamedTuple):
    difference: float
    low: float
    high: float


def verdict(facts: Facts) -> Section:
    result = facts.result
    blocks: list[Block] = [Text(_headline(facts), "lead"), Tiles(_tiles(facts))]
    if not facts.plain and result.improved and result.score(_default(facts)) is not None:
        blocks.append(Text(interval_text(facts)))
    if facts.test:
        blocks.append(Text(_test_text(facts)))
    return Section("verdict", "Verdict", blocks)


def _headline(facts: Facts) -> str:
    result = facts.result
    if facts.plain:
        trial, metric = result.trials[0], result.metric
        best = trial.best(metric)
        if best is None:
            return "One training, without a search; it has measured nothing yet."
        now = f"{metric.name} {best.values[metric.name]:.4f} at epoch {best.epoch}"
        return f"One training, without a search: {now}{'' if result.finished else ' so far'}."
    if result.finished:
        return result.verdict()
    if result.best is not None:
        return _so_far(facts, result.best)
    leader = facts.leader
    if leader is None:
        return "So far no trial has measured anything."
    value = leader.value(result.metric)
    return f"So far no trial has ended; trial {leader.number} leads with {result.metric.name} {value:.4f}."


def _so_far(facts: Facts, best: TrialRecord) -> str:
    """Who leads among the trials that have ended, and who runs and is ahead of it."""
    result, score = facts.result, facts.result.score(best)
    assert score is not None
    default = None if result.baseline is None else result.score(result.baseline)
    beside = "" if best.baseline or default is None else f", {gain(score.mean - default.mean)} to the default"
    who = "the default" if best.baseline else f"trial {best.number}"
    said = f"So far {who} leads the trials that have ended, with {result.metric.name} {score.mean:.4f}{beside}."
    ahead = [
        f"trial {trial.number} has {value:.4f}"
        for trial in result.trials
        if trial.outcome is None
        and (value := trial.value(result.metric)) is not None
        and result.metric.better(value, score.mean)
    ]
    return said + (f" Still running: {', '.join(ahead)}." if ahead else "")


def _default(facts: Facts) -> TrialRecord:
    assert facts.result.baseline is not None
    return facts.result.baseline


def _tiles(facts: Facts) -> list[tuple[str, str]]:
    result = facts.result
    tiles: list[tuple[str, str]] = []
    best = facts.leader
    own = None if best is None else result.score(best)
    default = None if result.baseline is None else result.score(result.baseline)
    if own is not None:
        tiles.append((f"best {result.metric.name}", f"{own.mean:.4f}"))
    if default is not None and not facts.plain:
        tiles.append(("the default's", f"{default.mean:.4f}"))
        if own is not None:
            tiles.append(("difference", gain(own.mean - default.mean)))
    if facts.plain:
        tiles.append(("epochs", f"{result.trials[0].epochs} of {facts.epochs}"))
    else:
        ended = sum(trial.outcome is not None for trial in result.trials)
        tiles.append(("trials ended", f"{ended} of {result.budget}"))
    if result.seconds:
        tiles.append(("time", clock(result.seconds)))
    if result.gpu_seconds:
        tiles.append(("GPU hours", f"{result.gpu_seconds / 3600:.3g}"))
    return tiles


def interval_text(facts: Facts) -> str:
    """The interval of the winner's gain over the default, and of what it is one."""
    seeds = over_seeds(facts)
    if seeds is not None:
        found, counts = seeds
        return (
            f"Over seeds, the gain is {gain(found.difference)} with a {LEVEL:.0%} interval from {gain(found.low)} to "
            f"{gain(found.high)} (Welch's, from {counts[0]} seeds of the winner and {counts[1]} of the default)."
            + _doubt(found)
        )
    evaluation = facts.evaluation
    if evaluation is None or evaluation.against_default is None or evaluation.trial != _winner(facts).number:
        what = "until the end of the search" if not facts.handed_over else "because the default left no checkpoint"
        return (
            f"No interval is known {what}: each trial was trained once. automl.confirm=3 trains the best three and the "
            "default again with other seeds."
        )
    kept = evaluation.against_default
    found = Between(kept["difference"], kept["low"], kept["high"])
    return (
        f"Over validation images, the gain in mAP50 is {gain(found.difference)} with a {kept['level']:.0%} interval "
        f"from {gain(found.low)} to {gain(found.high)} ({kept['replicates']:.0f} draws of the {kept['images']:.0f} "
        f"images).{_doubt(found)} It covers the choice of images only: each was trained with one seed, and the winner "
        "was chosen on these images, so it is optimistic. automl.confirm=3 repeats the best with other seeds."
    )


def _winner(facts: Facts) -> TrialRecord:
    assert facts.winner is not None
    return facts.winner


def _doubt(found: Between) -> str:
    return " It includes 0: the gain may be chance." if found.low <= 0 <= found.high else ""


def over_seeds(facts: Facts) -> tuple[Between, tuple[int, int]] | None:
    """Welch's interval of the difference of two means; None unless both trials were repeated."""
    pair = [_values(facts, trial) for trial in (_winner(facts), _default(facts))]
    if any(len(values) < 2 for values in pair):
        return None
    difference = statistics.fmean(pair[0]) - statistics.fmean(pair[1])
    parts = [statistics.variance(values) / len(values) for values in pair]
    error = sum(parts)
    if not error:
        return Between(difference, difference, difference), (len(pair[0]), len(pair[1]))
    from scipy.stats import t

    freedom = error**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, pair, strict=True))
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(error)
    return Between(difference, difference - half, difference + half), (len(pair[0]), len(pair[1]))


def _values(facts: Facts, trial: TrialRecord) -> list[float]:
    again = [run for run in facts.result.repeats if run.repeats == trial.number and run.outcome is Outcome.COMPLETED]
    found = (run.value(facts.result.metric) for run in (trial, *again))
    return [value for value in found if value is not None]


def _test_text(facts: Facts) -> str:
    winner, default = facts.test.get("winner"), facts.test.get("default")
    if winner is None:
        return ""
    beside = "" if default is None or facts.plain else f", the default's {default:.4f} ({gain(winner - default)})"
    return f"On the test images, which chose nothing: mAP50 {winner:.4f}{beside}."
