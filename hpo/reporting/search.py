"""The parts of a report that tell of the search: trials, parameters, costs, failures, workers, the space."""

from collections import defaultdict
from collections.abc import Iterable

from hpo.faults import cause_of
from hpo.reporting import plots
from hpo.reporting.blocks import Block, Figure, Folded, Section, Table, Text
from hpo.reporting.facts import Facts
from hpo.reporting.names import minus, short_names, value_text
from hpo.reporting.parallel import parallel
from hpo.reporting.timeline import timeline
from hpo.result import Outcome, TrialRecord
from hpo.review import clock
from hpo.show_space import range_text

FAILED = (Outcome.INFEASIBLE, Outcome.FAILED, Outcome.LOST)
SHOWN = 10
"""Rows of the leaderboard; the rest is folded."""
WORDS = frozenset(("trial", "outcome", "note", "cause", "key", "because", "parameter", "scale", "range", "trials"))


def leaderboard(facts: Facts) -> Section | None:
    rows = facts.result.table()
    if not rows:
        return Section("trials", "Trials", [Text("No trial has begun.")])
    trials = {trial.number: trial for trial in facts.result.trials}
    params = list(dict.fromkeys(name for trial in trials.values() for name in trial.params))
    names = short_names(params)
    first = [column for column in rows[0] if column != "note"]
    last = ["note"] if any(row["note"] for row in rows) else []
    cells = []
    for row in rows:
        own = trials[int(row["trial"].split()[0])].params
        known = {**row, "to default": minus(row["to default"])}
        values = [value_text(own.get(name)) for name in params]
        cells.append([*(known[column] for column in first), *values, *(known[column] for column in last)])
    columns = [*first, *(names[name] for name in params), *last]
    blocks: list[Block] = [_board(facts, columns, cells[:SHOWN])]
    if len(cells) > SHOWN:
        blocks.append(Folded(f"{len(cells) - SHOWN} more trials", [_board(facts, columns, cells[SHOWN:])]))
    again = len(facts.result.repeats)
    if again:
        blocks.append(Text(f"{again} further trainings repeat some of these with other seeds.", "quiet"))
    return Section("trials", "Trials", blocks)


def _board(facts: Facts, columns: list[str], cells: list[list[str]]) -> Table:
    marked = {}
    for place, row in enumerate(cells):
        if facts.winner is not None and row[0].split()[0] == str(facts.winner.number):
            marked[place] = "best"
        elif row[0].endswith("(default)"):
            marked[place] = "default"
    return Table(columns=columns, rows=cells, words=WORDS, marked=marked)  # type: ignore[arg-type]


def curves(facts: Facts) -> Section | None:
    found = [plots.learning_curves(facts), plots.losses(facts) if facts.plain else None]
    return _section("curves", "Learning curves", found)


def parameters(facts: Facts) -> Section | None:
    blocks: list[Block] = [figure for figure in [parallel(facts)] if figure is not None]
    if facts.importance is not None:
        figure = plots.importances(facts.importance)
        if figure is not None:
            blocks.append(figure)
        elif facts.importance.why_not is not None:
            blocks.append(Text(facts.importance.why_not))
    edge = _at_an_edge(facts)
    if edge:
        blocks.append(Text(edge))
    return Section("parameters", "Parameters", blocks) if blocks else None


def _at_an_edge(facts: Facts) -> str | None:
    """Where the winner stands at the end of a range, which may go on beyond it."""
    if facts.space is None or facts.winner is None or facts.winner.baseline:
        return None
    found = []
    for parameter in facts.space.parameters:
        ends = (parameter.low, parameter.high)
        if parameter.kind != "categorical" and facts.winner.sample.get(parameter.name) in ends:
            found.append(f"{parameter.name} ({range_text(parameter)})")
    if not found:
        return None
    return f"The best trial stands at the end of the range of {', '.join(found)}: --range KEY=LOW:HIGH widens it."


