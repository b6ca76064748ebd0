"""`ddetr doctor`: everything that could spoil a run, looked at before it costs anything. The order, and the printing.

What is cheap comes first, and each finding is printed as it comes. One check's problem stops no other that can still
run. What is looked at, and when it is bad, is in hpo/check_*.py and model/data/audit.py.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rich.text import Text

from hpo.screen import out, say
from hpo.spec import Request, absent_weights, read_request, salvage
from model.errors import Kind, SpecError
from model.findings import Finding, of_error

STYLES: Mapping[str, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
USUAL: Mapping[str, Kind] = {
    "spec": "spec", "hardware": "cluster", "TensorRT": "install", "tracking": "tracking", "disk": "disk",
    "data": "data", "memory": "memory", "Ray": "cluster",
}  # fmt: skip
"""The class of most findings of a check, which goes without saying."""
_PLACE = re.compile(r"(.+?) \(([^()]+:\d+|on the command line|--[^()]+)\)", re.DOTALL)
"""A problem of hpo.spec and the place that it was written in."""


class Visit:
    """One call of the doctor: what is known so far, and what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.found: list[tuple[str, Finding]] = []
        self.spec_problems: list[str] = []
        self.readable = True
        """Whether there is a spec at all, and so data to look at."""
        self.request = self._request()

    def _request(self) -> Request:
        given = self.arguments
        try:
            return read_request(given.spec, given.overrides, flags=vars(given))
        except SpecError as error:
            self.spec_problems = error.problems
        try:
            return salvage(given.spec, given.overrides, vars(given))
        except SpecError:
            self.readable = False
            return salvage(None)

    def has_problem(self, *checks: str) -> bool:
        return any(finding.level == "problem" for check, finding in self.found if check in checks)

    @property
    def exit_code(self) -> int:
        if any(check == "spec" and finding.level == "problem" for check, finding in self.found):
            return 2
        return 1 if any(finding.level == "problem" for _, finding in self.found) else 0

    def counts(self) -> Counter[str]:
        return Counter(finding.level for _, finding in self.found)

    def next(self) -> str:
        file = [] if self.arguments.overrides_file is None else ["--overrides", str(self.arguments.overrides_file)]
        words = shlex.join(["-e", str(self.arguments.spec), *file, *self.arguments.overrides])
        if self.exit_code:
            number = self.counts()["problem"]
            return f"mend the {number} problems and look again: ddetr doctor {words}".replace("the 1 problems", "it")
        return f"ddetr train {words} --dry-run"


def doctor(arguments: argparse.Namespace) -> int:
    """Prints what every check finds. Returns 2 for a wrong spec, 1 for any other problem, else 0."""
    if arguments.ray_address is not None:
        os.environ["RAY_ADDRESS"] = arguments.ray_address
    if not arguments.json:
        out.print(f"looking at {arguments.spec}")
        visit = _visit(arguments, _print)
        counts = visit.counts()
        told = [
            f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("problem", "warning", "note")
        ]
        say(", ".join(told))
        say(f"next: {visit.next()}")
        return visit.exit_code
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the document's
        visit = _visit(arguments, lambda check, findings: list(findings))
    print(json.dumps(_document(visit), indent=2))
    return visit.exit_code


def _visit(arguments: argparse.Namespace, told: Callable[[str, Iterable[Finding]], list[Finding]]) -> Visit:
    visit = Visit(arguments)
    for check, look in CHECKS.items():
        visit.found += [(check, finding) for finding in told(check, _without_end(look, visit))]
    return visit


def _without_end(look: Callable[[Visit], Iterator[Finding]], visit: Visit) -> Iterator[Finding]:
    """What a check finds; a file that cannot be used ends this check, and no other."""
    try:
        yield from look(visit)
    except OSError as error:
        what = f"`{error.filename}`" if error.filename is not None else "a file"
        yield Finding(
            "disk", "problem", f"{what} cannot be used ({error.strerror or error}), and the rest is not looked at",
            "correct its path, its permissions or its disk",
        )  # fmt: skip


