"""`ddetr space`: a search space as tables, or as one JSON document, with the lint of its schema.

Of our own detector by its spec, or of any model by a schema file in TAO's dialect. Derives nothing itself.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo import screen
from hpo.overrides import BLOCK, POLICY, read_document
from hpo.spec import choice_problems, fixed_places, place, read_request, read_sweep
from model.errors import SpecError
from schemas import dotted, packaged, validate
from schemas.dialect import Finding, Schema, read_schema
from search_spaces import overlays
from search_spaces.derive import Choice, derive
from search_spaces.lint import lint
from search_spaces.space import Parameter, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A space and what it was derived from."""

    schema: Schema
    spec: Mapping[str, Any]
    """The effective spec, nested."""
    space: SearchSpace
    facts: Mapping[str, float]
    """What is known of the training data."""
    remarks: Sequence[str] = ()

    def findings(self) -> list[Finding]:
        return lint(self.schema, self.space, self.spec)


def space(arguments: argparse.Namespace) -> None:
    """Prints the derived space, whatever the policy."""
    subject = read_subject(arguments)
    if arguments.json:
        # Standard output, and nothing else on it: a program reads this.
        print(json.dumps(document(subject), indent=2, allow_nan=False))
        return
    for line in subject.remarks:
        screen.say(line)
    print_space(subject.space, screen.out)
    if arguments.schema is not None:
        print_findings(subject.findings(), screen.out)
        screen.next_step(arguments, "explain", "KEY", "--schema", arguments.schema)
    elif arguments.spec is None:
        screen.next_step(arguments, "space", "-e", "SPEC")
    else:
        screen.next_step(arguments, "train", *arguments.words[1:], "--dry-run")


def read_subject(arguments: argparse.Namespace) -> Subject:
    """What `-e SPEC`, `--schema FILE` and the flags of a command name. SpecError for what is wrong with them."""
    if arguments.schema is None:
        return _ours(arguments)
    return _foreign(arguments)


def _ours(arguments: argparse.Namespace) -> Subject:
    """Our detector's space; of the defaults where there is no spec."""
    request = read_request(arguments.spec, arguments.overrides, flags=vars(arguments))
    remarks: list[str] = list(request.notices())
    if arguments.spec is None:
        remarks.append("of the packaged defaults; `-e SPEC` derives the space of a spec and its data")
    else:
        try:
            request = request.with_data()
        except ValueError as error:
            remarks.append(f"derived without the training data: {error}")
    return Subject(
        schema=packaged.schema("train"),
        spec=request.spec.to_dict(),
        space=request.space(),
        facts=request.facts,
        remarks=remarks,
    )


def _foreign(arguments: argparse.Namespace) -> Subject:
    """The space of any model's schema."""
    schema = read_schema_file(arguments.schema)
    written = read_document(arguments.spec, arguments.overrides, vars(arguments))
    spec = {key: value for key, value in written.data.items() if key not in (POLICY, BLOCK)}
    block = written.data.get(BLOCK)
    problems: list[str] = []
    sweep = read_sweep(block, schema, problems)
    for name, value in sweep.fix.items():
        spec = dotted.put(spec, name, value)
    written = replace(written, origins={**written.origins, **fixed_places(block, sweep, written)})
    problems += [problem.text for problem in validate.check(spec, {"train": schema})]
    network = str(schema.origin.get("network_arch", ""))
    overlay = overlays.overlay(network) if network != overlays.COMMON else None

    def attempt(wish: Choice) -> SearchSpace:
        return derive(schema, spec, overlay, wish)

    problems = [place(problem, written) for problem in problems] + choice_problems(sweep.choice(), written, attempt)
    if problems:
        raise SpecError(problems)
    model = schema.origin.get("model") or arguments.schema.name
    known = f"search_spaces/{network}.yaml says more of it" if overlay else "no overlay of ours knows it"
    return Subject(
        schema=schema,
        spec=dotted.merge(schema.default, spec),
        space=attempt(sweep.choice()),
        facts={},
        remarks=[f"{model}: {len(schema.leaves)} keys; {known}"],
    )


def read_schema_file(path: Path) -> Schema:
    """SpecError for a file that is missing, no JSON, no JSON object, or one without keys."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise SpecError([f"the schema file {path} cannot be read: {reason}; name a *.schema.json file."]) from None
    schema = read_schema(given) if isinstance(given, dict) else None
    if schema is None or not (schema.leaves or "properties" in given):
        kind = "an object without them" if schema else f"a {type(given).__name__}"
        raise SpecError([
            f"a schema is a JSON object with `properties`, but {path} holds {kind}; name a *.schema.json file."
        ])  # fmt: skip
    return schema


def document(subject: Subject) -> dict[str, Any]:
    """The space as strict JSON: what `space.json` of a run holds, the data, and the findings."""
    plain = {
        "schema": dict(subject.schema.origin),
        **subject.space.to_dict(),
        "data": dict(subject.facts),
        "remarks": list(subject.remarks),
        "findings": [finding._asdict() for finding in subject.findings()],
    }
    found = _finite(plain)
    assert isinstance(found, dict)
    return found


def _finite(value: Any) -> Any:
    """JSON knows no infinity: it becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_space(space: SearchSpace, console: Console) -> None:
    title = f"searched ({space.tier}): {len(space.parameters)} parameters"
    searched = Table(title=title, title_justify="left")
    for heading in ("name", "type", "scale", "range", "default", "origin"):
        searched.add_column(heading, overflow="fold")
    for parameter in space.parameters:
        scale = "" if parameter.kind == "categorical" else parameter.scale
        row = (
            parameter.name,
            parameter.kind,
            scale,
            range_text(parameter),
            short(parameter.default),
            parameter.origin,
        )
        searched.add_row(*map(Text, row))
    console.print(searched if space.parameters else title)
    left_out = Table(title="left out", title_justify="left")
    left_out.add_column("name", overflow="fold")
    left_out.add_column("because", overflow="fold")
    for name, because in space.dropped:
        left_out.add_row(Text(name), Text(because))
    if space.dropped:
        console.print(left_out)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """A lint, its kinds together; silence is said, too."""
    if not findings:
        console.print("lint: nothing to report")
        return
    console.print(f"lint: {len(findings)} findings")
    for kind, group in groupby(findings, key=lambda each: each.kind):
        console.print(f"  {kind}")
        for each in group:
            console.print(f"    {each.name}: {each.text}", markup=False)


def range_text(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return ", ".join(map(str, parameter.choices))
    step = f" by {parameter.step}" if parameter.step > 1 else ""
    return f"{short(parameter.low)} to {short(parameter.high)}{step}"


def short(value: Any) -> str:
    # The smallest number above 0 is how an open bound is kept.
    return ">0" if value == 5e-324 else f"{value:.4g}" if isinstance(value, float) else str(value)
