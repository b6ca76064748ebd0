"""What follows a training: its best trial, or the trade-off that deploys best, is handed over, reported and registered.

Knows the order of steps only. Heavy parts are imported inside the functions.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpo import events, runs
from hpo.errors import SweepStoppedError
from hpo.screen import out, say
from hpo.spec import DEPLOYMENT
from model.spec import ExperimentSpec
from schemas.structure import structure

if TYPE_CHECKING:
    from hpo.delivery import Delivery
    from hpo.handoff import Wanted
    from hpo.result import SweepResult, TrialRecord


def finish_sweep(run: Path, spec: ExperimentSpec, result: "SweepResult") -> None:
    from hpo.registry import register
    from hpo.reporting.live import finish
    from hpo.retention import tidy

    best = result.best
    emit_finished(result)
    _print_rows("Trials", result.table())
    out.print(result.verdict())
    spent = f" ({'; '.join(result.spent)})" if len(result.spent) > 1 else ""
    out.print(f"the search ended: {result.ended}{spent}")
    if best is None or best.checkpoint is None:
        raise SweepStoppedError(
            f"no trial of {run.name} completed; `ddetr resume {run}` goes on when the cause is mended."
        )
    if _sections(run)["deploy"].objective is None:
        delivery = hand_over(run, best.checkpoint, spec, _spent_on(best), _lineage(run, spec, result, best))
    else:
        best, delivery = _hand_over_front(run, spec, result)
    assert best.checkpoint is not None
    _compare_on_test(run, spec, best, result.baseline)
    finish(
        run,
        spec,
        best.checkpoint,
        trial=best.number,
        default=None if best.baseline else result.default_to_compare,
        note=say,
        cpus=os.cpu_count() or 1,
    )
    line = tidy(run)
    if line is not None:
        say(line)
    register(
        run,
        spec,
        trial=best.number,
        metric=result.metric.name,
        value=best.value(result.metric),
        params=best.params,
        note=say,
    )
    delivery.require()


def _spent_on(trial: "TrialRecord") -> dict[str, float]:
    return {"epochs": float(trial.measurements[-1].epoch), "seconds": trial.seconds}


def _lineage(run: Path, spec: ExperimentSpec, result: "SweepResult", trial: "TrialRecord") -> dict[str, Any]:
    return {
        "run": run.name,
        "trial": trial.number,
        "seed": spec.train.seed,
        "values": dict(trial.params),
        "space": result.space_hash,
    }


def emit_finished(result: "SweepResult") -> None:
    best, default = result.best, result.baseline
    events.emit(
        "finished",
        verdict=result.verdict(),
        reason=result.ended,
        trial=None if best is None else best.number,
        value=None if best is None else best.value(result.metric),
        default=None if default is None else default.value(result.metric),
        checkpoint=None if best is None else best.checkpoint,
    )


def _compare_on_test(run: Path, spec: ExperimentSpec, best: "TrialRecord", default: "TrialRecord | None") -> None:
    """The winner's score beside the default's, on images that chose nothing."""
    if not spec.dataset.has_test:
        return
    from hpo.evidence import keep_test_scores
    from model.evaluate import evaluate_checkpoint

    given = {"dataset": {"test_data_sources": spec.to_dict()["dataset"]["test_data_sources"]}}
    scores = {}
    for name, trial in (("default", default), ("winner", best)):
        if trial is not None and trial.checkpoint is not None and trial.checkpoint.exists():
            scores[name] = evaluate_checkpoint(trial.checkpoint, given)[0].numbers["mAP50"]
    keep_test_scores(run, scores)
    text = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    out.print(f"test mAP50: {text}" + ("" if "default" in scores else " (the default left no checkpoint)"))


def hand_over(
    run: Path, checkpoint: Path, spec: ExperimentSpec, budget: Mapping[str, float], lineage: Mapping[str, Any]
) -> "Delivery":
    from hpo.handoff import hand_off

    out.print("handing over: ONNX, engines and their accuracy")
    wanted = wanted_of(_sections(run))
    delivery = hand_off(run, checkpoint, spec, wanted=wanted, budget=budget, lineage=lineage, cpus=os.cpu_count() or 1)
    _tell(run, delivery)
    return delivery


def _hand_over_front(run: Path, spec: ExperimentSpec, result: "SweepResult") -> "tuple[TrialRecord, Delivery]":
    """Takes every trade-off of a search through the handoff, and hands over the one that deploys best."""
    from hpo import choice
    from hpo.handoff import hand_off

    wanted, members = wanted_of(_sections(run)), []
    trials = [trial for trial in result.pareto if trial.checkpoint is not None and trial.checkpoint.is_file()]
    for trial in sorted(trials, key=lambda each: each is not result.best):
        out.print(f"handing over trial {trial.number}, one of {len(trials)} trade-offs")
        folder = run / choice.FOLDER / str(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        budget, lineage = _spent_on(trial), _lineage(run, spec, result, trial)
        assert trial.checkpoint is not None
        delivery = hand_off(
            folder, trial.checkpoint, spec, wanted=wanted, budget=budget, lineage=lineage, cpus=os.cpu_count() or 1
        )
        members.append(choice.Member(trial, folder, delivery))
    chosen, because = choice.choose(members, wanted.deploy, wanted.precisions[-1])
    delivery = choice.promote(chosen, run, because)
    _tell(run, delivery)
    return chosen.trial, delivery


def _tell(run: Path, delivery: "Delivery") -> None:
    from hpo.mlflow_store import how_to_open, tracking_uri

    events.emit(
        "handed_over",
        handoff=run / runs.HANDOFF,
        files={row.form: row.file for row in delivery.rows},
        map50={row.form: dict(row.map50) for row in delivery.rows if row.map50},
        failures=list(delivery.failures),
    )
    out.print(delivery.table())
    for remark in (*delivery.remarks, *delivery.failures):
        say(remark)
    say(f"compare trials: {how_to_open(tracking_uri(run.parent))}")


def wanted_of(sections: Mapping[str, Any]) -> "Wanted":
    from hpo.handoff import Wanted

    return Wanted(export=sections["export"], engine=sections["gen_trt_engine"], deploy=sections["deploy"])


def _sections(run: Path) -> dict[str, Any]:
    """The deployment sections that the run was started with."""
    kept = runs.read_sections(run)
    return {name: structure(cls, kept.get(name, {}))[0] for name, cls in DEPLOYMENT.items()}


def _print_rows(title: str, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("outcome", "note") else "right")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)
