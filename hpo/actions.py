"""The plain actions, as both commands offer them: read the spec, find the folder, call the room that does it."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo import runs
from hpo.screen import near, next_step, say
from hpo.spec import Request, read_request, with_values
from model.errors import SpecError


def train(arguments: argparse.Namespace) -> None:
    """`deformable_detr train`: once, into `<results_dir>/train`."""
    request = _read(arguments, "train")
    from model.train import train as train_once

    spec = request.spec
    if (request.raw.get("train") or {}).get("keep_checkpoints") is None:
        spec = with_values(spec, {"train.keep_checkpoints": -1})  # as TAO's users expect of this command
    result = train_once(spec, _folder(request, "train", arguments), cpus=os.cpu_count())
    say(f"wrote {near(result.last)}")


def evaluate(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "evaluate")
    given, folder = _with_checkpoint(request, arguments, "evaluate"), _folder(request, "evaluate", arguments)
    if _is_onnx(given, "evaluate"):
        from deploy.evaluate import evaluate_action as score
    else:
        from model.evaluate import evaluate as score
    result = score(given, folder, cpus=os.cpu_count() or 1)
    for name, value in result.numbers.items():
        print(f"{name:10s} {value:.4f}")
    say(f"wrote {near(folder)}/metrics.json, per_class.csv, predictions.json, worst_and_best.png")
    images = "dataset.infer_data_sources.image_dir=[FOLDER]"
    next_step(arguments, "inference", *_same(arguments, given, "evaluate", "inference"), images)


def inference(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "inference")
    given, folder = _with_checkpoint(request, arguments, "inference"), _folder(request, "inference", arguments)
    if _is_onnx(given, "inference"):
        from deploy.inference import inference_action as label
    else:
        from model.inference import inference as label
    count = label(given, folder)
    say(f"{count} images: wrote {near(folder)}/labels and {near(folder)}/images_annotated")
    if _is_onnx(given, "inference"):
        onnx = str(given["inference"]["checkpoint"])
        engine = str(Path(onnx).with_suffix(".engine"))
        files = (f"gen_trt_engine.onnx_file={near(onnx)}", f"gen_trt_engine.trt_engine={near(engine)}")
        next_step(arguments, "gen_trt_engine", *_spec_words(arguments), *files)
    else:
        next_step(arguments, "export", *_same(arguments, given, "inference", "export"), *_where(arguments))


def export(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "export")
    import dataclasses

    from deploy.export import export_action

    section = request.sections["export"]
    if arguments.run:
        checkpoint = runs.checkpoint_of(arguments.run)
        default = section.onnx_file or str(_folder(request, "export", arguments) / "model.onnx")
        section = dataclasses.replace(section, checkpoint=str(checkpoint), onnx_file=default)
    onnx = export_action(request.spec, section)
    say(f"wrote {near(onnx)}")
    files = (f"gen_trt_engine.onnx_file={near(onnx)}", f"gen_trt_engine.trt_engine={near(onnx.with_suffix('.engine'))}")
    next_step(arguments, "gen_trt_engine", *_spec_words(arguments), *files)


def gen_trt_engine(arguments: argparse.Namespace) -> None:
    request = _read(arguments, "gen_trt_engine")
    import dataclasses

    from deploy.engine import gen_trt_engine_action

    section = request.sections["gen_trt_engine"]
    if arguments.run:
        run = runs.find_run(arguments.run)
        section = dataclasses.replace(
            section,
            onnx_file=section.onnx_file or str(run / "model.onnx"),
            trt_engine=section.trt_engine or str(run / "model.engine"),
        )
    engine = gen_trt_engine_action(section)
    say(f"wrote {near(engine)}")
    onnx = str(section.onnx_file)
    spec = _spec_words(arguments)
    if arguments.run:  # whose own checkpoint `--from` would evaluate
        run = runs.find_run(arguments.run)
        spec = ["-e", near(run / "spec.yaml"), f"results_dir={near(run)}"]
    next_step(arguments, "evaluate", *spec, f"evaluate.checkpoint={near(onnx)}")


def _read(arguments: argparse.Namespace, action: str) -> Request:
    if arguments.spec is None and not arguments.run:
        raise SpecError([f"`ddetr {action}` needs a spec (-e SPEC) or a finished run (--from RUN); give one."])
    say(f"{action}: reading {arguments.spec or arguments.run}")
    plain = arguments.program == "deformable_detr"
    request = read_request(arguments.spec, arguments.overrides, action=action, automl=not plain)
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
        *(["--from", arguments.run] if arguments.run else []),
    ]


def _same(arguments: argparse.Namespace, given: Mapping[str, Any], action: str, following: str) -> list[str]:
    """The same spec and the same checkpoint for the following action."""
    if arguments.run:
        return _spec_words(arguments)
    return [*_spec_words(arguments), f"{following}.checkpoint={given[action]['checkpoint']}"]


def _where(arguments: argparse.Namespace) -> list[str]:
    """An export without a run must be told where to."""
    return [] if arguments.run else ["export.onnx_file=model.onnx"]


def _with_checkpoint(request: Request, arguments: argparse.Namespace, action: str) -> dict[str, Any]:
    """The user's own keys, with the run's checkpoint where `--from` names one."""
    given = dict(request.raw)
    if arguments.run:
        given[action] = {**(given.get(action) or {}), "checkpoint": str(runs.checkpoint_of(arguments.run))}
    return given


def _is_onnx(given: Mapping[str, Any], action: str) -> bool:
    return str((given.get(action) or {}).get("checkpoint") or "").endswith(".onnx")


def _folder(request: Request, action: str, arguments: argparse.Namespace) -> Path:
    """`<action>.results_dir`, else `<results_dir>/<action>`, else below the run that `--from` names."""
    section = (request.raw.get(action) or {}).get("results_dir")
    root = request.raw.get("results_dir")
    if section:
        return Path(section).resolve()
    if root:
        return Path(root).resolve() / action
    if arguments.run:
        return _run_folder(arguments.run) / action
    raise SpecError([
        f"a results folder must be set, but `results_dir` and `{action}.results_dir` are unset; "
        f"set one: results_dir=results."
    ])  # fmt: skip


def _run_folder(name: str) -> Path:
    head, _, number = name.rstrip("/").rpartition("/")
    if number.isdigit() and not Path(name).is_dir():
        return runs.find_run(head) / "trials" / number
    return runs.find_run(name)
