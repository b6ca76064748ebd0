"""`ddetr train`, `resume`, `space`, `make-data`: from a request to a finished run. Knows the order of steps only.

Both ways of training, searched and plain, leave the same folder: `spec.yaml`, `trials/`, `handoff.json`, `model.onnx`.
"""

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpo import policy, runs
from hpo.errors import RunError, SweepStoppedError
from hpo.screen import out, say
from hpo.show_space import print_space
from hpo.spec import read_request
from model.spec import ExperimentSpec
from schemas import dotted, packaged
from schemas.structure import structure, unstructure

if TYPE_CHECKING:
    from deploy.spec import ExportSpec, GenTrtEngineSpec
    from hpo.result import SweepResult, TrialRecord


def train(arguments: argparse.Namespace) -> None:
    """Searches, or trains once, by policy; then hands the result over."""
    from hpo.handoff import check

    out.print(f"reading {arguments.spec}")
    overrides = [*arguments.overrides, *(["automl_policy=off"] if arguments.no_automl else [])]
    request = read_request(arguments.spec, overrides, request_text=arguments.request, flags=vars(arguments), data=True)
    decision = policy.resolve(request.policy, request.action)
    out.print(decision.because)
    for line in request.notices():
        say(line)
    if decision.run_hpo:
        policy.require_metric(request.spec.dataset.has_validation)
        space = request.space()
        print_space(space, out)
    _check(request.spec)
    check(request.sections["export"], request.sections["gen_trt_engine"])
    if arguments.dry_run:
        out.print("dry run: nothing was started")
        return
    run = runs.new_run(runs.results_root(request.spec), arguments.spec)
    out.print(f"run {run}")
    runs.write_sections(run, {name: unstructure(section) for name, section in request.sections.items()})
    if decision.run_hpo:
        from hpo.sweep import run_sweep

        out.print("starting MLflow and the workers; the first time takes half a minute")
        _finish_sweep(run, request.spec, run_sweep(run, request.spec, request.sweep, space))
    else:
        _plain(run, request.spec)


def resume(arguments: argparse.Namespace) -> None:
    """Goes on with an interrupted search and its handoff."""
    import yaml

    from hpo.sweep import resume_sweep

    run = runs.find_run(arguments.run)
    if not (run / "study.db").exists():
        raise RunError(
            f"`ddetr resume` goes on with a search, but {run} holds none; resume plain training with "
            "train.resume_training_checkpoint_path."
        )
    out.print(f"run {run}")
    result = resume_sweep(run)
    spec = ExperimentSpec.from_dict(yaml.safe_load((run / "spec.yaml").read_text(encoding="utf-8")))
    _finish_sweep(run, spec, result)


def make_data(arguments: argparse.Namespace) -> None:
    from model.data.digits import make_digits

    make_digits(arguments.out, arguments.classes, arguments.size, arguments.images, arguments.seed)
    out.print(f"wrote {arguments.out}/train, val and test: images.tar.gz, annotations.json, label_map.txt")
    out.print("next: ddetr train -e experiments/quickstart.yaml")


def _check(spec: ExperimentSpec) -> None:
    """Everything that a trial would trip over: the network, and every split, read once here. Decodes the images that
    all trials share."""
    from model.data.cache import open_images
    from model.data.datamodule import CocoDataModule
    from model.network.detr import check_spec

    check_spec(spec.model, spec.dataset.num_classes)
    data = CocoDataModule(spec, cpus=1)
    data.check_training()
    splits = {"train": data.train_index}
    if data.has_validation:
        splits["val"] = data.val_index
    else:
        out.print("no validation data: there will be no metric, and the last epoch is the result")
    if data.has_test:
        splits["test"] = data.test_index
    for name, index in splits.items():
        open_images(index.images)
        out.print(f"{name}: {len(index.images)} images, {len(index.annotations.labels)} boxes")
    names = ", ".join(f"{name} ({key})" for key, name in list(data.classes.items())[:10])
    out.print(f"classes: {names}{' …' if len(data.classes) > 10 else ''}")


