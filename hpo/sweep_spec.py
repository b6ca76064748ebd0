"""The `automl:` block of a spec file: how much is searched, by what, for how long. Knows no training and no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.fields import field
from search_spaces.derive import TIERS, Choice

FIRST = "val_mAP50"
OBJECTIVES: Mapping[str, Literal["maximize", "minimize"]] = {
    FIRST: "maximize",
    "parameters": "minimize",
    "latency": "minimize",
    "size": "minimize",
}
"""What a search may be after: weights of the network, milliseconds of a forward of one image, megabytes of the best
checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The `automl:` block."""

    trials: int = field(20, title="Trials", doc="Configurations to try, the default among them.", low=1)
    algorithm: str | None = field(None, title="Algorithm", doc="Sets searcher and scheduler by one name, as TAO does.")
    searcher: str = field("auto", title="Searcher", doc="How the next configuration is chosen.")
    scheduler: str = field("asha", title="Scheduler", doc="When a trial is stopped early.")
    objectives: tuple[str, ...] = field(
        (FIRST,), title="Objectives", doc="val_mAP50 and, after it, any of parameters, latency, size."
    )
    epochs: int | None = field(
        None, title="Epochs", doc="Of one trial; schedules and intervals follow. Unset: `train.num_epochs`.", low=1
    )
    total_epochs: int | None = field(None, title="Total epochs", doc="Epochs of all trials together, at most.", low=1)
    hours: float | None = field(
        None, title="Hours", doc="Wall-clock time of the search, all its sessions together.", math_cond="> 0.0"
    )
    gpu_hours: float | None = field(
        None, title="GPU hours", doc="GPUs of a trial times its hours, all trials together.", math_cond="> 0.0"
    )
    target: float | None = field(None, title="Target", doc="A val_mAP50 that is enough.", low=0.0, high=1.0)
    patience: int | None = field(
        None, title="Patience", doc="Trials that may end without a new best before the search stops.", low=1
    )
    confirm: int = field(
        0, title="Confirm", doc="Best trials run again with other seeds before a winner is declared.", low=0
    )
    keep: int = field(3, title="Keep", doc="Best trials that keep their last checkpoint once the winner is out.", low=1)
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
    seed_from: str | None = field(
        None, title="Seed from", doc="A run whose best configurations are tried after the default and `points`."
    )

    model_name: str | None = field(
        None, title="Model name", doc="Of the winner in MLflow's registry. Unset: ddetr- and the spec file's name."
    )

    def choice(self) -> Choice:
        return Choice(tier=self.tier, params=self.params, exclude=self.exclude, fix=self.fix, ranges=self.ranges)

    def seed_for(self, training_seed: int) -> int:
        """The searcher's seed, beside a training's `train.seed`; -1 there asks for no determinism and counts as 0."""
        return self.seed if self.seed is not None else max(training_seed, 0)

    def problems(self) -> list[str]:
        """The rules that hold between or inside its values, those that are broken."""
        found = []
        if self.model_name is not None and (not self.model_name.strip() or set(self.model_name) & {*"/:"}):
            found.append(
                f"`automl.model_name` must be a name without / and :, as MLflow's registry takes it, but is "
                f"{self.model_name!r}; choose another."
            )
        known = ", ".join(OBJECTIVES)
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or len(set(self.objectives)) != len(self.objectives):
            found.append(
                f"`automl.objectives` must be different names of {known}, but is {', '.join(self.objectives)}; "
                "correct the list."
            )
        elif not self.objectives or self.objectives[0] != FIRST:
            found.append(
                f"`automl.objectives` must begin with {FIRST}, which the winner is chosen by, but is "
                f"{list(self.objectives)}; put it first."
            )
        return found
