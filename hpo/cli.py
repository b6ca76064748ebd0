"""The two commands, through a literal table. Knows arguments and exit codes; each command's work is elsewhere.

`ddetr` decides by policy whether to search; `deformable_detr` is the TAO-compatible spelling, the plain action only.
Exit codes: 0 done, 1 failed, 2 wrong usage or invalid spec, 130 interrupted. A user's mistake is one paragraph without
a traceback; what nobody foresaw keeps its traceback.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from hpo import guard

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    function: str
    """module:function, called with the parsed arguments."""
    help: str
    arguments: Sequence[str]
    """Which of ARGUMENTS it takes."""


SPEC = ("-e", "--experiment_spec_file", "--spec")
ARGUMENTS: Mapping[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "spec": (SPEC, {"required": True, "metavar": "SPEC", "type": Path, "dest": "spec"}),
    "optional spec": (SPEC, {"metavar": "SPEC", "type": Path, "dest": "spec"}),
    "overrides": (("overrides",), {"nargs": "*", "default": [], "metavar": "key=value", "help": "spec keys, dotted"}),
    "request": (("--request",), {"metavar": "TEXT", "help": 'what is wanted, in words: "plain training", "no HPO"'}),
    "no-automl": (("--no-automl",), {"action": "store_true", "help": "train once: automl_policy=off for this run"}),
    "dry-run": (("--dry-run",), {"action": "store_true", "help": "print the launch review, and stop"}),
    "yes": (("--yes", "-y"), {"action": "store_true", "help": "start without asking"}),
    "schema": (("--schema",), {"metavar": "FILE", "type": Path, "help": "any model's *.schema.json in place of ours"}),
    "json": (("--json",), {"action": "store_true", "help": "one JSON document on standard output"}),
    "key": (("key",), {"metavar": "KEY", "help": "dotted, or its end where that is unique: train.optim.lr, lr"}),
    "tier": (("--tier",), {"metavar": "TIER", "help": "how much is searched: narrow, medium or wide"}),
    "params": (("--params",), {"metavar": "A,B", "help": "search exactly these; +C adds one to the tier's"}),
    "range": (("--range",), {"action": "append", "metavar": "KEY=LOW:HIGH[:log]", "help": "may be repeated"}),
    "fix": (("--fix",), {"action": "append", "metavar": "KEY=VALUE", "help": "this value in every trial; repeatable"}),
    "exclude": (("--exclude",), {"metavar": "A,B", "help": "never search these"}),
    "trials": (("--trials",), {"metavar": "N", "help": "configurations to try, the default among them"}),
    "hours": (("--hours",), {"metavar": "H", "help": "wall-clock time of the search, at most"}),
    "searcher": (("--searcher",), {"metavar": "NAME", "help": "how the next configuration is chosen"}),
    "scheduler": (("--scheduler",), {"metavar": "NAME", "help": "when a trial is stopped early"}),
    "algorithm": (("--algorithm",), {"metavar": "NAME", "help": "searcher and scheduler by one name, as in TAO"}),
    "seed-from": (("--seed-from",), {"metavar": "RUN", "help": "try the best configurations of that run first"}),
    "add-trials": (("--add-trials",), {"metavar": "N", "help": "so many configurations more than it was to try"}),
    "ray-address": (("--ray-address",), {"metavar": "ADDRESS", "help": "a running Ray cluster, such as auto"}),
    "from": (("--from",), {"metavar": "RUN", "dest": "run", "help": "a finished run, or RUN/7 for its trial 7"}),
    "run": (("run",), {"metavar": "RUN", "help": "a run's folder, or its id below runs/"}),
    "dataset": (("dataset",), {"choices": ("digits",)}),
    "out": (("--out",), {"required": True, "type": Path, "metavar": "DIR"}),
    "classes": (("--classes",), {"choices": ("one", "ten"), "default": "one"}),
    "size": (("--size",), {"type": int, "default": 96, "help": "side of the pictures, pixels"}),
    "images": (("--images",), {"type": int, "default": 600, "help": "training pictures"}),
    "seed": (("--seed",), {"type": int, "default": 0}),
}
ACTION = ("optional spec", "from", "overrides")
SPACE = ("tier", "params", "range", "fix", "exclude")
"""What is searched. These and SEARCH are written into the `automl:` block (FLAGS of hpo/spec.py)."""
SEARCH = ("trials", "hours", "searcher", "scheduler", "algorithm", "seed-from")
"""How it is searched."""
DDETR: Mapping[str, Command] = {
    "train": Command(
        "hpo.launch:train",
        "search and train, or train once, by automl_policy",
        ("spec", "request", "no-automl", "dry-run", "yes", *SPACE, *SEARCH, "ray-address", "overrides"),
    ),
    "resume": Command(
        "hpo.launch:resume", "go on with a search after any interruption", ("run", "add-trials", "ray-address")
    ),
    "stop": Command("hpo.launch:stop", "end a search early and keep the best", ("run",)),
    "space": Command(
        "hpo.show_space:space",
        "what is searched, what is not, and why; of any model by its schema",
        ("optional spec", "schema", "json", *SPACE, "overrides"),
    ),
    "explain": Command(
        "hpo.explain:explain",
        "what a key does, and why it is or is not searched",
        ("key", "optional spec", "schema", "overrides"),
    ),
    "evaluate": Command("hpo.actions:evaluate", "score a checkpoint or an ONNX file on the test data", ACTION),
    "inference": Command("hpo.actions:inference", "label and draw images", ACTION),
    "export": Command("hpo.actions:export", "checkpoint to ONNX", ACTION),
    "gen_trt_engine": Command("hpo.actions:gen_trt_engine", "ONNX to a TensorRT engine", ACTION),
    "make-data": Command(
        "hpo.launch:make_data",
        "write a sample COCO set of real scanned digits",
        ("dataset", "out", "classes", "size", "images", "seed"),
    ),
}
DIRECT: Mapping[str, Command] = {
    "train": Command("hpo.actions:train", "train once", ("spec", "overrides")),
    **{
        name: DDETR[name]._replace(arguments=("spec", "overrides"))
        for name in ("evaluate", "inference", "export", "gen_trt_engine")
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """`ddetr`."""
    return _run("ddetr", DDETR, argv)


def direct(argv: Sequence[str] | None = None) -> int:
    """`deformable_detr`: no policy, no run folder, TAO's files in TAO's places."""
    return _run("deformable_detr", DIRECT, argv)


def _run(program: str, commands: Mapping[str, Command], argv: Sequence[str] | None) -> int:
    arguments = _parse(_parser(program, commands), argv)
    arguments.program = program
    _quiet()
    try:
        guard.check()
        _function(commands[arguments.command].function)(arguments)
    except BrokenPipeError:  # `ddetr space | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        code = exit_code(error)
        if code is None or arguments.debug:
            raise
        for problem in getattr(error, "problems", [str(error)]):
            print(f"error: {problem}", file=sys.stderr)
        return code
    return DONE


def exit_code(error: BaseException) -> int | None:
    """The exit code of a named error; None for one that only a fault of ours can raise."""
    ours = _is_ours(type(error).__module__)
    if isinstance(error, ValueError) and (ours or _is_ours(_origin(error))):
        return WRONG
    return FAILED if ours or isinstance(error, OSError) else None


def _origin(error: BaseException) -> str:
    """The module that raised: a ValueError of ours is for what a user wrote, a library's is a fault of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("hpo", "model", "deploy", "schemas", "search_spaces")


def _parser(program: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Hyperparameter search, training and deployment for Deformable DETR.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage or invalid spec, 130 interrupted",
    )
    every = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        one = every.add_parser(name, help=command.help, description=command.help)
        for argument in command.arguments:
            flags, options = ARGUMENTS[argument]
            one.add_argument(*flags, **options)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=None)  # `deformable_detr` has no --from
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. argparse takes one run of `key=value` only; those after a further flag count as well."""
    arguments, rest = parser.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if strange:
        known = [flag for flags, _ in ARGUMENTS.values() for flag in flags if flag.startswith("--")]
        near = get_close_matches(strange[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _function(name: str) -> Callable[[argparse.Namespace], None]:
    module, _, function = name.partition(":")
    found: Callable[[argparse.Namespace], None] = getattr(importlib.import_module(module), function)
    return found


def _quiet() -> None:
    """Our own lines on standard output as they come; other libraries' only from warnings up; no telemetry."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    for ours in ("hpo", "model", "deploy", "search_spaces", "schemas"):
        logging.getLogger(ours).setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
