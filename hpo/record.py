"""What a direct action leaves in its folder whatever becomes of it: a status.json that ends, and experiment.yaml.

Knows where results go; knows nothing of what an action does.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.files import write_spec
from hpo.overrides import read_document
from hpo.spec import Request, absolute
from model.errors import SpecError
from model.interrupt import terminable
from model.status import StatusLog
from schemas import dotted
from schemas.structure import unstructure

Action = Callable[[argparse.Namespace], None]


def recorded(work: Action) -> Action:
    """The action of `work`'s name, whose every error is the last line of status.json as soon as its folder is known."""

    @functools.wraps(work)
    def run(arguments: argparse.Namespace) -> None:
        with _ending(arguments, work.__name__), terminable():
            work(arguments)

    return run


@contextlib.contextmanager
def _ending(arguments: argparse.Namespace, action: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # recorded and passed on
        folder = getattr(arguments, "results", None) or _likely(arguments, action)
        if folder is not None:
            with contextlib.suppress(OSError, ValueError):  # the folder itself may be the trouble, or what is in it
                StatusLog(folder).fail(action, error)
        raise


def _likely(arguments: argparse.Namespace, action: str) -> Path | None:
    """The results folder by what can be read of a request that is wrong."""
    words = [word for word in arguments.overrides if "results_dir=" in word]
    for spec, overrides, flags in ((arguments.spec, arguments.overrides, vars(arguments)), (None, words, {})):
        try:
            return folder_of(absolute(read_document(spec, overrides, flags).data), action)
        except SpecError:
            continue
    return None


def folder_of(given: Mapping[str, Any], action: str, name: str = "") -> Path | None:
    """`<action>.results_dir`, else `<results_dir>/<name>`; None where neither is set. name: the action's where it is
    left out."""
    section, root = dotted.get(given, f"{action}.results_dir"), given.get("results_dir")
    if section and isinstance(section, str):
        return Path(section).resolve()
    return Path(root).resolve() / (name or action) if root and isinstance(root, str) else None


def write_experiment(request: Request, folder: Path) -> None:
    """experiment.yaml: the spec that was read, with overrides and what an earlier job gave, the secret masked. A key
    that is not there is the model's own, or has its default."""
    own = request.sections.get(request.action)
    whole = dict(request.raw) if own is None else {**request.raw, request.action: unstructure(own)}
    write_spec(whole, folder / "experiment.yaml")
