"""Population-based training: a trial that falls behind goes on from a better one's weights, with its values changed.

Knows curves by trial number and a space; knows no checkpoint and no worker: a verdict names the parent, others act.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hpo import cube
from hpo.schedulers import GO, Curve, Curves, Rule, Verdict

if TYPE_CHECKING:
    from search_spaces.space import Parameter, SearchSpace

MID_RUN: tuple[tuple[str, str | None], ...] = (
    ("train.optim.optimizer", "the checkpoint holds the state of one optimizer, and another cannot read it"),
    ("train.optim.warmup*", "the warm-up is over when trials are compared"),
    ("train.optim.*", None),
    ("train.clip_grad_norm", None),
    ("model.dropout*", None),
    ("model.*_loss_coef", None),
    ("model.focal_alpha", None),
    ("model.set_cost_*", None),
    ("model.clip_max_norm", None),
    ("model.*", "it shapes the network, and the weights that are taken over have one shape"),
    ("dataset.batch_size", "the steps of an epoch and the memory were settled when the trial began"),
    ("dataset.augmentation.*", None),
    ("*", "whether it may change in mid-run is not known"),
)
"""Keys and why they keep their value in mid-run; None where weights and optimizer state do not depend on them. The
first pattern that fits decides."""
POPULATION = 4
"""Trials at an epoch, at the least, before one of them is exploited; a quarter of them is one."""


@dataclass(frozen=True, kw_only=True)
class Population(Rule):
    """Population-based training (Jaderberg et al., arXiv 1711.09846, section 3 and appendix A.1), truncation selection.

    Every `interval` epochs a trial whose latest value is in the worst quarter of those that came as far copies one
    drawn from the best quarter (exploit), its values multiplied by 0.8 or 1.2 or, one time in four, drawn anew
    (explore), inside the space always. Trial 0 is copied from, never overwritten.

    The population is what runs side by side. It differs from the paper in that a parent must still have epochs to go
    and be no further ahead than one interval: otherwise its weights would have had more training than the child is
    charged. With one trial at a time, therefore, nothing is ever exploited, and what is left is the searcher's draws.
    """

    epochs: int
    seed: int
    resample: float = 0.25
    factors: tuple[float, float] = (0.8, 1.2)

    @property
    def interval(self) -> int:
        """Epochs between two judgements: a fifth of a whole trial."""
        return max(1, math.ceil(self.epochs / 5))

    def generator(self, number: int, epoch: int) -> random.Random:
        """For the draws of one decision: the same in every process."""
        return cube.generator("pbt", self.seed, number, epoch)

    def _verdict(self, number: int, curves: Curves, earlier: int, last: int) -> Verdict:
        ready = last // self.interval * self.interval
        if not earlier < ready <= last or last >= self.epochs:
            return GO
        values = {other: value for other, curve in curves.items() if (value := _at(curve, ready)) is not None}
        quarter = len(values) // 4
        if len(values) < POPULATION or number not in values:
            return GO
        sign = -1.0 if self.metric.goal == "maximize" else 1.0
        ranked = sorted(values, key=lambda other: (sign * values[other], other))
        if number not in ranked[-quarter:] or values[number] == values[ranked[0]]:
            return GO
        parents = [
            one for one in ranked[:quarter] if last <= max(curves[one]) <= min(last + self.interval, self.epochs - 1)
        ]
        return Verdict("exploit", self.generator(number, last).choice(parents)) if parents else GO

    def mutate(
        self, number: int, parent_sample: Mapping[str, Any], space: "SearchSpace", rng: random.Random
    ) -> dict[str, Any]:
        """The parent's sample with every parameter changed that may change in mid-run. `rng`: see `generator`."""
        held = fixed(space)
        return {
            parameter.name: parent_sample[parameter.name]
            if parameter.name in held
            else self._explored(parameter, parent_sample[parameter.name], rng)
            for parameter in space.parameters
        }

    def _explored(self, parameter: "Parameter", value: Any, rng: random.Random) -> Any:
        anew, factor = rng.random() < self.resample, rng.choice(self.factors)
        drawn = parameter.draw(rng)
        if anew or parameter.choices or value == 0:  # a choice has no neighbour, and 0 is 0 however it is multiplied
            return drawn if anew or not parameter.choices else value
        if parameter.kind == "int":
            moved = value * factor
            step = math.copysign(parameter.step, factor - 1.0)  # at least one place on the grid
            return parameter.clip(moved if abs(moved - value) >= parameter.step else value + step)
        return parameter.clip(value * factor)


def fixed(space: "SearchSpace") -> dict[str, str]:
    """The parameters of a space that keep their value in mid-run, and why. A coordinate is what it sets."""
    sets = {name: rule.target for rule in space.rules for name in rule.coordinates}
    found: dict[str, str] = {}
    for parameter in space.parameters:
        key = sets.get(parameter.name, parameter.name)
        reason = next(why for pattern, why in MID_RUN if fnmatchcase(key, pattern))
        if reason is not None:
            found[parameter.name] = reason
    return found


def check_space(space: "SearchSpace") -> None:
    """Raises ValueError for a space in which nothing may change in mid-run."""
    held = fixed(space)
    if len(held) == len(space.parameters):
        why = "; ".join(f"`{name}`: {reason}" for name, reason in held.items())
        raise ValueError(
            "population-based training needs a searched parameter that may change in mid-run, but there is none "
            f"({why}). Search a learning rate beside them, or use `automl.scheduler: asha`."
        )


def _at(curve: Curve, epoch: int) -> float | None:
    """The value of the first report at or after `epoch`; None without one, or where it is not finite."""
    end = min((each for each in curve if each >= epoch), default=None)
    return curve[end] if end is not None and math.isfinite(curve[end]) else None
