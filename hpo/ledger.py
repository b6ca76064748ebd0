"""The study as the book of a sweep: every trial is on disk before it starts, every epoch when it is known.

One process writes it, the driver. Knows samples, specs and outcomes; knows no Ray, no MLflow and no training. Opening
the same folder again gives back all of it, also the trials that were under way.
"""

import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import optuna
import yaml
from optuna.trial import TrialState

from hpo.budget import Spent
from hpo.files import write_json, write_spec
from hpo.result import (
    STUDY_NAME,
    Outcome,
    SweepResult,
    TrialRecord,
    epochs_of,
    is_begun,
    record_of,
    result_of,
    study_url,
)
from hpo.searchers import sampler, storable, suggest, values_of
from hpo.seeding import sample_of
from hpo.trial import ORDERED
from model.metrics import Measurement, Metric
from model.spec import ExperimentSpec
from schemas import dotted

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

REDRAWS = 10
"""Draws in a row that repeat a known configuration before the space counts as exhausted."""
CONSTRAINT = "infeasible"
"""Constraint of the study: above 0 where a configuration cannot run."""


class _Over(NamedTuple):
    """What the configurations that have ended add to what is spent."""

    ends: int
    epochs: int
    best: float | None
    since_best: int


class Ledger:
    """The trials of one sweep and the queue of what to run next."""

    def __init__(
        self, run_dir: Path, spec: ExperimentSpec, space: "SearchSpace", study: optuna.Study, searcher: str
    ) -> None:
        facts = study.user_attrs
        self.run_dir, self.metric, self.budget = run_dir, Metric(**facts["metric"]), int(facts["budget"])
        self.goals: dict[str, Any] = facts.get("goals", {})
        self.seed: int = facts["seed"]
        self.space_hash: str = facts["space"]
        self._base = spec.to_dict()
        self._space, self._study = space, study
        trials = study.get_trials(deepcopy=False)
        study.sampler = sampler(searcher, self.seed, len(trials), space=space)
        self._live: dict[int, optuna.Trial] = {}
        self._again: deque[int] = deque()
        """Begun trials that nobody runs: lost ones, and those of an earlier session."""
        self.curves: dict[int, dict[int, float]] = {}
        """Of every configuration; `repeats` have theirs apart, so that no rule compares seeds."""
        self.repeats: dict[int, int] = {}
        """Number of a trial that runs again with another seed -> number of the one it repeats."""
        self._repeat_curves: dict[int, dict[int, float]] = {}
        self._seen: dict[str, int] = {}
        self._ends: list[tuple[int, float | None]] = []
        """Of every configuration that ended: its place in the order of endings, and its value if it completed."""
        self.seconds, self.gpu_seconds = float(facts.get("seconds", 0.0)), float(facts.get("gpu_seconds", 0.0))
        self.exhausted = False
        self._finished: dict[int, TrialRecord] = {}
        self._counted = _Over(0, 0, None, 0)
        for trial in trials:
            self._take_over(trial)
        if facts.get("confirm") and not facts.get("ended"):  # killed before all were queued
            self.confirm(**facts["confirm"])

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
        goals: Mapping[str, Literal["maximize", "minimize"]] | None = None,
    ) -> "Ledger":
        """Begins a study with the user's own configuration as trial 0 and `points` after it. `goals`: the objectives
        beside the metric, with their directions."""
        quiet()
        samples = [space.encode(spec.to_dict())] + [sample_of(point, spec, space) for point in points]
        study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=study_url(run_dir),
            directions=[metric.goal, *(goals or {}).values()],
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        facts = {"metric": dataclasses.asdict(metric), "budget": budget, "seed": seed, "space": space.digest}
        for name, value in {**facts, "goals": dict(goals or {})}.items():
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
        facts = trial.user_attrs
        if "twin" in facts and not trial.state.is_finished():  # killed before it was closed
            self._study.tell(trial.number, state=TrialState.FAIL)
        if not is_begun(trial):
            return
        if "repeats" in facts:
            self.repeats[trial.number] = facts["repeats"]
        curve = {epoch: values[self.metric.name] for epoch, values in epochs_of(facts)}
        self._curves_of(trial.number)[trial.number] = curve
        if trial.state.is_finished():
            if trial.number not in self.repeats:
                self._seen.setdefault(_key(facts["params"]), trial.number)
                completed = facts["outcome"] == Outcome.COMPLETED.value
                self._ends.append((facts["end"], self._best_of(curve) if completed else None))
            return
        handle = optuna.Trial(self._study, trial._trial_id)
        if "outcome" in facts:  # killed between writing the outcome and telling it
            self._live[trial.number] = handle
            self._tell(trial.number, Outcome(facts["outcome"]))
        elif self._begin(handle):
            self._again.append(trial.number)
        else:  # killed in mid-draw, and the draw turned out to repeat a configuration
            self._curves_of(trial.number).pop(trial.number, None)

    @property
    def done(self) -> bool:
        """Whether nothing is left to start; trials may still be under way."""
        return not self._again and (len(self.curves) >= self.budget or self.exhausted)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Begun trials that nobody runs."""
        return tuple(self._again)

    def next(self, *, fresh: bool = True) -> int | None:
        """The number of the trial to start, its folder and spec written; None when there is nothing to start. Without
        `fresh` only one that was begun already."""
        if self._again:
            return self._again.popleft()
        if self.done or not fresh:
            return None
        for _ in range(REDRAWS):
            trial = self._study.ask()
            if self._begin(trial):
                return trial.number
        self.exhausted = True
        return None

    def _begin(self, trial: optuna.Trial) -> bool:
        """Completes a trial's record and folder. False, and the trial is closed, when it repeats a configuration."""
        facts = trial.user_attrs
        if "repeats" in facts:
            params, spec = facts["params"], self._repeated(facts["repeats"], facts["seed"])
        else:
            sample = suggest(trial, self._space)
            taken = facts.get("exploits", [])
            sample = taken[-1]["sample"] if taken else sample
            params, spec = self._resolved(sample, baseline=bool(facts.get("baseline")) and not taken)
            twin = self._seen.setdefault(_key(params), trial.number)
            if twin != trial.number:
                trial.set_user_attr("twin", twin)
                self._study.tell(trial, state=TrialState.FAIL)
                return False
            trial.set_user_attr("params", _plain(params))
            if taken:
                trial.set_user_attr("sample", _plain(sample))
                self._order_take_over(trial.number, len(taken), taken[-1]["parent"])
        write_spec(spec, self.folder(trial.number) / "spec.yaml")
        self._live[trial.number] = trial
        self._curves_of(trial.number).setdefault(trial.number, {})
        return True

    def _resolved(self, sample: Mapping[str, Any], *, baseline: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Spec values by name, and the whole spec. The baseline's are the user's own, also where the space ends short
        of them."""
        params = self._space.resolve(sample)
        if baseline:
            return {name: dotted.get(self._base, name) for name in params}, self._base
        spec = self._base
        for name, value in params.items():
            spec = dotted.put(spec, name, value)
        return params, spec

    def _repeated(self, number: int, seed: int) -> dict[str, Any]:
        kept = yaml.safe_load((self.folder(number) / "spec.yaml").read_text(encoding="utf-8"))
        return dotted.put(kept, "train.seed", seed)

    def folder(self, number: int) -> Path:
        return self.run_dir / "trials" / str(number)

    def curve(self, number: int) -> dict[int, float]:
        """Completed epochs to the metric's value, of a configuration or of a repeat."""
        return self._curves_of(number)[number]

    def _curves_of(self, number: int) -> dict[int, dict[int, float]]:
        return self._repeat_curves if number in self.repeats else self.curves

    def record(self, number: int, measurement: Measurement) -> bool:
        """Keeps an epoch. False when it is known already, as after a resume."""
        value = measurement.values.get(self.metric.name)
        curve = self.curve(number)
        if measurement.epoch in curve or value is None:
            return False
        curve[measurement.epoch] = value
        self._keep(self._live[number], measurement, value)
        return True

    def _keep(self, trial: optuna.Trial, measurement: Measurement, value: float) -> None:
        trial.set_user_attr(epoch_key(measurement.epoch), dataclasses.asdict(measurement))
        if math.isfinite(value):
            # Not `Trial.report`, which refuses a second value for an epoch, and any in a study of several objectives.
            self._study._storage.set_trial_intermediate_value(trial._trial_id, measurement.epoch, value)

    def begun(self, number: int, *, pid: int, node: str) -> None:
        """Keeps that a worker took the trial up."""
        trial = self._live[number]
        known = trial.user_attrs.get("attempts", [])
        trial.set_user_attr("attempts", [*known, {"pid": pid, "node": node, "start": round(time.time(), 3)}])

    def left(self, number: int) -> None:
        """Keeps that the worker which has the trial is done with it."""
        trial = self._live[number]
        known = trial.user_attrs.get("attempts", [])
        if known and "end" not in known[-1]:
            trial.set_user_attr("attempts", [*known[:-1], {**known[-1], "end": round(time.time(), 3)}])

    def adjusted(self, number: int, text: str) -> None:
        """Keeps what was changed so that a trial can go on, once."""
        trial = self._live[number]
        known = trial.user_attrs.get("adjustments", [])
        if text not in known:
            trial.set_user_attr("adjustments", [*known, text])

    def finish(self, number: int, outcome: Outcome, **facts: Any) -> TrialRecord:
        """Ends a trial. `facts`: reason, seconds, checkpoint (relative to the run folder), costs."""
        trial = self._live[number]
        for text in facts.pop("adjustments", None) or ():
            self.adjusted(number, text)
        curve = self.curve(number)
        if curve:
            pick = max if self.metric.goal == "maximize" else min
            facts["best_epoch"] = pick(sorted(curve), key=curve.__getitem__)
        facts["end"] = len(self._ends)
        for name, value in facts.items():
            if value is not None:
                trial.set_user_attr(name, value)
        trial.set_user_attr("outcome", outcome.value)  # last: its presence says that the facts are complete
        self._tell(number, outcome)
        return self.record_of(number)

    def _tell(self, number: int, outcome: Outcome) -> None:
        trial = self._live.pop(number)
        if outcome in (Outcome.FAILED, Outcome.LOST) or number in self.repeats:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            # On every trial, as the GP wants it.
            trial.set_constraint(CONSTRAINT, 1.0 if outcome is Outcome.INFEASIBLE else -1.0)
            if outcome is Outcome.COMPLETED:
                best = self._best_of(self.curves[number])
                costs = trial.user_attrs.get("costs", {})
                self._study.tell(trial, [best, *(costs[name] for name in self.goals)])
            else:
                self._study.tell(trial, state=TrialState.PRUNED)
        if number not in self.repeats:
            completed = outcome is Outcome.COMPLETED
            self._ends.append((trial.user_attrs["end"], self._best_of(self.curves[number]) if completed else None))

    def _best_of(self, curve: Mapping[int, float]) -> float:
        return max(curve.values()) if self.metric.goal == "maximize" else min(curve.values())

    def lose(self, number: int, kind: str = "losses") -> int:
        """Puts a trial whose worker died back in the queue. Returns how often that has happened to it."""
        trial = self._live[number]
        losses = int(trial.user_attrs.get(kind, 0)) + 1
        trial.set_user_attr(kind, losses)
        self._again.append(number)
        return losses

    def give_up(self, number: int) -> None:
        """Takes a lost trial out of the queue again."""
        self._again.remove(number)

    def again(self, number: int) -> None:
        """Puts a trial that was stopped, not ended, back in the queue."""
        self._again.append(number)

    # Population-based training

    def exploit(
        self, number: int, parent: int, mutate: "Callable[[dict[str, Any], SearchSpace], dict[str, Any]]"
    ) -> None:
        """Decides that a trial goes on from `parent`'s checkpoint with a mutation of its values. The decision is on
        disk before any file changes; a driver killed after it finds it when it opens the study."""
        trial = self._live[number]
        theirs = self._study.get_trials(deepcopy=False)[parent]
        known = theirs.user_attrs.get("sample") or values_of(theirs.params, self._space)
        sample = mutate(dict(known), self._space)
        self._space.check(sample)
        taken = trial.user_attrs.get("exploits", [])
        decision = {"parent": parent, "epoch": max(self.curve(number), default=0), "sample": _plain(sample)}
        trial.set_user_attr("exploits", [*taken, decision])
        self._begin(trial)

    def _order_take_over(self, number: int, serial: int, parent: int) -> None:
        """Tells the worker, which keeps count of what it has done."""
        write_json({"serial": serial, "parent": str(self.folder(parent))}, self.folder(number) / ORDERED)

    def taken_over(self, number: int, measurements: Sequence[Measurement]) -> None:
        """A trial's past is now its parent's: these epochs in place of its own."""
        trial, curve = self._live[number], self.curve(number)
        theirs = {one.epoch: one for one in measurements if self.metric.name in one.values}
        for epoch in [*curve]:
            if epoch not in theirs:
                trial.set_user_attr(epoch_key(epoch), None)
        curve.clear()
        for epoch, one in theirs.items():
            curve[epoch] = one.values[self.metric.name]
            self._keep(trial, one, curve[epoch])

    # The sweep as a whole

    @property
    def spent(self) -> Spent:
        over = self._over()
        live = [curve for number in self._live if (curve := self.curves.get(number))]
        leads = [*map(self._best_of, live), *([] if over.best is None else [over.best])]
        pick: Any = max if self.metric.goal == "maximize" else min
        return Spent(
            trials=len(self.curves),
            epochs=over.epochs + sum(map(max, live)),
            seconds=self.seconds,
            gpu_seconds=self.gpu_seconds,
            best=pick(leads, default=None),
            since_best=over.since_best,
        )

    def _over(self) -> _Over:
        """Counted anew when one more trial has ended, not at every report."""
        if self._counted.ends != len(self._ends):
            best, since = None, 0
            for _, value in sorted(self._ends, key=lambda end: end[0]):
                if value is not None and (best is None or self.metric.better(value, best)):
                    best, since = value, 0
                elif best is not None:
                    since += 1
            curves = [curve for number, curve in self.curves.items() if curve and number not in self._live]
            pick: Any = max if self.metric.goal == "maximize" else min
            lead = pick(map(self._best_of, curves), default=None)
            self._counted = _Over(len(self._ends), sum(map(max, curves)), lead, since)
        return self._counted

    def keep_time(self, seconds: float, gpu_seconds: float) -> None:
        """Writes the time that all sessions together have taken."""
        self.seconds, self.gpu_seconds = seconds, gpu_seconds
        self._study.set_user_attr("seconds", round(seconds, 3))
        self._study.set_user_attr("gpu_seconds", round(gpu_seconds, 3))

    @property
    def ended(self) -> str | None:
        """Why the search is over; None while it is not."""
        found: str | None = self._study.user_attrs.get("ended")
        return found

    def end(self, why: str, spent: Sequence[str]) -> None:
        self._study.set_user_attr("spent", list(spent))
        self._study.set_user_attr("ended", why)

    def extend(self, trials: int) -> None:
        """Makes room for `trials` more than were begun."""
        self.budget = len(self.curves) + trials
        for name, value in {"budget": self.budget, "confirm": None, "ended": None}.items():
            self._study.set_user_attr(name, value)

    @property
    def closed(self) -> bool:
        """Whether no new configuration may follow, only repeats of the best."""
        return bool(self._study.user_attrs.get("confirm"))

    def confirm(self, numbers: Sequence[int], seeds: Sequence[int]) -> None:
        """Queues these trials once more with each of the seeds; what is in the book already is not queued again."""
        self._study.set_user_attr("confirm", {"numbers": list(numbers), "seeds": list(seeds)})
        for number in numbers:
            for seed in seeds:
                self._repeat(number, seed)

    def _repeat(self, number: int, seed: int) -> None:
        trials = self._study.get_trials(deepcopy=False)
        if any(each.user_attrs.get("repeats") == number and each.user_attrs["seed"] == seed for each in trials):
            return
        facts = {"repeats": number, "seed": seed, "params": trials[number].user_attrs["params"]}
        self._study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=facts))
        made = self._study.get_trials(deepcopy=False)[len(trials)]
        self.repeats[made.number] = number
        self._begin(optuna.Trial(self._study, made._trial_id))
        self._again.append(made.number)

    def record_of(self, number: int) -> TrialRecord:
        return record_of(self._study.get_trials(deepcopy=False)[number], self.run_dir)

    def result(self) -> SweepResult:
        return result_of(self._study, self.run_dir, self._finished)


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def epoch_key(epoch: int) -> str:
    """User attribute of a trial that holds an epoch; the padding keeps text order and epoch order equal."""
    return f"epoch/{epoch:06d}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