def _plain(run: Path, spec: ExperimentSpec) -> None:
    """Trains the spec once into trials/0, as trial 0 of a search would be, tracked as one MLflow run."""
    from hpo.ledger import write_spec
    from hpo.result import Outcome
    from hpo.tracking import plain_run
    from model.train import train as train_once

    write_spec(spec.to_dict(), run / "spec.yaml")
    folder = run / "trials" / "0"
    write_spec(spec.to_dict(), folder / "spec.yaml")
    tracked = plain_run(run, _columns(spec), note=out.print)
    started = time.monotonic()
    try:
        result = train_once(spec, folder, on_epoch=tracked.log, cpus=os.cpu_count())
    except KeyboardInterrupt:
        tracked.finish(Outcome.LOST, reason="interrupted")
        raise
    except Exception as error:
        tracked.finish(Outcome.FAILED, reason=f"{type(error).__name__}: {error}")
        raise
    tracked.finish(Outcome.COMPLETED, checkpoint=result.best)
    best = result.best_measurement
    if best is not None:
        out.print(f"best epoch {best.epoch}: val_mAP50 {best.values['val_mAP50']:.4f}")
    budget = {"epochs": float(spec.train.num_epochs), "seconds": round(time.monotonic() - started, 1)}
    lineage = {"run": run.name, "trial": 0, "seed": spec.train.seed, "values": {}}
    _hand_off(run, result.best, spec, budget, lineage)


def _columns(spec: ExperimentSpec) -> dict[str, Any]:
    """The values of a plain run that a comparison with a search's trials would show."""
    nested = spec.to_dict()
    searchable = packaged.document("train")["automl_default_parameters"]
    return {name: dotted.get(nested, name) for name in sorted(searchable)}


def _finish_sweep(run: Path, spec: ExperimentSpec, result: "SweepResult") -> None:
    best = result.best
    _print_rows("Trials", result.table())
    out.print(result.verdict())
    if best is None or best.checkpoint is None:
        raise SweepStoppedError(
            f"no trial of {run.name} completed; `ddetr resume {run}` goes on when the cause is mended."
        )
    budget = {"epochs": float(best.measurements[-1].epoch), "seconds": best.seconds}
    lineage = {
        "run": run.name,
        "trial": best.number,
        "seed": spec.train.seed,
        "values": dict(best.params),
        "space": result.space_hash,
    }
    _hand_off(run, best.checkpoint, spec, budget, lineage)
    _compare_on_test(spec, best, result.baseline)


def _compare_on_test(spec: ExperimentSpec, best: "TrialRecord", default: "TrialRecord | None") -> None:
    """The winner's score beside the default's, on images that chose nothing."""
    if not spec.dataset.has_test:
        return
    from model.evaluate import evaluate_checkpoint

    given = {"dataset": {"test_data_sources": spec.to_dict()["dataset"]["test_data_sources"]}}
    scores = {}
    for name, trial in (("default", default), ("winner", best)):
        if trial is not None and trial.checkpoint is not None and trial.checkpoint.exists():
            scores[name] = evaluate_checkpoint(trial.checkpoint, given)[0].numbers["mAP50"]
    text = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    out.print(f"test mAP50: {text}" + ("" if "default" in scores else " (the default left no checkpoint)"))


def _hand_off(
    run: Path, checkpoint: Path, spec: ExperimentSpec, budget: Mapping[str, float], lineage: Mapping[str, Any]
) -> None:
    from hpo.handoff import hand_off
    from hpo.tracking import tracking_uri

    export, engine = _deploy_sections(run)
    out.print("handing over: ONNX, engine and their accuracy")
    delivery = hand_off(
        run, checkpoint, spec, export=export, engine=engine, budget=budget, lineage=lineage, cpus=os.cpu_count() or 1
    )
    out.print(delivery.table())
    for remark in delivery.remarks:
        say(remark)
    out.print(f"compare trials: mlflow ui --backend-store-uri {tracking_uri(run.parent)}")
    out.print(f"next: ddetr evaluate --from {os.path.relpath(run)}")


def _deploy_sections(run: Path) -> tuple["ExportSpec", "GenTrtEngineSpec"]:
    from deploy.spec import ExportSpec, GenTrtEngineSpec

    kept = runs.read_sections(run)
    export, _ = structure(ExportSpec, kept.get("export", {}))
    engine, _ = structure(GenTrtEngineSpec, kept.get("gen_trt_engine", {}))
    return export, engine


def _print_rows(title: str, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("outcome", "note") else "right")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)
