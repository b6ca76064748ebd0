"""The parts of a report that tell of the winner: its classes, its worst images, its files, and what to do next."""

import os
import shlex

from hpo.delivery import HEADINGS
from hpo.mlflow_store import database_of, how_to_open, tracking_uri
from hpo.reporting import plots
from hpo.reporting.blocks import Block, Commands, Folded, Picture, Pictures, Section, Table, Text
from hpo.reporting.facts import Evaluation, Facts
from hpo.reporting.names import gain
from hpo.review import size

CLASSES = 20
"""Rows of the table of classes; the rest is folded."""
WORDS = frozenset(("class", "form", "file", "note"))


def classes(facts: Facts) -> Section | None:
    found = facts.evaluation
    if found is None:
        return None
    order = sorted(found.classes, key=lambda row: (row["boxes"] == "0", float(row["mAP"]), int(row["category_id"])))
    rows = [
        [row["name"], *(_part(row[name]) if row["boxes"] != "0" else "" for name in ("mAP50", "mAP")), row["boxes"]]
        for row in order
    ]
    columns = ["class", "AP50", "AP", "boxes"]
    blocks: list[Block] = [
        Text(_numbers(found, facts.plain)),
        Table(columns=columns, rows=rows[:CLASSES], words=WORDS),
    ]
    if len(rows) > CLASSES:
        rest = Table(columns=columns, rows=rows[CLASSES:], words=WORDS)
        blocks.append(Folded(f"{len(rows) - CLASSES} better classes", [rest]))
    figure = plots.precision_recall(found)
    if figure is not None:
        blocks.append(figure)
    return Section("classes", "Classes", blocks)


def _numbers(found: Evaluation, plain: bool) -> str:
    known = ", ".join(
        f"{name} {found.numbers[name]:.4f}" for name in ("mAP50", "mAP", "mAP75") if found.numbers.get(name, -1) >= 0
    )
    whose = "The checkpoint" if plain else f"Trial {found.trial}"
    return f"{whose} on the {found.images:,} validation images with {found.boxes:,} boxes: {known or 'no box to find'}."


def _part(text: str) -> str:
    value = float(text)
    return "" if value < 0 else f"{value:.3f}"


def images(facts: Facts) -> Section | None:
    found = facts.evaluation
    if found is None or not found.worst:
        return None
    pictures = [
        Picture(
            each.file,
            f"F1 {each.f1:.2f}: {each.hits} hit, {each.wrong} wrong, {each.missed} missed, {each.image}",
        )
        for each in found.worst
    ]
    says = (
        f"The worst of {found.images:,} validation images by F1, at the score threshold that is best over all "
        f"({found.threshold:.2f}). True boxes are green, found ones orange."
    )
    return Section("images", "Worst images", [Text(says), Pictures(pictures)])


def files(facts: Facts) -> Section | None:
    found = facts.delivery
    if found is None:
        return None
    splits = [split for split in HEADINGS if any(split in row["map50"] for row in found["rows"])]
    rows = [
        [
            row["form"],
            row["file"],
            size(row["bytes"]),
            *(f"{row['map50'][split]:.4f}" if split in row["map50"] else "not measured" for split in splits),
            "" if row["drop"] is None else gain(-row["drop"]),
            "" if row["latency_ms"] is None else f"{row['latency_ms']:.3g} ms",
            row["note"],
        ]
        for row in found["rows"]
    ]
    columns = ["form", "file", "size", *(HEADINGS[split] for split in splits), "to PyTorch", "one image", "note"]
    blocks: list[Block] = [Table(columns=columns, rows=rows, words=WORDS)]
    blocks += [Text(failure) for failure in found["failures"]]
    blocks += [Text(remark, "quiet") for remark in found["remarks"]]
    return Section("files", "Handed over", blocks)


def next_steps(facts: Facts, *, live: bool) -> Section:
    """Commands, ready to type in the folder that the run was started from."""
    run = shlex.quote(os.path.relpath(facts.run_dir))
    rows: list[tuple[str, str]] = []
    if live:
        rows.append(("write this report anew", f"ddetr report {run}"))
        if not facts.plain:
            rows.append(("end the search and keep its best", f"ddetr stop {run}"))
    elif facts.handed_over:
        rows += _with_winner(facts, run)
    elif not facts.plain:
        ended = facts.result.finished and facts.winner is not None
        what = "hand the winner over, where nobody is at it (then reload this page)" if ended else "go on"
        rows.append((what, f"ddetr resume {run}"))
    rows += _mlflow(facts)
    return Section("next", "What to type next", [Commands(rows)] if rows else [Text("Nothing was handed over.")])


def _with_winner(facts: Facts, run: str) -> list[tuple[str, str]]:
    rows = [
        ("score it on other images", f"ddetr evaluate --from {run}"),
        ("label images", f"ddetr inference --from {run} dataset.infer_data_sources.image_dir=FOLDER results_dir=out"),
        ("export it at another size", f"ddetr export --from {run} export.input_width=640 export.input_height=640"),
        ("build its engine on the target machine", f"ddetr gen_trt_engine --from {run}"),
    ]
    if not facts.plain:
        rows.append(("search on", f"ddetr resume {run} --add-trials 10"))
        if not facts.result.repeats:
            rows.append((
                "begin a search from its best, and confirm that with other seeds",
                f"ddetr train -e SPEC --seed-from {run} automl.confirm=3",
            ))  # fmt: skip
    return rows


def _mlflow(facts: Facts) -> list[tuple[str, str]]:
    """How to see the runs in MLflow, where there are any."""
    uri = tracking_uri(facts.run_dir.parent)
    database = database_of(uri)
    if database is not None and not database.is_file():
        return []
    return [("compare trials in MLflow", how_to_open(uri))]
