"""Trials as lines through the axes of a space: parallel coordinates. Knows facts; the page is elsewhere."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from hpo.reporting.blocks import Figure
from hpo.reporting.facts import Facts
from hpo.reporting.names import short_names, value_text
from hpo.reporting.plots import OTHER, escaped, layout, role_colour, trial_name
from hpo.result import TrialRecord
from hpo.searchers import storable
from search_spaces.space import Parameter

Place = Callable[[Any], float]
Ticks = list[tuple[float, str]]
"""Place from 0 to 1 on an axis, and what stands there."""


def parallel(facts: Facts) -> Figure | None:
    """A line for each trial with a value, through its place on each axis of the space, the metric's the last.

    Lines of plotly's plain kind: its own parallel coordinates need WebGL, which not every machine has, and name no
    trial.
    """
    space, metric = facts.space, facts.result.metric
    known = [(trial, score.mean) for trial in facts.result.trials if (score := facts.result.score(trial)) is not None]
    if space is None or not space.parameters or len(known) < 2:
        return None
    names = short_names(parameter.name for parameter in space.parameters)
    axes = [_axis(parameter) for parameter in space.parameters]
    values = [value for _, value in known]
    places, ticks = _linear(min(values), max(values))
    axes.append((places, ticks))
    labels = [*(names[parameter.name] for parameter in space.parameters), metric.name]
    worst, best = (min(values), max(values)) if metric.goal == "maximize" else (max(values), min(values))
    lines = []
    for trial, value in sorted(known, key=lambda each: _weight(each[0], facts, each[1], metric.goal)):
        point = [*(trial.sample[parameter.name] for parameter in space.parameters), value]
        colour = role_colour(trial, facts)
        lines.append({
            "type": "scatter",
            "mode": "lines+markers",
            "name": trial_name(trial, facts),
            "x": list(range(len(axes))),
            "y": [place(each) for (place, _), each in zip(axes, point, strict=True)],
            "text": [escaped(f"{label}: {value_text(each)}") for label, each in zip(labels, point, strict=True)],
            "line": {
                "color": _shade((value - worst) / (best - worst or 1.0)) if colour == OTHER else colour,
                "width": 1.5 if colour == OTHER else 3.5,
            },
            "marker": {"size": 5},
            "showlegend": colour != OTHER,
            "hovertemplate": f"%{{fullData.name}}, {metric.name} {value:.4f}<br>%{{text}}<extra></extra>",
        })  # fmt: skip
    return Figure(
        name="parallel",
        says="A line for each trial that measured something; the bluer, the better. Axes are logarithmic where the "
        "search is.",
        data=lines,
        layout=_axes_layout([escaped(label) for label in labels], [ticks for _, ticks in axes]),
        height=430,
        least_width=105 * len(axes),
    )


def _axes_layout(labels: Sequence[str], ticks: Sequence[Ticks]) -> dict[str, Any]:
    """Upright axes at 0, 1, 2, ... with their names above and their values beside them."""
    bars = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": OTHER, "width": 1}, "layer": "below"}
        for x in range(len(labels))
    ]
    texts = [
        {
            "x": x,
            "y": y,
            "text": text,
            "showarrow": False,
            "xanchor": "left",
            "xshift": 5,
            "font": {"size": 11, "color": "#52606d"},
            "bgcolor": "rgba(255,255,255,0.75)",
        }
        for x, each in enumerate(ticks)
        for y, text in each
    ]
    names = {"tickvals": list(range(len(labels))), "ticktext": labels, "tickangle": -20, "side": "top"}
    return layout(
        "",
        "",
        shapes=bars,
        annotations=texts,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": -0.03, "yanchor": "top"},
        margin={"l": 20, "r": 55, "t": 85, "b": 30},
        xaxis={**names, "range": [-0.1, len(labels) - 0.85], "showgrid": False, "showline": False, "automargin": False},
        yaxis={"visible": False, "range": [-0.05, 1.05]},
    )


def _axis(parameter: Parameter) -> tuple[Place, Ticks]:
    """Where a value stands on the axis of a parameter, and the ticks."""
    if parameter.choices:
        known = [repr(storable(choice)) for choice in parameter.choices]
        step = 1.0 / max(1, len(known) - 1)
        ticks = [(place * step, escaped(value_text(each))) for place, each in enumerate(parameter.choices)]
        return lambda value: known.index(repr(storable(value))) * step, ticks
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.scale == "linear":
        return _linear(parameter.low, parameter.high)
    low, high = math.log10(parameter.low), math.log10(parameter.high)
    span = high - low or 1.0
    powers = [power for power in range(math.ceil(low), math.floor(high) + 1) if 0.08 < (power - low) / span < 0.92]
    powers = powers[:: max(1, -(-len(powers) // 6))]
    places = [low, *map(float, powers), *([high] if high > low else [])]
    return lambda value: (math.log10(value) - low) / span, [((at - low) / span, f"{10**at:.2g}") for at in places]


def _linear(low: float, high: float) -> tuple[Place, Ticks]:
    span = high - low or 1.0
    places = [low, low + span / 2, high] if high > low else [low]
    return lambda value: (value - low) / span, [((at - low) / span, f"{at:.3g}") for at in places]


def _weight(trial: TrialRecord, facts: Facts, value: float, goal: str) -> tuple[bool, float]:
    """The order of drawing: the best last, and above it the winner and the default."""
    return role_colour(trial, facts) != OTHER, value if goal == "maximize" else -value


def _shade(share: float) -> str:
    """From a light grey at 0 to a blue at 1."""
    low, high = (203, 210, 217), (62, 124, 200)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))
