"""The study as the book of a sweep: every trial is on disk before it starts, every epoch when it is known.

One process writes it, the driver. Knows samples, specs and outcomes; knows no Ray, no MLflow and no training. Opening
the same folder again gives back all of it, also the trials that were under way.
"""

import dataclasses
import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.trial import TrialState

from hpo.result import STUDY_NAME, Outcome, SweepResult, TrialRecord, is_begun, record_of, result_of, study_url
from hpo.searchers import sampler, storable, suggest
from model.metrics import Measurement, Metric
from model.spec import ExperimentSpec
from schemas import dotted

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

REDRAWS = 10
"""Draws in a row that repeat a known configuration before the space counts as exhausted."""
CONSTRAINT = "infeasible"
"""Constraint of the study: above 0 where a configuration cannot run."""


class Ledger:
    """The trials of one sweep and the queue of what to run next."""

    def __init__(
        self, run_dir: Path, spec: ExperimentSpec, space: "SearchSpace", study: optuna.Study, searcher: str
    ) -> None:
        facts = study.user_attrs
        self.run_dir, self.metric, self.budget = run_dir, Metric(**facts["metric"]), int(facts["budget"])
        self._base = spec.to_dict()
        self._space, self._study = space, study
        trials = study.get_trials(deepcopy=False)
        study.sampler = sampler(searcher, facts["seed"], len(trials))
        self._live: dict[int, optuna.Trial] = {}
        self._again: deque[int] = deque()
        """Begun trials that nobody runs: lost ones, and those of an earlier session."""
        self.curves: dict[int, dict[int, float]] = {}
        self._seen: dict[str, int] = {}
        self._begun = 0
        self.exhausted = False
        for trial in trials:
            self._take_over(trial)

    @classmethod
    def create(
        cls,
        run_dir: Path,
        spec: ExperimentSpec,
        space: "SearchSpace",
        *,
        searcher: str,
        seed: int,
        budget: int,
        points: Sequence[Mapping[str, Any]],
        metric: Metric,
    ) -> "Ledger":
        """Begins a study with the user's own configuration as trial 0 and `points` after it."""
        quiet()
        samples = [space.encode(spec.to_dict())] + [_sample_of(point, spec, space) for point in points]
        study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=study_url(run_dir),
            direction=metric.goal,
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        facts = {"metric": dataclasses.asdict(metric), "budget": budget, "seed": seed, "space": space.digest}
        for name, value in facts.items():
            study.set_user_attr(name, value)
        # A driver killed in these lines left some of them: go on after those.
        for place, sample in list(enumerate(samples))[len(study.get_trials(deepcopy=False)) :]:
            stored = {name: storable(value) for name, value in sample.items()}
            study.enqueue_trial(stored, user_attrs={"baseline": True} if place == 0 else {"point": place})
        return cls(run_dir, spec, space, study, searcher)

    @classmethod
    def open(cls, run_dir: Path, spec: ExperimentSpec, space: "SearchSpace", searcher: str) -> "Ledger":
        quiet()
        study = optuna.load_study(study_name=STUDY_NAME, storage=study_url(run_dir), pruner=optuna.pruners.NopPruner())
        return cls(run_dir, spec, space, study, searcher)

    def _take_over(self, trial: optuna.trial.FrozenTrial) -> None:
        """Accounts for a trial of an earlier session."""
        if "repeats" in trial.user_attrs and not trial.state.is_finished():  # killed before it was closed
            self._study.tell(trial.number, state=TrialState.FAIL)
        if not is_begun(trial):
            return
        self._begun += 1
        self.curves[trial.number] = dict(trial.intermediate_values)
        if trial.state.is_finished():
            self._seen.setdefault(_key(trial.user_attrs["params"]), trial.number)
            return
        handle = optuna.Trial(self._study, trial._trial_id)
        if "outcome" in trial.user_attrs:  # killed between writing the outcome and telling it
            self._live[trial.number] = handle
            self._tell(trial.number, Outcome(trial.user_attrs["outcome"]))
        elif not self._begin(handle):
            self._begun -= 1  # killed in mid-draw, and the draw turned out to repeat a configuration
        else:
            self._again.append(trial.number)

    @property
    def done(self) -> bool:
        """Whether nothing is left to start; trials may still be under way."""
        return not self._again and (self._begun >= self.budget or self.exhausted)

    def next(self) -> int | None:
        """The number of the trial to start, its folder and spec written; None when there is nothing to start."""
        if self._again:
            return self._again.popleft()
        if self.done:
            return None
        for _ in range(REDRAWS):
            trial = self._study.ask()
            if self._begin(trial):
                self._begun += 1
                return trial.number
        self.exhausted = True
        return None

    def _begin(self, trial: optuna.Trial) -> bool:
        """Completes a trial's record and folder. False, and the trial is closed, when it repeats a configuration."""
        sample = suggest(trial, self._space)
        if trial.user_attrs.get("baseline"):
            spec = self._base
            params = {name: dotted.get(self._base, name) for name in self._space.resolve(sample)}
        else:
            params = self._space.resolve(sample)
            spec = self._base
            for name, value in params.items():
                spec = dotted.put(spec, name, value)
        twin = self._seen.setdefault(_key(params), trial.number)
        if twin != trial.number:
            trial.set_user_attr("repeats", twin)
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        trial.set_user_attr("params", _plain(params))
        write_spec(spec, self.folder(trial.number) / "spec.yaml")
        self._live[trial.number] = trial
        self.curves.setdefault(trial.number, {})
        return True

    def folder(self, number: int) -> Path:
        return self.run_dir / "trials" / str(number)

    def record(self, number: int, measurement: Measurement) -> bool:
        """Keeps an epoch. False when it is known already, as after a resume."""
        value = measurement.values.get(self.metric.name)
        curve = self.curves[number]
        if measurement.epoch in curve or value is None:
            return False
        curve[measurement.epoch] = value
        trial = self._live[number]
        trial.set_user_attr(epoch_key(measurement.epoch), dataclasses.asdict(measurement))
        if math.isfinite(value):
            trial.report(value, measurement.epoch)
        return True

    def finish(self, number: int, outcome: Outcome, **facts: Any) -> TrialRecord:
        """Ends a trial. `facts`: reason, adjustments, seconds, checkpoint (relative to the run folder)."""
        trial = self._live[number]
        curve = self.curves[number]
        if curve:
            pick = max if self.metric.goal == "maximize" else min
            facts["best_epoch"] = pick(sorted(curve), key=curve.__getitem__)
        for name, value in facts.items():
            if value is not None:
                trial.set_user_attr(name, value)
        trial.set_user_attr("outcome", outcome.value)  # last: its presence says that the facts are complete
        self._tell(number, outcome)
        return self.record_of(number)

    def _tell(self, number: int, outcome: Outcome) -> None:
        trial = self._live.pop(number)
        if outcome in (Outcome.FAILED, Outcome.LOST):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        # On every trial, as the GP wants it.
        trial.set_constraint(CONSTRAINT, 1.0 if outcome is Outcome.INFEASIBLE else -1.0)
        if outcome is Outcome.COMPLETED:
            values = self.curves[number].values()
            self._study.tell(trial, max(values) if self.metric.goal == "maximize" else min(values))
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def lose(self, number: int) -> int:
        """Puts a trial whose worker died back in the queue. Returns how often that has happened to it."""
        trial = self._live[number]
        losses = int(trial.user_attrs.get("losses", 0)) + 1
        trial.set_user_attr("losses", losses)
        self._again.append(number)
        return losses

    def give_up(self, number: int) -> None:
        """Takes a lost trial out of the queue again."""
        self._again.remove(number)

    def record_of(self, number: int) -> TrialRecord:
        return record_of(self._study.get_trials(deepcopy=False)[number], self.run_dir)

    def result(self) -> SweepResult:
        return result_of(self._study, self.run_dir)


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def epoch_key(epoch: int) -> str:
    """User attribute of a trial that holds an epoch; the padding keeps text order and epoch order equal."""
    return f"epoch/{epoch:06d}"


def _sample_of(point: Mapping[str, Any], spec: ExperimentSpec, space: "SearchSpace") -> dict[str, Any]:
    """A point as the user wrote it, nested or dotted spec values, in the coordinates of the space.

    A point that would not be trained as written is refused, never adjusted in silence.
    """
    given = dict(dotted.leaves(point))
    effective = spec.to_dict()
    for name, value in given.items():
        effective = dotted.put(effective, name, value)
    sample: dict[str, Any] = space.encode(effective)
    resolved = space.resolve(sample)
    for name, value in given.items():
        if name not in resolved:
            searched = ", ".join(resolved)
            raise ValueError(
                f"a point of `automl.points` holds searched keys only, but `{name}` is not; searched: {searched}."
            )
        if not _same(resolved[name], value):
            raise ValueError(
                f"a point of `automl.points` must lie in the space, but `{name}` = {value} would become "
                f"{resolved[name]}; change it, or widen the range with `automl.ranges`."
            )
    return sample


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(_plain(a) == _plain(b))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def write_spec(spec: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all. The secret key is never written; the worker checks the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump({**spec, "encryption_key": None}, sort_keys=False), encoding="utf-8")
    os.replace(partial, path)
