"""Writes the report of a run: facts in, `report.html` and `report.md` out. `ddetr report` and the end of a run call it.

A report is made of the run folder alone, so it can be made again at any time, of a run in any state.
"""

import argparse
import time
from pathlib import Path

from hpo.errors import InUseError
from hpo.reporting import detector, search
from hpo.reporting.blocks import Page, Section
from hpo.reporting.facts import Facts, read_facts
from hpo.reporting.verdict import verdict
from model.whole import write_text

HTML, MARKDOWN = "report.html", "report.md"


def write_report(run_dir: Path, *, live_since: float | None = None, folder: Path | None = None) -> Path:
    """Writes both files into `folder` (None: the run's), whole or not at all, and returns the HTML file's path.
    `live_since`: of a run that goes on; the page then reloads itself. RunError for a folder without a run."""
    from hpo.reporting.markdown import markdown
    from hpo.reporting.page import html

    folder = folder or run_dir
    page = page_of(read_facts(run_dir), live_since=live_since)
    for name, text in ((MARKDOWN, markdown(page, folder)), (HTML, html(page))):
        write_text(text, folder / name)
    return folder / HTML


def page_of(facts: Facts, *, live_since: float | None = None) -> Page:
    live = live_since is not None
    steps = detector.next_steps(facts, live=live)
    if facts.plain:
        found = [
            verdict(facts), search.curves(facts), detector.classes(facts), detector.images(facts),
            detector.files(facts), search.spent(facts), steps,
        ]  # fmt: skip
    else:
        found = [
            verdict(facts), search.leaderboard(facts), search.curves(facts), search.parameters(facts),
            search.costs(facts), detector.classes(facts), detector.images(facts), detector.files(facts),
            search.failures(facts), search.workers(facts), search.spent(facts), search.space(facts), steps,
        ]  # fmt: skip
    sections: list[Section] = [section for section in found if section is not None]
    return Page(
        title=facts.run_dir.name, facts=_facts(facts), sections=sections, written=time.time(), live_since=live_since
    )


def _facts(facts: Facts) -> str:
    if facts.plain:
        return f"plain training of {facts.epochs} epochs, seed {facts.result.seed}"
    parts = [f"search of {facts.result.budget} trials with {facts.epochs} epochs each"]
    parts += [f"{name} {facts.sweep[name]}" for name in ("searcher", "scheduler") if facts.sweep.get(name)]
    return ", ".join([*parts, f"seed {facts.result.seed}"])


def report(arguments: argparse.Namespace) -> None:
    """The command: writes the report anew; of a run that goes on, a live one."""
    from hpo import runs
    from hpo.screen import out

    run = runs.find_run(arguments.run)
    path = write_report(run, live_since=time.time() if _at_work(run) else None, folder=arguments.to)
    out.print(f"wrote {path} and {MARKDOWN} beside it")
    out.print("next: open it in a browser; it is one file and loads nothing from elsewhere")


def _at_work(run: Path) -> bool:
    """Whether a driver holds the run."""
    from hpo.locks import exclusive

    if not (run / ".lock").exists():
        return False
    try:
        with exclusive(run / ".lock"):
            return False
    except InUseError:
        return True
