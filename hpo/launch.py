"""`ddetr train`, `resume`, `space`, `make-data`: from a request to a finished run. Knows the order of steps only.

Both ways of training, searched and plain, leave the same folder: `spec.yaml`, `trials/`, `handoff.json`, `model.onnx`.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo import events, policy, runs
from hpo.ending import emit_finished, finish_sweep, hand_over, wanted_of
from hpo.errors import RunError
from hpo.screen import near, next_step, out, say
from hpo.show_space import print_space
from hpo.spec import absent_weights, read_request
from model.errors import SpecError
from model.spec import ExperimentSpec
from schemas import dotted, packaged
from schemas.structure import unstructure

if TYPE_CHECKING:
    from hpo.result import Outcome
    from hpo.review import Review
    from hpo.spec import Request
    from model.data.coco import CocoIndex
    from model.metrics import Measurement


def train(arguments: argparse.Namespace) -> None:
    """Searches, or trains once, by policy; then hands the result over."""
    if arguments.spec is None and not arguments.run:
        raise SpecError(["`ddetr train` needs a spec (-e SPEC) or a finished run (--from RUN); give one."])
    out.print(f"reading {arguments.spec or arguments.run}")
    _use_cluster(arguments.ray_address)
    overrides = [*arguments.overrides, *(["automl_policy=off"] if arguments.no_automl else [])]
    request = read_request(arguments.spec, overrides, request_text=arguments.request, flags=vars(arguments), data=True)
    decision = policy.resolve(request.policy, request.action)
    out.print(decision.because)
    for line in request.notices():
        say(line)
    search = decision.run_hpo
    if search:
        policy.require_metric(request.spec.dataset.has_validation)
        space = request.space()
        print_space(space, out)
    wanted_of(request.sections).check(len(request.sweep.objectives) if search else 1)
    if absent := absent_weights(request.spec):
        raise SpecError(absent)
    root = runs.results_root(request.spec)
    runs.check_root(root)
    splits = _splits(request.spec)
    if search:
        from hpo.review import review_search

        review = review_search(request, space, splits, root)
        space = review.space
        _emit_review(decision.because, review.epochs, review)
        if not arguments.dry_run and not _agreed(arguments, review.ready):
            return
    elif arguments.dry_run:
        from hpo.review import review_plain

        review_plain(request.spec, splits, root)
    else:
        from hpo.review import print_data

        print_data(splits)
    if not search:
        _emit_review(decision.because, request.spec.train.num_epochs)
    if arguments.dry_run:
        out.print("dry run: nothing was started")
        next_step(arguments, *(word for word in arguments.words if not _is_dry(word)))
        return
    run = runs.new_run(root, arguments.spec.stem if arguments.spec else _stem(request))
    _begin(run)
    runs.write_sections(run, {name: unstructure(section) for name, section in request.sections.items()})
    if search:
        from hpo.sweep import run_sweep

        out.print("starting MLflow and the workers; the first time takes half a minute")
        finish_sweep(run, request.spec, run_sweep(run, request.spec, request.sweep, space))
    else:
        _plain(run, request.spec, request.sweep.model_name)
    next_step(arguments, "evaluate", "--from", near(run))


def _stem(request: "Request") -> str:
    """Without a spec file a run is called as its parent's spec was."""
    assert request.parent is not None
    return runs.stem(request.parent.folder.relative_to(request.parent.store).parts[0])


def _is_dry(word: str) -> bool:
    """argparse takes the beginning of a flag for the flag."""
    return len(word) > 2 and "--dry-run".startswith(word)


def _begin(run: Path) -> None:
    say(f"run {run}")
    events.emit("run", folder=run)


def _emit_review(because: str, epochs: int, review: "Review | None" = None) -> None:
    """What is about to happen, to a program; people have read more of it."""
    events.emit(
        "review",
        search=review is not None,
        because=because,
        parameters=[] if review is None else list(review.space.targets),
        trials=1 if review is None else review.trials,
        epochs=epochs,
        seconds=None if review is None else review.seconds,
        ready=review is None or review.ready,
    )


