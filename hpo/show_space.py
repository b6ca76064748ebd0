"""A search space as two tables: what is searched and how, what is left out and why."""

from typing import Any

from rich.console import Console
from rich.table import Table

from search_spaces.space import Parameter, SearchSpace


def print_space(space: SearchSpace, console: Console) -> None:
    searched = Table(title=f"searched ({space.tier}): {len(space.parameters)} parameters", title_justify="left")
    for heading in ("name", "type", "scale", "range", "default", "origin"):
        searched.add_column(heading, overflow="fold")
    for parameter in space.parameters:
        scale = "" if parameter.kind == "categorical" else parameter.scale
        row = (
            parameter.name,
            parameter.kind,
            scale,
            range_text(parameter),
            _short(parameter.default),
            parameter.origin,
        )
        searched.add_row(*row)
    console.print(searched, markup=False)
    left_out = Table(title="left out", title_justify="left")
    left_out.add_column("name", overflow="fold")
    left_out.add_column("because", overflow="fold")
    for name, because in space.dropped:
        left_out.add_row(name, because)
    if space.dropped:
        console.print(left_out, markup=False)


def range_text(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return ", ".join(map(str, parameter.choices))
    step = f" by {parameter.step}" if parameter.step > 1 else ""
    return f"{_short(parameter.low)} to {_short(parameter.high)}{step}"


def _short(value: Any) -> str:
    # The smallest number above 0 is how an open bound is kept.
    return ">0" if value == 5e-324 else f"{value:.4g}" if isinstance(value, float) else str(value)
