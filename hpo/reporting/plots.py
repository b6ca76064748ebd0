"""The plots of a report, in plotly's own form. Knows facts and colours; words and the page are elsewhere.

Plain mappings rather than plotly's classes, which take a second to load and would be turned into these anyway; a test
checks them against those classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.pareto import pareto
from hpo.reporting.blocks import Figure
from hpo.reporting.facts import Evaluation, Facts
from hpo.reporting.importance import Importance
from hpo.reporting.names import short_names
from hpo.result import Outcome, TrialRecord

INK, BEST, DEFAULT, OTHER, GRID = "#1f2933", "#0b63ce", "#c2410c", "#9aa5b1", "#e4e7eb"
CLASSES = ("#0b63ce", "#c2410c", "#0f7b6c", "#8b5cf6", "#d69e2e", "#be185d", "#4d7c0f", "#475569", "#0e7490", "#a16207")
SHOWN_CURVES = len(CLASSES)
"""Classes with a curve of their own; more are not told apart."""
AXIS = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": OTHER}


def escaped(text: str) -> str:
    """A name from data in a text of plotly's, which understands some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 55, "r": 15, "t": 15, "b": 50},
        "hovermode": "closest",
        "showlegend": False,
        "xaxis": {**AXIS, "title": {"text": escaped(x)}, **more.pop("xaxis", {})},
        "yaxis": {**AXIS, "title": {"text": escaped(y)}, **more.pop("yaxis", {})},
        **more,
    }


LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"}


def learning_curves(facts: Facts) -> Figure | None:
    """The metric by epoch, a line for each trial: the winner's and the default's in colour."""
    metric, winner = facts.result.metric.name, facts.leader
    lines: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    for trial in (*facts.result.trials, *facts.result.repeats):
        points = [(one.epoch, one.values[metric]) for one in trial.measurements if metric in one.values]
        if not points:
            continue
        best = winner is not None and trial.number == winner.number
        colour = DEFAULT if trial.baseline else BEST if best else OTHER
        line = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [epoch for epoch, _ in points],
            "y": [value for _, value in points],
            "name": trial_name(trial, facts),
            "line": {"color": colour, "width": 3 if best or trial.baseline else 1.2},
            "marker": {"size": 6 if best or trial.baseline else 4},
            "showlegend": best or trial.baseline,
            "hovertemplate": "%{fullData.name}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        }
        (named if best or trial.baseline else lines).append(line)
    if not lines and not named:
        return None
    says = f"{metric} after each epoch, a line for each trial; those that were stopped early are short."
    if facts.plain:
        says = f"{metric} after each epoch."
    return Figure(
        name="curves",
        says=says,
        data=[*lines, *named],
        layout=layout("epoch", metric, showlegend=not facts.plain, legend=LEGEND, xaxis=_whole(facts.epochs)),
    )


def losses(facts: Facts) -> Figure | None:
    """Training and validation loss of the one training of a plain run."""
    data = []
    for name, colour in (("train_loss", OTHER), ("val_loss", BEST)):
        points = [(one.epoch, one.values[name]) for one in facts.result.trials[0].measurements if name in one.values]
        if points:
            line = {"type": "scatter", "mode": "lines+markers", "name": name, "line": {"color": colour, "width": 2}}
            data.append({**line, "x": [epoch for epoch, _ in points], "y": [value for _, value in points]})
    if not data:
        return None
    return Figure(
        name="losses",
        says="Training and validation loss after each epoch.",
        data=data,
        layout=layout("epoch", "loss", showlegend=True, legend=LEGEND, xaxis=_whole(facts.epochs)),
    )


def _whole(epochs: int) -> dict[str, Any]:
    """An axis of epochs, with ticks at whole ones."""
    ticks = {"dtick": 1} if epochs <= 12 else {"tickformat": "d"}
    return {"range": [0.5, epochs + 0.5], **ticks}