def _agreed(arguments: argparse.Namespace, ready: bool) -> bool:
    """Whether the search may start: asked on a terminal only, and not with --yes."""
    if arguments.yes or arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        answer = input("start? [Y/n] " if ready else "start all the same? [y/N] ").strip().lower()
    except EOFError:
        answer = "n"
    agreed = answer in ("y", "yes") or (ready and not answer)
    if not agreed:
        out.print("nothing was started")
    return agreed


def resume(arguments: argparse.Namespace) -> None:
    """Goes on with an interrupted search, or with more trials, and hands its result over."""
    _use_cluster(arguments.ray_address)
    run = _search(arguments.run, "resume")
    _begin(run)
    from hpo.sweep import resume_sweep

    result = resume_sweep(run, add_trials=_whole("--add-trials", arguments.add_trials))
    finish_sweep(run, _spec_of(run), result)
    next_step(arguments, "evaluate", "--from", near(run))


def stop(arguments: argparse.Namespace) -> None:
    """Ends a search early and keeps the best: by its own driver, which hands the winner over, or here without one."""
    run = _search(arguments.run, "stop")
    _begin(run)
    from hpo.locks import exclusive
    from hpo.result import read_result
    from hpo.sweep import stop_sweep

    if read_result(run).finished:
        raise RunError(f"`ddetr stop` ends a search that is not finished, but {run} is; its result is in {run}.")
    if not stop_sweep(run):
        out.print(f"no driver was at work in {run}; the search ends with what there is")
        finish_sweep(run, _spec_of(run), read_result(run))
        next_step(arguments, "evaluate", "--from", near(run))
        return
    out.print("told the driver; its trials stop after their running epochs")
    with exclusive(run / ".lock", wait_s=math.inf, holder="its driver"):
        result = read_result(run)
    emit_finished(result)
    out.print(result.verdict())
    out.print("the command that ran the search hands the winner over; then")
    next_step(arguments, "evaluate", "--from", near(run))


def _search(name: str, command: str) -> Path:
    """The folder of a search. RunError for one that holds none."""
    run = runs.find_run(name)
    if not (run / "study.db").exists():
        raise RunError(
            f"`ddetr {command}` takes a search, but {run} holds none; resume plain training with "
            "train.resume_training_checkpoint_path."
        )
    return run


def _spec_of(run: Path) -> ExperimentSpec:
    import yaml

    return ExperimentSpec.from_dict(yaml.safe_load((run / "spec.yaml").read_text(encoding="utf-8")))


def _whole(flag: str, given: str | None) -> int:
    if given is None:
        return 0
    if not given.isdecimal() or int(given) < 1:
        raise RunError(f"`{flag}` must be a whole number from 1 on, but is {given!r}.")
    return int(given)


def _use_cluster(address: str | None) -> None:
    """Ray's own variable, so that whatever starts Ray sees it."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


def make_data(arguments: argparse.Namespace) -> None:
    from model.data.digits import make_digits

    say(f"drawing {arguments.images} training pictures, and a quarter as many for each other split, of scanned digits")
    make_digits(arguments.out, arguments.classes, arguments.size, arguments.images, arguments.seed)
    out.print(f"wrote {arguments.out}/train, val and test: images.tar.gz, annotations.json, label_map.txt")
    next_step(arguments, "train", "-e", *_digits_spec(arguments.out, arguments.classes))


def _digits_spec(folder: Path, classes: str) -> Iterator[str]:
    """The quickstart's spec on data that was written to `folder`."""
    yield "experiments/quickstart.yaml"
    if folder.resolve() != Path("data/digits").resolve():
        for split in ("train", "val", "test"):
            source = f"{{image_dir: {folder}/{split}/images.tar.gz, json_file: {folder}/{split}/annotations.json}}"
            yield f"dataset.{split}_data_sources={source if split == 'test' else f'[{source}]'}"
    if classes == "ten":
        yield "dataset.num_classes=11"


def _splits(spec: ExperimentSpec) -> "dict[str, CocoIndex]":
    """Everything that a trial would trip over: the network, and every split, read once here. Decodes the images that
    all trials share."""
    from model.data.cache import CachedImages, cache_root, open_images
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
    opened = [open_images(index.images) for index in splits.values()]
    decoded = sum((each.folder / "pixels.bin").stat().st_size for each in opened if isinstance(each, CachedImages))
    if decoded:
        out.print(f"decoded images: {decoded / 1e6:.3g} MB in {cache_root()}, read by all trials of this machine")
    for name, images in zip(splits, opened, strict=True):
        if images.unreadable:
            why = next(iter(images.unreadable.values()))
            say(f"{len(images.unreadable)} of {len(images)} images of {name} cannot be decoded and are left out: {why}")
    return splits


