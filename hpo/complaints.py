"""What a command says of its error: a paragraph with its class, or JSON; the traceback and a last line for a fault of
ours. Knows errors by their class alone, and imports none of our packages at once: one of them may be the trouble."""

import argparse
import json
import shlex
import sys
import traceback
from types import TracebackType

from hpo.errors import kind_of

REPORT = (
    "this is a fault of ddetr-automl and not of your spec; please report it with the traceback above, the command, the "
    "spec and what `ddetr doctor -e SPEC --json` prints"
)


def tell(error: Exception, arguments: argparse.Namespace, code: int) -> None:
    """On standard error: each problem in a paragraph, or one JSON object where the command was given --json."""
    if arguments.debug:
        traceback.print_exception(error)
    told = problems(error)
    if getattr(arguments, "json", False):
        rows = [{"class": kind, "text": text} for kind, text in told]
        print(json.dumps({"exit_code": code, "errors": rows}), file=sys.stderr)
        return
    for kind, text in told:
        print(f"error ({kind}): {text}", file=sys.stderr)
    training = arguments.command == "train" and getattr(arguments, "program", "") == "ddetr"
    if training and arguments.spec is not None and any(kind == "data" for kind, _ in told):
        from schemas.structure import SECRETS

        file = [] if arguments.overrides_file is None else ["--overrides", str(arguments.overrides_file)]
        open_to_see = [word for word in arguments.overrides if not set(word.partition("=")[0].split("+")) & SECRETS]
        words = shlex.join(["-e", str(arguments.spec), *file, *open_to_see])
        print(f"next: ddetr doctor {words}   # all that is wrong with the data, at once", file=sys.stderr)


def problems(error: Exception) -> list[tuple[str, str]]:
    """(class, paragraph) of each thing that an error complains of."""
    kind, of_data = kind_of(error), getattr(error, "of_data", ())
    return [("data" if text in of_data else kind, text) for text in getattr(error, "problems", [_sentence(error)])]


def _sentence(error: Exception) -> str:
    """What an error says; those of Python and the system say neither rule nor fix."""
    if isinstance(error, ModuleNotFoundError) and type(error) is ModuleNotFoundError:
        return f"the package `{error.name}` is not installed here; pip install ddetr-automl again in this environment."
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"`{error.filename}` cannot be used ({error.strerror}); correct its path, its permissions or its disk."
    if isinstance(error, MemoryError) and not str(error):
        return "the memory of this machine is used up; lower `dataset.workers`, `dataset.batch_size` or image sizes."
    return str(error) or type(error).__name__


def will_end_with(error: Exception, as_json: bool) -> None:
    """The traceback of `error`, which Python is about to print, is followed by a line with its class and what to do."""

    def hook(cls: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(cls, value, trace)
        text = f"{type(error).__name__}: {error}"
        row = {"exit_code": 1, "errors": [{"class": "internal", "text": f"{text}; {REPORT}"}]}
        print(json.dumps(row) if as_json else f"error (internal): {text}\n{REPORT}", file=sys.stderr)

    sys.excepthook = hook