def importances(found: Importance) -> Figure | None:
    if not found.shares:
        return None
    names = short_names(name for name, _ in found.shares)
    shares = found.shares[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [escaped(names[name]) for name, _ in shares],
        "x": [share for _, share in shares],
        "text": [f"{share:.0%}" for _, share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": BEST},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    return Figure(
        name="importance",
        says=f"Share of the metric's variation among {found.trials} full trials that each parameter explains, by "
        "Optuna's default evaluator. It says where a search pays, not in which direction.",
        data=[bars],
        layout=layout(
            "share", "", xaxis={"tickformat": ".0%", "rangemode": "tozero"}, margin={"l": 10, "r": 45, "t": 10, "b": 45}
        ),
        height=90 + 30 * len(shares),
    )


def trade_offs(facts: Facts) -> list[Figure]:
    """The metric against each other objective; against the seconds of training where the search had none."""
    result = facts.result
    known = [trial for trial in result.contenders if trial.outcome is Outcome.COMPLETED]
    costs: Mapping[str, str] = {**result.goals} if result.goals else {"seconds": "minimize"}
    figures = []
    for name, goal in costs.items():
        points = [
            (trial, cost, score.mean)
            for trial in known
            if (cost := trial.seconds if name == "seconds" else trial.costs.get(name)) is not None
            and (score := result.score(trial)) is not None
        ]
        if len(points) >= 2:
            figures.append(_trade_off(facts, name, goal, points))
    return figures


def _trade_off(facts: Facts, name: str, goal: Any, points: Sequence[tuple[TrialRecord, float, float]]) -> Figure:
    metric = facts.result.metric
    if facts.result.goals:
        numbers = {trial.number for trial in facts.result.pareto}
        front = [point for point in points if point[0].number in numbers]
        what = f"On the front are the trials that none beats in one of the {1 + len(facts.result.goals)} objectives "
    else:
        places = pareto([[value, cost] for _, cost, value in points], [metric.goal, goal])
        front = [points[place] for place in places]
        what = "On the front are the trials that none beats in accuracy or time "
    front = sorted(front, key=lambda point: point[1])
    step: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": "front"}
    step |= {"hoverinfo": "skip", "line": {"color": BEST, "width": 1.5, "dash": "dot"}}
    step |= {"x": [x for _, x, _ in front], "y": [y for _, _, y in front]}
    dots = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [x for _, x, _ in points],
        "y": [y for _, _, y in points],
        "text": ["default" if trial.baseline else str(trial.number) for trial, _, _ in points],
        "textposition": "top center",
        "textfont": {"size": 11},
        "marker": {
            "size": 10,
            "color": [role_colour(trial, facts) for trial, _, _ in points],
            "line": {"width": 1, "color": "white"},
        },
        "hovertemplate": f"trial %{{text}}<br>{escaped(name)} %{{x:.4g}}<br>{metric.name} %{{y:.4f}}<extra></extra>",
    }
    unit = "seconds of training" if name == "seconds" else name
    return Figure(
        name=f"front-{name}",
        says=f"{metric.name} against {unit}, of full trials. {what}without being worse in the rest.",
        data=[step, dots],
        layout=layout(unit, metric.name, xaxis={"rangemode": "normal"}),
    )


def precision_recall(evaluation: Evaluation) -> Figure | None:
    """The classes with the most boxes, and the mean over all."""
    if not evaluation.curves:
        return None
    boxes = {row["category_id"]: int(row["boxes"]) for row in evaluation.classes}
    often = sorted(evaluation.curves, key=lambda curve: -boxes.get(str(curve["category_id"]), 0))[:SHOWN_CURVES]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escaped(curve["name"]),
            "x": evaluation.recall,
            "y": curve["precision"],
            "line": {"color": CLASSES[place], "width": 1.6},
            "hovertemplate": "%{fullData.name}<br>recall %{x:.2f}: precision %{y:.3f}<extra></extra>",
        }
        for place, curve in enumerate(often)
    ]
    if len(evaluation.curves) > 1:
        columns = zip(*(curve["precision"] for curve in evaluation.curves), strict=True)
        mean = [sum(column) / len(evaluation.curves) for column in columns]
        data.append({**data[0], "name": "mean of all", "y": mean, "line": {"color": INK, "width": 3}})
    left = len(evaluation.curves) - len(often)
    more = f" The {len(often)} classes with the most boxes; {left} more count in the mean." if left else ""
    return Figure(
        name="precision-recall",
        says=f"Precision at each recall, at an IoU of 0.5, on {evaluation.images} validation images.{more}",
        data=data,
        layout=layout(
            "recall",
            "precision",
            showlegend=True,
            legend=LEGEND,
            xaxis={"range": [0, 1.01]},
            yaxis={"range": [0, 1.02]},
        ),
    )


def trial_name(trial: TrialRecord, facts: Facts) -> str:
    if trial.baseline:
        return "the training" if facts.plain else "default"
    if trial.repeats is not None:
        return f"trial {trial.number}, {trial.repeats} again with another seed"
    best = facts.leader is not None and trial.number == facts.leader.number
    return f"trial {trial.number}" + (" (best)" if best else "")


def role_colour(trial: TrialRecord, facts: Facts) -> str:
    if trial.baseline:
        return DEFAULT
    return BEST if facts.leader is not None and trial.number == facts.leader.number else OTHER
