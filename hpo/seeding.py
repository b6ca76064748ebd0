"""Configurations to try before the searcher's own: those that a user wrote, and the best of an earlier run.

Knows spaces and results of runs; trains nothing and draws nothing.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpo.errors import RunError
from hpo.result import read_result
from hpo.runs import find_run
from model.spec import ExperimentSpec
from schemas import dotted
from search_spaces.derive import full_name

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec
    from search_spaces.space import SearchSpace

MOST = 5
"""Configurations taken from an earlier run, at most."""


class Seeds(NamedTuple):
    points: tuple[dict[str, Any], ...]
    """Spec values by full name, inside the space; the best first."""
    lines: tuple[str, ...]
    """What was taken, changed or left out, for people."""


def sample_of(point: Mapping[str, Any], spec: ExperimentSpec, space: "SearchSpace") -> dict[str, Any]:
    """A point as the user wrote it, spec values nested, dotted or by their last names, in the coordinates of the space.

    A point that would not be trained as written is refused, never adjusted in silence.
    """
    given = {}
    for text, value in dotted.leaves(point):
        try:
            given[full_name(text, space.targets)] = value
        except ValueError:
            searched = ", ".join(space.targets)
            raise ValueError(
                f"a point of `automl.points` holds searched keys only, but `{text}` is not; searched: {searched}."
            ) from None
    sample, resolved = _nearest(given, spec, space)
    for name, value in given.items():
        if not _same(resolved[name], value):
            raise ValueError(
                f"a point of `automl.points` must lie in the space, but `{name}` = {value} would become "
                f"{resolved[name]}; change it, or widen the range with `automl.ranges`."
            )
    return sample


def seeds_of(sweep: "SweepSpec", spec: ExperimentSpec, space: "SearchSpace", root: Path) -> Seeds:
    """What `automl.seed_from` names, looked for below `root` too, as far as the budget has room beside the default and
    the points; nothing where it names nothing."""
    if not sweep.seed_from:
        return Seeds((), ())
    room = max(1, sweep.trials - 1 - len(sweep.points))
    return best_of(find_run(sweep.seed_from, root), spec, space, most=min(MOST, room))


def best_of(run_dir: Path, spec: ExperimentSpec, space: "SearchSpace", *, most: int = MOST) -> Seeds:
    """The best configurations of the run in `run_dir`, in this space: what it does not search keeps the spec's value,
    what lies outside a range is moved to its end, and each change is said. RunError when nothing is left."""
    result = read_result(run_dir)
    scored = [(result.score(trial), trial) for trial in result.trials]
    sign = -1.0 if result.metric.goal == "maximize" else 1.0
    ranked = sorted((sign * score.mean, trial.number, trial) for score, trial in scored if score is not None)
    points: list[dict[str, Any]] = []
    lines: list[str] = []
    for value, number, trial in ranked:
        if len(points) == most:
            break
        given = {name: each for name, each in trial.params.items() if name in space.targets}
        if not given:
            continue
        try:
            _, resolved = _nearest(given, spec, space)
        except (TypeError, ValueError) as error:
            lines.append(f"{run_dir.name}/{number} is left out: {error}")
            continue
        if resolved in points:
            continue
        points.append(resolved)
        moved = [
            f"{name} {_short(each)} -> {_short(resolved[name])} (its range ends there)"
            for name, each in given.items()
            if not _same(resolved[name], each)
        ]
        left = [name for name in trial.params if name not in given]
        remarks = [*moved, *([f"not searched here: {', '.join(left)}"] if left else [])]
        values = ", ".join(f"{name}={_short(each)}" for name, each in resolved.items())
        shown = f"{result.metric.name} {sign * value:.4f}"
        lines.append(f"from {run_dir.name}/{number} ({shown}): {values}" + "".join(f"; {each}" for each in remarks))
    if not points:
        raise RunError(
            f"`automl.seed_from` must name a run with trials that searched what is searched here, but {run_dir} has "
            "none; leave it out."
        )
    return Seeds(tuple(points), tuple(lines))


def _nearest(
    given: Mapping[str, Any], spec: ExperimentSpec, space: "SearchSpace"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sample nearest to the spec with `given` over it, and the spec values that it stands for."""
    effective = spec.to_dict()
    for name, value in given.items():
        effective = dotted.put(effective, name, value)
    sample = space.encode(effective)
    return sample, space.resolve(sample)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
