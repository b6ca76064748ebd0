"""The plain actions, as both commands offer them: read the spec, find the folder, call the room that does it.

Of an earlier job (`--from`, `parent_job_id`) they know nothing: what it gives stands in the spec that was read.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.record import folder_of, recorded, write_experiment
from hpo.screen import near, next_step, out, say
from hpo.spec import Request, read_request, with_values
from model.errors import SpecError
from model.spec import ENGINES
from model.status import StatusLog


@recorded
def train(arguments: argparse.Namespace) -> None:
    """`deformable_detr train`: once, into `<results_dir>/train`."""
    request = _read(arguments, "train")
    from model.train import train as train_once

    spec = request.spec
    if (request.raw.get("train") or {}).get("keep_checkpoints") is None:
        spec = with_values(spec, {"train.keep_checkpoints": -1})  # as TAO's users expect of this command
    result = train_once(spec, _folder(request, "train", arguments), cpus=os.cpu_count())
    say(f"wrote {near(result.last)}")


@recorded
def evaluate(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "evaluate")
    given, folder = _with_file(request, arguments, "evaluate")
    from deploy.evaluate import evaluate_action

    result, latency = evaluate_action(given, folder, cpus=os.cpu_count() or 1)
    for name, value in result.numbers.items():
        print(f"{name:10s} {value:.4f}")
    files = "metrics.json, results.json, per_class.csv, predictions.json, worst_and_best.png"
    if latency is not None:
        out.print(latency.table())
        files += ", latency.json"
    say(f"wrote {near(folder)}/{files}")
    images = "dataset.infer_data_sources.image_dir=[FOLDER]"
    next_step(arguments, "inference", *_same(arguments, given, "evaluate", "inference"), images)


@recorded
def inference(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "inference")
    given, folder = _with_file(request, arguments, "inference")
    from deploy.inference import inference_action

    count = inference_action(given, folder)
    say(f"{count} images: wrote {near(folder)}/labels and {near(folder)}/images_annotated")
    named = _named(given, "inference")
    if named.endswith(".onnx"):
        engine = str(Path(named).with_suffix(".engine"))
        files = (f"gen_trt_engine.onnx_file={near(named)}", f"gen_trt_engine.trt_engine={near(engine)}")
        next_step(arguments, "gen_trt_engine", *_spec_words(arguments), *files)
    elif not named.endswith(ENGINES):
        next_step(arguments, "export", *_same(arguments, given, "inference", "export"), *_where(arguments))


@recorded
def export(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "export")
    folder = _optional_folder(request, "export", arguments)
    from deploy.export import export_action

    with StatusLog(folder or Path(), enabled=folder is not None).action("export"):
        onnx = export_action(request.spec, request.sections["export"])
    say(f"wrote {near(onnx)}")
    files = (f"gen_trt_engine.onnx_file={near(onnx)}", f"gen_trt_engine.trt_engine={near(onnx.with_suffix('.engine'))}")
    next_step(arguments, "gen_trt_engine", *_spec_words(arguments), *files)


@recorded
def gen_trt_engine(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "gen_trt_engine")
    folder = _optional_folder(request, "gen_trt_engine", arguments)
    from deploy.gen_trt_engine import gen_trt_engine_action

    report = gen_trt_engine_action(request.sections["gen_trt_engine"], request.raw, folder)
    say(f"wrote {near(report.engine)}")
    file = f"trt_engine={near(report.engine)}" if report.runs_here else f"checkpoint={near(report.onnx)}"
    next_step(arguments, "evaluate", *_spec_words(arguments), f"evaluate.{file}")


@recorded
def quantize(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "quantize")
    folder = _folder(request, "quantize", arguments)
    from deploy.quantize import quantize_action

    parts = request.sections
    report = quantize_action(request.raw, parts["quantize"], parts["deploy"], folder, cpus=os.cpu_count() or 1)
    for line in report.lines():
        say(line)
    say(f"wrote {near(report.file)}")
    where = [] if request.raw.get("results_dir") else [f"results_dir={near(folder)}"]
    next_step(arguments, "evaluate", *_spec_words(arguments), *where, f"evaluate.checkpoint={near(report.file)}")


def _read(arguments: argparse.Namespace, action: str) -> Request:
    if arguments.spec is None and not arguments.run:
        raise SpecError([f"`ddetr {action}` needs a spec (-e SPEC) or a finished run (--from RUN); give one."])
    say(f"{action}: reading {arguments.spec or arguments.run}")
    plain = arguments.program == "deformable_detr"
    flags = vars(arguments)
    request = read_request(arguments.spec, arguments.overrides, action=action, automl=not plain, flags=flags)
    if action == "train" and not request.states_num_classes:
        # Else the training reads the data itself, and ends its status.json with what is wrong with it.
        request = request.with_data()
    if plain and request.automl_keys:
        keys = ", ".join(request.automl_keys)
        say(f"{keys}: passed over; `deformable_detr` runs the plain action, `ddetr train` searches")
    for line in request.notices():
        say(line)
    return request


def _spec_words(arguments: argparse.Namespace) -> list[str]:
    """How the next command names the same spec or run."""
    return [
        *(["-e", str(arguments.spec)] if arguments.spec is not None else []),
        *(["--overrides", str(arguments.overrides_file)] if arguments.overrides_file is not None else []),
        *(["--from", arguments.run] if arguments.run else []),
    ]


def _same(arguments: argparse.Namespace, given: Mapping[str, Any], action: str, following: str) -> list[str]:
    """The same spec and the same file for the following action."""
    named = _named(given, action)
    if arguments.run and not named.endswith((".onnx", *ENGINES)):
        return _spec_words(arguments)
    return [*_spec_words(arguments), f"{following}.checkpoint={near(named)}"]


def _where(arguments: argparse.Namespace) -> list[str]:
    """An export without a run must be told where to."""
    return [] if arguments.run else ["export.onnx_file=model.onnx"]


def _with_file(request: Request, arguments: argparse.Namespace, action: str) -> tuple[Mapping[str, Any], Path]:
    """The user's own keys and the results folder."""
    given, section = request.raw, request.raw.get(action) or {}
    if section.get("trt_engine") and section.get("checkpoint"):
        say(f"{action}.trt_engine names what is run; {action}.checkpoint is passed over")
    engine = _named(given, action).endswith(ENGINES)
    return given, _folder(request, action, arguments, f"trt_{action}" if engine else action)


def _named(given: Mapping[str, Any], action: str) -> str:
    """The file that an action runs."""
    section = given.get(action) or {}
    return str(section.get("trt_engine") or section.get("checkpoint") or "")


def _folder(request: Request, action: str, arguments: argparse.Namespace, name: str = "") -> Path:
    """As `folder_of`, which must be told. The spec that was read is kept there."""
    folder = _optional_folder(request, action, arguments, name)
    if folder is None:
        raise SpecError([
            f"a results folder must be set, but `results_dir` and `{action}.results_dir` are unset; "
            f"set one: results_dir=results."
        ])  # fmt: skip
    return folder


def _optional_folder(request: Request, action: str, arguments: argparse.Namespace, name: str = "") -> Path | None:
    folder = arguments.results = folder_of(request.raw, action, name)
    if folder is not None and action != "train":  # which writes its own, when it has taken its seed
        write_experiment(request, folder)
    return folder