def _print(check: str, findings: Iterable[Finding]) -> list[Finding]:
    out.print(f"\n{check}")
    kept = []
    for finding in findings:
        kind = "" if finding.kind == USUAL[check] or finding.level == "ok" else f" ({finding.kind})"
        level = f"{finding.level}{kind}"
        out.print(Text.assemble("  ", (f"{level:8}", STYLES[finding.level]), f" {finding.seen}"))
        if finding.change:
            say(f"           -> {finding.change}")
        kept.append(finding)
    return kept


def _document(visit: Visit) -> dict[str, Any]:
    counts = visit.counts()
    return {
        "spec": str(visit.arguments.spec),
        "findings": [{"check": check, **finding.document()} for check, finding in visit.found],
        "counts": {level: counts[level] for level in STYLES},
        "exit_code": visit.exit_code,
        "next": visit.next(),
    }


def _spec(visit: Visit) -> Iterator[Finding]:
    for problem in visit.spec_problems:
        yield _of_spec(problem)
    if not visit.readable:
        return
    from hpo import policy
    from hpo.ending import wanted_of

    request = visit.request
    checks: list[Callable[[], object]] = [
        lambda: wanted_of(request.sections).check(len(request.sweep.objectives)),
    ]  # fmt: skip
    if not visit.spec_problems:
        decision = policy.resolve(request.policy, request.action)
        yield Finding("spec", "ok", f"{visit.arguments.spec} can be read; {decision.because}")
        if decision.run_hpo:
            checks += [lambda: policy.require_metric(request.spec.dataset.has_validation), request.space]
    for each in checks:
        try:
            each()
        except ValueError as error:
            for problem in getattr(error, "problems", [str(error)]):
                yield _of_spec(problem)
    for line in request.notices():
        yield Finding("spec", "note", line, "take the keys out, or leave them: they change nothing")
    yield from map(_of_spec, absent_weights(request.spec))


def _of_spec(problem: str) -> Finding:
    found = _PLACE.fullmatch(problem)
    body, place = found.groups() if found else (problem, None)
    finding = of_error("spec", body)
    return finding._replace(seen=f"{finding.seen} ({place})") if place else finding


def _hardware(visit: Visit) -> Iterator[Finding]:
    from hpo.check_machine import hardware

    return hardware(visit.request.spec, visit.request.sweep)


def _tensorrt(visit: Visit) -> Iterator[Finding]:
    from hpo.check_machine import tensorrt

    return tensorrt()


def _tracking(visit: Visit) -> Iterator[Finding]:
    from hpo.check_services import tracking
    from hpo.runs import results_root

    return tracking(results_root(visit.request.spec))


def _disk(visit: Visit) -> Iterator[Finding]:
    from hpo.check_machine import disk
    from hpo.policy import resolve
    from hpo.runs import results_root

    request = visit.request
    searches = request.policy != "off" and resolve("auto", "train").run_hpo
    sweep = request.sweep if searches else None
    return disk(request.spec, sweep, results_root(request.spec), network=not visit.has_problem("spec"))


def _data(visit: Visit) -> Iterator[Finding]:
    if not visit.readable:
        yield _skipped("data", "there is no spec to name any", "correct the spec first")
        return
    from model.data.audit import audit

    spec = visit.request.spec
    yield from audit(spec, spec.dataset.num_classes if visit.request.states_num_classes else None)


def _memory(visit: Visit) -> Iterator[Finding]:
    if visit.has_problem("spec", "data"):
        yield _skipped("memory", "no step of training was tried", "mend the problems above, which would stop it")
        return
    from hpo.check_machine import memory

    yield from memory(visit.request)


def _ray(visit: Visit) -> Iterator[Finding]:
    from hpo.check_services import ray
    from hpo.runs import results_root

    return ray(visit.request.spec, visit.request.sweep, results_root(visit.request.spec))


def _skipped(kind: Kind, why: str, change: str) -> Finding:
    return Finding(kind, "note", f"not looked at: {why}", change)


CHECKS: Mapping[str, Callable[[Visit], Iterator[Finding]]] = {
    "spec": _spec,
    "hardware": _hardware,
    "TensorRT": _tensorrt,
    "tracking": _tracking,
    "disk": _disk,
    "data": _data,
    "memory": _memory,
    "Ray": _ray,
}
"""In the order in which they run."""
