"""Where the commands of `ddetr` print: one console for them all. Knows no command."""

import sys

from rich.console import Console

# Without a terminal rich assumes 80 columns, in which the tables of a log break.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def say(line: str) -> None:
    """A line as it stands: square brackets in it are no markup."""
    out.print(line, markup=False)
