"""No file that somebody else wrote may crash a command: what cannot be read ends in a named error, in bounded time, and
leaves nothing outside of its folder.

    python tests/fuzz/test_parsers.py [--cases 10000] [--only NAME ...]

tries as many cases of each parser as it is told, and prints what was refused by which error.
"""

import argparse
import collections
import logging
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import HypothesisException

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hpo.cli import exit_code
from tests.fuzz.parsers import PARSERS

CASES = 60
"""Of each parser, in a test run."""
LENIENT = {"audit", "label map"}
"""The first returns what it finds; the second takes any text."""
SECONDS = 10.0
"""That one file may take; it takes milliseconds."""


def attempt(name: str, content: bytes, outside: Path) -> str:
    """How it ended: `read`, or the name of the error. Raises AssertionError for what must not happen."""
    folder = outside / "own"
    folder.mkdir()
    begun, ended = time.monotonic(), "read"
    error: Exception | None = None
    try:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("DDETR_CACHE", str(folder / "cache"))
            warnings.simplefilter("ignore")
            PARSERS[name].read(content, folder)
    except Exception as raised:
        if exit_code(raised) is None:
            raise AssertionError(f"{name}: {type(raised).__name__}: {raised}") from raised
        error, ended = raised, type(raised).__name__
    assert error is None or str(error).strip(), f"{name}: {ended} says nothing"
    taken = time.monotonic() - begun
    assert taken < SECONDS, f"{name}: {taken:.1f} s for {len(content)} bytes"
    assert [each.name for each in outside.iterdir()] == ["own"], f"{name}: written outside of its folder"
    shutil.rmtree(folder)
    return ended


def attempts(name: str, cases: int, **how: Any) -> collections.Counter[str]:
    """Ends of so many files, and how often each was met."""
    ends = collections.Counter[str]()

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), **how)
    @given(PARSERS[name].content())
    def run(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ends[attempt(name, content, Path(folder))] += 1

    run()
    return ends


@pytest.mark.parametrize("name", PARSERS)
def test_whatever_the_file_the_error_is_named(name: str) -> None:
    ends = attempts(name, CASES, derandomize=True)
    assert ends["read"], "the unchanged file can be read"
    assert len(ends) > 1 or name in LENIENT, "some change is noticed"


def main(cases: int, only: list[str]) -> None:
    logging.disable(logging.WARNING)
    total, failed = 0, []
    for name in only or PARSERS:
        begun = time.monotonic()
        try:
            ends = attempts(name, cases, report_multiple_bugs=False)
        except (AssertionError, HypothesisException) as error:  # the second: of its own making, or an unsteady parser
            failed.append(name)
            print(f"{name}: FAILED: {error}", *getattr(error, "__notes__", ()), sep="\n", flush=True)
            continue
        total += sum(ends.values())
        told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
        print(f"{name}: {sum(ends.values())} cases in {time.monotonic() - begun:.0f} s: {told}", flush=True)
    print(f"{total} cases; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=[], choices=tuple(PARSERS))
    arguments = parser.parse_args()
    main(arguments.cases, arguments.only)
