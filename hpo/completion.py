"""`ddetr completion SHELL`: a script for bash or zsh, made from the parser. Knows which argument names what file.

For bash into ~/.local/share/bash-completion/completions/ddetr, for zsh as _ddetr into a folder of its fpath.
"""

import argparse
from collections.abc import Iterator

PREAMBLE = {
    "bash": """
_ddetr_specs() { compgen -f -X '!*.yaml' -- "$1"; compgen -f -X '!*.yml' -- "$1"; compgen -d -S / -- "$1"; }
_ddetr_runs() { compgen -W "$(ls runs 2>/dev/null)" -- "$1"; compgen -d -- "$1"; }
""",
    "zsh": """
_ddetr_runs() { local -a found; found=(runs/*(/N:t)); compadd -a found; _files -/; }
""",
}
SPECS = {"bash": "_ddetr_specs", "zsh": "_files -g '*.(yaml|yml)'"}
RUNS = {"bash": "_ddetr_runs", "zsh": "_ddetr_runs"}


def completion(arguments: argparse.Namespace) -> None:
    """Prints the script, and nothing else."""
    print(script(arguments.shell))


def script(shell: str) -> str:
    import shtab

    from hpo import algorithms, cli, schedulers, searchers
    from search_spaces.derive import TIERS

    parser = cli.make_parser("ddetr", cli.DDETR)
    allowed = {
        "tier": TIERS,
        "searcher": (searchers.AUTO, *searchers.SEARCHERS),
        "scheduler": tuple(schedulers.SCHEDULERS),
        "algorithm": tuple(algorithms.ALGORITHMS),
    }
    for action in _actions(parser):
        if action.dest in allowed:
            # For the script alone: the spec's reader names a wrong value better than argparse does.
            action.choices = list(allowed[action.dest])
        elif action.dest == "spec":
            action.complete = SPECS  # type: ignore[attr-defined]
        elif action.dest in ("run", "seed_from"):
            action.complete = RUNS  # type: ignore[attr-defined]
        elif action.dest in ("schema", "python", "overrides_file"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in ("out", "directory"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    found: str = shtab.complete(parser, shell, preamble=PREAMBLE)  # type: ignore[arg-type]
    return found


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in set(action.choices.values()):
                yield from _actions(each)
