"""The two commands, through a literal table. Knows arguments and exit codes; each command's work is elsewhere.

`ddetr` decides by policy whether to search; `deformable_detr` is the TAO-compatible spelling, the plain action only.
Exit codes: 0 done, 1 failed, 2 wrong usage or invalid spec, 130 interrupted. A user's mistake is one paragraph without
a traceback, with its class (KINDS of model/errors.py); what nobody foresaw keeps its traceback.
"""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hpo import complaints, guard

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    function: str
    """module:function, called with the parsed arguments; it may return an exit code."""
    help: str
    arguments: Sequence[str]
    """Which of ARGUMENTS it takes."""


SPEC = ("-e", "--experiment_spec_file", "--spec")
ARGUMENTS: Mapping[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "spec": (SPEC, {"required": True, "metavar": "SPEC", "type": Path, "dest": "spec"}),
    "optional spec": (SPEC, {"metavar": "SPEC", "type": Path, "dest": "spec"}),
    "overrides": (("overrides",), {"nargs": "*", "default": [], "metavar": "key=value", "help": "spec keys, dotted"}),
    "overrides-file": (
        ("--overrides",),
        {"metavar": "FILE", "type": Path, "dest": "overrides_file", "help": "JSON or YAML of spec keys, dotted or not"},
    ),
    "request": (("--request",), {"metavar": "TEXT", "help": 'what is wanted, in words: "plain training", "no HPO"'}),
    "no-automl": (("--no-automl",), {"action": "store_true", "help": "train once: automl_policy=off for this run"}),
    "dry-run": (("--dry-run",), {"action": "store_true", "help": "print the launch review, and stop"}),
    "yes": (("--yes", "-y"), {"action": "store_true", "help": "start without asking"}),
    "schema": (("--schema",), {"metavar": "FILE", "type": Path, "help": "any model's *.schema.json in place of ours"}),
    "json": (("--json",), {"action": "store_true", "help": "one JSON document on standard output"}),
    "events": (("--json",), {"action": "store_true", "help": "a JSON object a line for each event, see hpo/events.py"}),
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
    "from": (
        ("--from",),
        {"metavar": "RUN", "dest": "run", "help": "a finished run, RUN/7 for its trial 7, or a folder of results"},
    ),
    "to": (("--to",), {"type": Path, "metavar": "DIR", "help": "write there, not into the run"}),
    "run": (("run",), {"metavar": "RUN", "help": "a run's folder, or its id below runs/"}),
    "compared": (("compared",), {"nargs": "+", "metavar": "RUN", "help": "a run, or RUN/7 for its trial 7; several"}),
    "folder": (
        ("folder",),
        {"nargs": "?", "type": Path, "default": Path("runs"), "metavar": "DIR", "help": "default: runs"},
    ),
    "directory": (("directory",), {"type": Path, "metavar": "DIR", "help": "new, empty, or one that this wrote"}),
    "python": (("--python",), {"type": Path, "metavar": "FILE", "help": "of the environment that trains"}),
    "csv": (("--csv",), {"action": "store_true", "help": "comma-separated values on standard output"}),
    "shell": (("shell",), {"choices": ("bash", "zsh"), "help": "of which shell"}),
    "dataset": (("dataset",), {"choices": ("digits",)}),
    "out": (("--out",), {"required": True, "type": Path, "metavar": "DIR"}),
    "classes": (("--classes",), {"choices": ("one", "ten"), "default": "one"}),
    "size": (("--size",), {"type": int, "default": 96, "help": "side of the pictures, pixels"}),
    "images": (("--images",), {"type": int, "default": 600, "help": "training pictures"}),
    "seed": (("--seed",), {"type": int, "default": 0}),
}
OVERRIDES = ("overrides-file", "overrides")
ACTION = ("optional spec", "from", *OVERRIDES)
LAUNCH = ("request", "no-automl", "dry-run", "yes", "events")
"""How a training is begun."""
SPACE = ("tier", "params", "range", "fix", "exclude")
"""What is searched. These and SEARCH are written into the `automl:` block (FLAGS of hpo/spec.py)."""
SEARCH = ("trials", "hours", "searcher", "scheduler", "algorithm", "seed-from")
"""How it is searched."""
DDETR: Mapping[str, Command] = {
    "train": Command(
        "hpo.launch:train",
        "search and train, or train once, by automl_policy",
        ("optional spec", "from", *LAUNCH, *SPACE, *SEARCH, "ray-address", *OVERRIDES),
    ),
    "resume": Command(
        "hpo.launch:resume",
        "go on with a search after any interruption",
        ("run", "add-trials", "events", "ray-address"),
    ),
    "stop": Command("hpo.launch:stop", "end a search early and keep the best", ("run", "events")),
    "report": Command("hpo.reporting.report:report", "write a run's report.html and report.md anew", ("run", "to")),
    "doctor": Command(
        "hpo.doctor:doctor",
        "check spec, hardware, data, memory, Ray, tracking and disk, and say what to change",
        ("spec", "json", "ray-address", *OVERRIDES),
    ),
    "space": Command(
        "hpo.show_space:space",
        "what is searched, what is not, and why; of any model by its schema",
        ("optional spec", "schema", "json", *SPACE, *OVERRIDES),
    ),
    "explain": Command(
        "hpo.explain:explain",
        "what a key does, and why it is or is not searched",
        ("key", "optional spec", "schema", *OVERRIDES),
    ),
    "runs": Command("hpo.list_runs:list_runs", "list the runs of a results folder", ("folder", "json")),
    "compare": Command(
        "hpo.compare:compare", "trials side by side: what differs, metric, cost", ("compared", "json", "csv")
    ),
    "evaluate": Command("hpo.actions:evaluate", "score a checkpoint or an ONNX file on the test data", ACTION),
    "inference": Command("hpo.actions:inference", "label and draw images", ACTION),
    "export": Command("hpo.actions:export", "checkpoint to ONNX", ACTION),
    "gen_trt_engine": Command("hpo.actions:gen_trt_engine", "ONNX to a TensorRT engine", ACTION),
    "quantize": Command("hpo.actions:quantize", "a checkpoint's weights, or an ONNX file, in eight bits", ACTION),
    "skill": Command(
        "hpo.skill:skill",
        "write a folder from which TAO's AutoML runner searches with our trainer",
        ("directory", "python"),
    ),
    "make-data": Command(
        "hpo.launch:make_data",
        "write a sample COCO set of real scanned digits",
        ("dataset", "out", "classes", "size", "images", "seed"),
    ),
    "completion": Command("hpo.completion:completion", "print a script that completes commands and flags", ("shell",)),
}
GROUPS: Mapping[str, Sequence[str]] = {
    "search and train": ("train", "resume", "stop"),
    "look at results": ("runs", "compare", "report", "evaluate", "inference"),
    "deploy": ("export", "gen_trt_engine", "quantize"),
    "help": ("space", "explain", "doctor", "make-data", "completion"),
    "beside TAO": ("skill",),
}
"""How the commands are listed."""
EXAMPLE = """\
first, on sample data:
  ddetr make-data digits --out data/digits
  ddetr train -e experiments/quickstart.yaml --dry-run
"""
DIRECT: Mapping[str, Command] = {
    "train": Command("hpo.actions:train", "train once", ("spec", "from", *OVERRIDES)),
    **{
        name: DDETR[name]._replace(arguments=("spec", "from", *OVERRIDES))
        for name in ("evaluate", "inference", "export", "gen_trt_engine", "quantize")
    },
    "default_specs": Command(
        "hpo.default_specs:default_specs",
        "write results_dir/experiment.yaml: every key with its default; action=NAME for those of one action",
        ("optional spec", *OVERRIDES),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`ddetr`."""
    return _run("ddetr", DDETR, argv)


def direct(argv: Sequence[str] | None = None) -> int:
    """`deformable_detr`: no policy, no run folder, TAO's files in TAO's places."""
    return _run("deformable_detr", DIRECT, argv)


def _run(program: str, commands: Mapping[str, Command], argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parse(make_parser(program, commands), commands, words)
    arguments.program, arguments.words = program, words
    _quiet()
    try:
        guard.check()
        with ExitStack() as around:
            if "events" in commands[arguments.command].arguments and arguments.json:
                from hpo import events

                around.enter_context(events.on_stdout())
            from hpo import screen

            around.enter_context(screen.working())
            code = _function(commands[arguments.command].function)(arguments)
    except BrokenPipeError:  # `ddetr space | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        foreseen = exit_code(error)
        if foreseen is None:
            complaints.will_end_with(error, getattr(arguments, "json", False))
            raise
        complaints.tell(error, arguments, foreseen)
        return foreseen
    return DONE if code is None else code


def exit_code(error: BaseException) -> int | None:
    """The exit code of a named error; None for one that only a fault of ours can raise."""
    ours = _is_ours(type(error).__module__)
    if isinstance(error, ValueError) and (ours or _is_ours(_origin(error))):
        return WRONG
    if isinstance(error, ModuleNotFoundError) and not _is_ours(error.name or "hpo"):
        return FAILED
    return FAILED if ours or isinstance(error, OSError | MemoryError) else None


def _origin(error: BaseException) -> str:
    """The module that raised: a ValueError of ours is for what a user wrote, a library's is a fault of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("hpo", "model", "deploy", "schemas", "search_spaces")


class _Parser(argparse.ArgumentParser):
    """Whose errors have the form of all others."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(WRONG, f"error (usage): {message}\n`{self.prog} --help` shows what there is\n")


class _Version(argparse.Action):
    """Reads the package's metadata only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('ddetr-automl')}")
        parser.exit()


class _Top(_Parser):
    """Lists commands in groups, a line each."""

    commands: Mapping[str, Command]

    def format_help(self) -> str:
        parts = [f"usage: {self.prog} COMMAND ...\n\n{self.description}\n"]
        grouped = {name for names in GROUPS.values() for name in names}
        groups = {**GROUPS, "more": [name for name in self.commands if name not in grouped]}
        for title, names in groups.items():
            lines = [f"  {name:15s} {self.commands[name].help}\n" for name in names if name in self.commands]
            if lines:
                parts.append(f"{title}:\n{''.join(lines)}")
        if self.prog == "ddetr":
            parts.append(EXAMPLE)
        parts.append(f"{self.prog} COMMAND --help explains a command; {self.prog} --version names the version\n")
        return "\n".join([*parts, f"{self.epilog}\n"])


def make_parser(program: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = _Top(
        prog=program,
        description="Hyperparameter search, training and deployment for Deformable DETR.",
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage or invalid spec, 130 interrupted",
    )
    parser.commands = commands
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    every = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command in commands.items():
        one = every.add_parser(name, help=command.help, description=command.help)
        for argument in command.arguments:
            flags, options = ARGUMENTS[argument]
            one.add_argument(*flags, **options)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=None, overrides_file=None)  # not every command has them
    return parser


def _parse(
    parser: argparse.ArgumentParser, commands: Mapping[str, Command], words: Sequence[str]
) -> argparse.Namespace:
    """The parsed arguments. argparse takes one run of `key=value` only; those after a further flag count as well."""
    if not words:
        parser.print_help()
        parser.exit(WRONG)
    if not words[0].startswith("-") and words[0] not in commands:
        likely = get_close_matches(words[0], commands, n=1)
        hint = f"did you mean `{likely[0]}`?" if likely else f"there are {', '.join(commands)}."
        parser.error(f"unknown command `{words[0]}`; {hint}")
    arguments, rest = parser.parse_known_args(words)
    strange = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if strange:
        known = [flag for flags, _ in ARGUMENTS.values() for flag in flags if flag.startswith("--")]
        near = get_close_matches(strange[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _function(name: str) -> Callable[[argparse.Namespace], int | None]:
    module, _, function = name.partition(":")
    found: Callable[[argparse.Namespace], int | None] = getattr(importlib.import_module(module), function)
    return found


def _quiet() -> None:
    """No telemetry, and no warnings that libraries mean for those who write them."""
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # as many as the trial's cores allow
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