def costs(facts: Facts) -> Section | None:
    return _section("costs", "Accuracy and cost", plots.trade_offs(facts))


def failures(facts: Facts) -> Section | None:
    """Trials that did not end by themselves, by what they died of."""
    groups: dict[tuple[str, str], list[TrialRecord]] = defaultdict(list)
    every = (*facts.result.trials, *facts.result.repeats)
    for trial in every:
        if trial.outcome in FAILED:
            assert trial.outcome is not None
            groups[trial.outcome.value, cause_of(trial.reason)].append(trial)
    if not groups:
        return None
    rows = [
        [outcome, str(len(trials)), trials[0].reason or "unknown", ", ".join(str(trial.number) for trial in trials)]
        for (outcome, _), trials in sorted(groups.items(), key=lambda each: -len(each[1]))
    ]
    count = sum(map(len, groups.values()))
    says = (
        f"{count} of {len(every)} trainings broke off. Infeasible: the configuration can never run here. Failed: it "
        "crashed. Lost: its worker went away, again and again."
    )
    table = Table(columns=["outcome", "count", "cause", "trials"], rows=rows, words=WORDS)
    return Section("failures", "Failures by cause", [Text(says), table])


def workers(facts: Facts) -> Section | None:
    return _section("workers", "Workers", [timeline(facts)])


def spent(facts: Facts) -> Section:
    result = facts.result
    every = (*result.trials, *result.repeats)
    trained = sum(trial.seconds for trial in every)
    rows = [["epochs trained", str(sum(trial.epochs for trial in every))], ["time of all trainings", clock(trained)]]
    if not facts.plain:
        rows.insert(0, ["trials begun", f"{len(result.trials)} of {result.budget}"])
        rows.append(["time of the search", clock(result.seconds)])
        if result.repeats:
            rows.insert(1, ["repeats with other seeds", str(len(result.repeats))])
        stopped = [trial for trial in result.trials if trial.outcome is Outcome.PRUNED]
        if stopped:
            saved = sum(max(0, facts.epochs - trial.epochs) for trial in stopped)
            rows.append(["stopped early", f"{len(stopped)} trials, {saved} epochs saved"])
    if result.gpu_seconds:
        rows.append(["GPU hours", f"{result.gpu_seconds / 3600:.3g}"])
    blocks: list[Block] = [Table(columns=["", "used"], rows=rows, words=frozenset(("",)))]
    if result.ended is not None and not facts.plain:
        said = "; ".join(line for line in result.spent if line != result.ended)
        blocks.append(Text(f"The search ended: {result.ended}" + (f" ({said})." if said else ".")))
    return Section("spent", "What was spent", blocks)


def space(facts: Facts) -> Section | None:
    if facts.space is None:
        return None
    searched = [
        [
            parameter.name,
            "" if parameter.kind == "categorical" else parameter.scale,
            range_text(parameter),
            value_text(parameter.default),
        ]
        for parameter in facts.space.parameters
    ]
    columns = ["parameter", "scale", "range", "default"]
    blocks: list[Block] = [
        Text(f"{len(searched)} parameters were searched ({facts.space.tier or 'chosen by hand'})."),
        Table(columns=columns, rows=searched, words=WORDS | {"default"}),
    ]
    left: dict[str, list[str]] = defaultdict(list)
    for dropped in facts.space.dropped:
        left[dropped.because].append(dropped.name)
    if left:
        rows = [[", ".join(names), because] for because, names in sorted(left.items(), key=lambda each: -len(each[1]))]
        count = len(facts.space.dropped)
        table = Table(columns=["key", "because"], rows=rows, words=WORDS)
        blocks.append(Folded(f"{count} keys were left out, and why", [table]))
    return Section("space", "The space", blocks)


def _section(name: str, title: str, figures: Iterable[Figure | None]) -> Section | None:
    there = [figure for figure in figures if figure is not None]
    return Section(name, title, there) if there else None