def _plain(run: Path, spec: ExperimentSpec, model_name: str | None) -> None:
    """Trains the spec once into trials/0, as trial 0 of a search would be, tracked as one MLflow run."""
    from hpo import datasets
    from hpo.files import write_spec
    from hpo.registry import register
    from hpo.reporting.facts import keep_epoch
    from hpo.reporting.live import finish, reported
    from hpo.result import Outcome
    from hpo.tracking import About, plain_run
    from model.launch import place
    from model.train import train as train_once

    write_spec(spec.to_dict(), run / "spec.yaml")
    folder = run / "trials" / "0"
    write_spec(spec.to_dict(), folder / "spec.yaml")
    about = About(spec=spec.to_dict(), datasets=datasets.known(run, spec))
    gpus = float(len(place(spec.train).gpu_ids))
    tracked = plain_run(run, _columns(spec), about=about, gpus=gpus, note=say)
    started = time.monotonic()
    measured: list[Measurement] = []

    def heard(one: "Measurement") -> None:
        tracked.log(one)
        keep_epoch(run, one)
        measured.append(one)
        best = max(each.values["val_mAP50"] for each in measured)
        events.emit(
            "measured", trial=0, epoch=one.epoch, seconds=one.seconds, values=one.values, best=best, to_default=None
        )

    events.emit("started", trial=0, baseline=True, repeats=None, epochs=0, params={})
    try:
        with reported(run, say):
            result = train_once(spec, folder, on_epoch=heard, cpus=os.cpu_count())
    except KeyboardInterrupt:
        tracked.finish(Outcome.LOST, reason="interrupted")
        _emit_ended(Outcome.LOST, "interrupted")
        raise
    except Exception as error:
        tracked.finish(Outcome.FAILED, reason=f"{type(error).__name__}: {error}")
        _emit_ended(Outcome.FAILED, f"{type(error).__name__}: {error}")
        raise
    tracked.finish(Outcome.COMPLETED, checkpoint=result.best, adjustments=result.adjustments)
    best = result.best_measurement
    value = None if best is None else best.values["val_mAP50"]
    verdict = "trained without validation data" if best is None else f"best epoch {best.epoch}: val_mAP50 {value:.4f}"
    out.print(verdict)
    _emit_ended(Outcome.COMPLETED, None, spec.train.num_epochs, time.monotonic() - started, value, result.best)
    events.emit(
        "finished", verdict=verdict, reason="all epochs", trial=0, value=value, default=value, checkpoint=result.best
    )
    budget = {"epochs": float(spec.train.num_epochs), "seconds": round(time.monotonic() - started, 1)}
    lineage = {"run": run.name, "trial": 0, "seed": spec.train.seed, "values": {}}
    delivery = hand_over(run, result.best, spec, budget, lineage)
    finish(run, spec, result.best, trial=0, default=None, note=say, cpus=os.cpu_count() or 1)
    register(
        run,
        spec,
        trial=0,
        metric="val_mAP50",
        value=value,
        params=_columns(spec),
        note=say,
        name=model_name,
        plain=True,
    )
    delivery.require()


def _emit_ended(
    outcome: "Outcome",
    reason: str | None,
    epochs: int | None = None,
    seconds: float | None = None,
    value: float | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Of a plain training."""
    events.emit(
        "ended",
        trial=0,
        outcome=outcome.value,
        reason=reason,
        epochs=epochs,
        seconds=seconds,
        value=value,
        to_default=None,
        checkpoint=checkpoint,
    )


def _columns(spec: ExperimentSpec) -> dict[str, Any]:
    """The values of a plain run that a comparison with a search's trials would show."""
    nested = spec.to_dict()
    searchable = packaged.document("train")["automl_default_parameters"]
    return {name: dotted.get(nested, name) for name in sorted(searchable)}
