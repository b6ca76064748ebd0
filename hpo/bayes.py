"""Searchers that model the metric over the space: TPE and a Gaussian process, both Optuna's.

Knows what a study holds and how Optuna's models read it; knows no training and no scheduler.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import GPSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo import cube
from hpo.proposals import FINISHED, Learning, is_infeasible, opening, stored
from hpo.searchers import distributions

GP_MOST = 100
"""Finished trials up to which a Gaussian process proposes within 0.2 s; its cost rises with their cube."""


class Tpe(Learning):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011, section 4), multivariate (Watanabe, arXiv
    2304.11127, section 3), running trials counted as bad ones (constant liar). An infeasible trial ranks below every
    feasible one, one stopped early below every complete one, those that came further first."""

    def model(self, study: Study, trial: FrozenTrial, seed: int) -> Mapping[str, Any]:
        model = TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
        return dict(model.sample_relative(study, trial, distributions(self.space)))


class Bohb(Tpe):
    """The model of BOHB (Falkner et al., ICML 2018, arXiv 1807.01774, section 3.2 and algorithm 2): a third of draws at
    random, the others by a multivariate kernel density of good against bad trials at one budget, the largest that
    enough trials reached.

    It differs from the paper in that a budget is any epoch rather than one of the rungs, since our trials report each;
    the density is Optuna's; running trials count as bad ones; and the opening is spread around the default.
    """

    random_share = 1 / 3

    def propose(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any]:
        rng = cube.generator("bohb", self.seed, trial.number)
        if rng.random() < self.random_share:
            return stored(self.space.draw(rng))
        return super().propose(study, trial)

    def model(self, study: Study, trial: FrozenTrial, seed: int) -> Mapping[str, Any]:
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        needed = len(self.space.parameters) + 3  # N_min + 2 of the paper, N_min being one more than the dimensions
        reached = sorted((max(_curve(one), default=0) for one in finished if not is_infeasible(one)), reverse=True)
        if len(reached) < needed:
            return stored(opening(self.space, self.seed, trial.number))
        view = as_completed(study, trial.number, at=reached[needed - 1])
        asked = view.ask().number
        return super().model(view, view.get_trials(deepcopy=False)[asked], seed)


class Gp(Tpe):
    """Gaussian process with Matern 5/2 and expected improvement (Snoek et al., NeurIPS 2012, sections 2 and 3; its
    logarithm, Ament et al., arXiv 2310.20708), expected under running trials where there are any and weighed by the
    chance of being feasible where that is in doubt (Gardner et al., ICML 2014, section 3). Beyond GP_MOST finished
    trials TPE takes over."""

    def model(self, study: Study, trial: FrozenTrial, seed: int) -> Mapping[str, Any]:
        if len(study.get_trials(deepcopy=False, states=FINISHED)) > GP_MOST:
            return super().model(study, trial, seed)
        view = as_completed(study, trial.number)
        place = view.ask().number
        asked = view.get_trials(deepcopy=False)[place]
        model = GPSampler(seed=seed, n_startup_trials=0)
        return dict(model.sample_relative(view, asked, distributions(self.space)))


def as_completed(study: Study, asking: int, at: int | None = None) -> Study:
    """The trials but the one that is `asking`, as Optuna's GP can see them. It reads completed and running ones only:
    one told as pruned, and the constraint on it, would be as good as forgotten.

    A trial stopped early has its best value; with `at`, every trial its best up to that epoch, and those that did not
    reach it are left out. An infeasible one has the worst known value and its constraint. Without an infeasible trial
    there is no constraint, which spares a second process.
    """
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    values = {trial.number: value for trial in trials if (value := _values(trial, study.directions, at)) is not None}
    worst = [
        (min if direction is StudyDirection.MAXIMIZE else max)(column)
        for direction, column in zip(study.directions, zip(*values.values(), strict=True), strict=True)
    ]
    constrained = any(map(is_infeasible, trials))
    view = optuna.create_study(directions=study.directions)
    for trial in trials:
        point: dict[str, Any] = {"params": trial.params, "distributions": trial.distributions}
        if trial.state is TrialState.RUNNING:
            if trial.number != asking and trial.params:
                view.add_trial(create_trial(state=TrialState.RUNNING, **point))
        elif trial.number in values or is_infeasible(trial):
            constraint = {"infeasible": 1.0 if is_infeasible(trial) else -1.0} if constrained else None
            view.add_trial(create_trial(values=values.get(trial.number, worst), constraints=constraint, **point))
    return view


def _values(trial: FrozenTrial, directions: Sequence[StudyDirection], at: int | None) -> list[float] | None:
    """What a feasible trial reached, one number per objective; None where nothing was measured."""
    if is_infeasible(trial) or trial.state is TrialState.RUNNING:
        return None
    if trial.state is TrialState.COMPLETE and at is None:
        return list(trial.values)
    curve = _curve(trial)
    if not curve or (at is not None and max(curve) < at):
        return None
    best = max if directions[0] is StudyDirection.MAXIMIZE else min
    return [best(value for epoch, value in curve.items() if at is None or epoch <= at)]


def _curve(trial: FrozenTrial) -> Mapping[int, float]:
    """Epoch to value. A complete trial without a curve, such as one from elsewhere, has its value at epoch 1."""
    if not trial.intermediate_values and trial.state is TrialState.COMPLETE:
        return {1: trial.values[0]}
    return trial.intermediate_values
