"""Which worker ran which trial when: a bar for each stretch. Knows facts; the page is elsewhere."""

import time
from collections.abc import Iterable
from typing import Any

from hpo.reporting.blocks import Figure
from hpo.reporting.facts import Facts
from hpo.reporting.names import moment
from hpo.reporting.plots import OTHER, layout
from hpo.result import TrialRecord

COLOURS = {"completed": "#0b63ce", "pruned": "#d69e2e", "infeasible": "#8b5cf6", "failed": "#c81e1e", "lost": "#c81e1e"}


def timeline(facts: Facts) -> Figure | None:
    """A bar for each stretch of a trial on a worker."""
    trials = (*facts.result.trials, *facts.result.repeats)
    workers = list(dict.fromkeys(
        (one.node, one.pid) for _, one in sorted(_stretches(trials), key=lambda each: each[1].start)
    ))  # fmt: skip
    if not workers:
        return None
    nodes = list(dict.fromkeys(node for node, _ in workers))
    now = time.time()
    bars = []
    for trial, one in _stretches(trials):
        end = one.end if one.end is not None else _unknown_end(trial, one.start, now)
        state = "running" if trial.outcome is None else trial.outcome.value
        node = f"node {nodes.index(one.node) + 1}, " if len(nodes) > 1 else ""
        bars.append({
            "type": "bar",
            "orientation": "h",
            "y": [f"{node}pid {one.pid}"],
            "base": [moment(one.start)],
            "x": [1000 * (end - one.start)],
            "text": [str(trial.number)],
            "textposition": "inside",
            "textangle": 0,
            "insidetextanchor": "middle",
            "marker": {"color": COLOURS.get(state, OTHER), "line": {"color": "white", "width": 1}},
            "hovertemplate": f"trial {trial.number}, {state}<br>%{{base}}, {end - one.start:.0f} s<extra></extra>",
        })  # fmt: skip
    return Figure(
        name="timeline",
        says="Which process ran which trial when (the machine's time). Blue trials completed, yellow ones were stopped "
        "early, violet ones could not run, red ones failed; grey ones run.",
        data=bars,
        layout=layout(
            "",
            "",
            barmode="overlay",
            uniformtext={"mode": "hide", "minsize": 9},
            xaxis={"type": "date"},
            bargap=0.25,
            yaxis={"autorange": "reversed"},
        ),
        height=110 + 34 * len(workers),
    )


def _stretches(trials: Iterable[TrialRecord]) -> list[tuple[TrialRecord, Any]]:
    return [(trial, one) for trial in trials for one in trial.attempts]


def _unknown_end(trial: TrialRecord, start: float, now: float) -> float:
    """Of a stretch that runs, or whose driver was killed."""
    later = [one.start for one in trial.attempts if one.start > start]
    if trial.outcome is None and not later:
        return now
    return min([*later, start + max(1.0, trial.seconds)])
