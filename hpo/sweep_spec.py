"""The `automl:` block of a spec file: how much is searched, by what, for how long. Knows no training and no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.fields import field
from search_spaces.derive import TIERS, Choice


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The `automl:` block."""

    trials: int = field(20, title="Trials", doc="Configurations to try, the default among them.", low=1)
    searcher: str = field("tpe", title="Searcher", doc="How the next configuration is chosen.")
    scheduler: str = field("asha", title="Scheduler", doc="When a trial is stopped early.")
    seed: int | None = field(None, title="Seed", doc="Of the searcher. Unset: `train.seed`.", low=0)
    concurrent: int | None = field(None, title="Concurrent", doc="Trials at a time, at most. Unset: what fits.", low=1)
    cpus_per_trial: int | None = field(None, title="CPUs", doc="CPU cores of one trial.", low=1)
    gpus_per_trial: float | None = field(None, title="GPUs", doc="GPUs of one trial; may be a fraction.", low=0.0)
    tier: str = field("narrow", title="Tier", doc="How much is searched unless `params` says.", enum=TIERS)
    params: tuple[str, ...] | None = field(
        None, title="Parameters", doc="Search exactly these; `+name` adds one to the tier's."
    )
    exclude: tuple[str, ...] = field((), title="Exclude", doc="Never search these.")
    fix: Mapping[str, Any] = field(dict, title="Fix", doc="Spec key to the value that it has in every trial.")
    ranges: Mapping[str, Any] = field(dict, title="Ranges", doc="Name to low:high or low:high:log.")
    points: tuple[Mapping[str, Any], ...] = field((), title="Points", doc="Configurations to try after the default.")

    def choice(self) -> Choice:
        return Choice(tier=self.tier, params=self.params, exclude=self.exclude, fix=self.fix, ranges=self.ranges)
