"""Which of a search's trade-offs is handed over, by what was measured of their files. Knows numbers; runs no network.

Ranking trials by the accuracy and cost that their training measured says little of an INT8 file: precision costs some
models more than others, and saves some more time than others.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpo.delivery import DELIVERY, Delivery, Row, Split
from hpo.handoff import clear
from hpo.runs import HANDOFF
from model.whole import in_place

if TYPE_CHECKING:
    from deploy.spec import DeploySpec
    from hpo.result import TrialRecord

FOLDER = "deployed"
"""Of a run: a folder for each trial that was taken through the handoff, named by its number."""


class Member(NamedTuple):
    trial: "TrialRecord"
    folder: Path
    delivery: Delivery


class _Measured(NamedTuple):
    member: Member
    map50: float
    ms: float


def choose(members: Sequence[Member], wanted: "DeploySpec", precision: str) -> tuple[Member, str]:
    """The member to hand over, and why: by its ONNX file of `precision`. members: in order of preference where the
    measured ones are equal."""
    known = [one for member in members if (one := _measured(member, precision)) is not None]
    if not known:
        return members[0], f"no trade-off was measured in {precision}, so the search's own winner is handed over"
    fitting = [one for one in known if wanted.max_latency_ms is None or one.ms <= wanted.max_latency_ms]
    if not fitting:
        fastest = min(known, key=lambda one: one.ms)
        limit = f"none of {len(known)} trade-offs is within deploy.max_latency_ms={wanted.max_latency_ms:g}"
        return fastest.member, f"{limit}; trial {_said(fastest)} is the fastest"
    best = max(fitting, key=lambda one: one.map50)
    if wanted.objective == "latency":
        near = [one for one in fitting if one.map50 >= best.map50 - wanted.accuracy_slack]
        best = min(near, key=lambda one: one.ms)
        rule = f"the fastest within {wanted.accuracy_slack:g} of the best"
    else:
        rule = "the most accurate"
    within = "" if wanted.max_latency_ms is None else f" within {wanted.max_latency_ms:g} ms"
    return best.member, f"trial {_said(best)} is {rule}{within} of {len(known)} trade-offs, as deployed in {precision}"


def promote(member: Member, run: Path, because: str) -> Delivery:
    """The member's files as those of the run; returns its delivery there, which says why it was chosen."""
    from deploy.sidecar import path_of
    from model.handoff import Handoff

    clear(run)
    told, trial = Handoff.read(member.folder / HANDOFF), member.trial
    assert trial.checkpoint is not None
    replace(told, checkpoint=os.path.relpath(trial.checkpoint, run)).write(run / HANDOFF)
    rows: list[Row] = []
    for row in member.delivery.rows:
        if row.file.parent != member.folder:  # the checkpoint stays among the trials
            rows.append(row)
            continue
        target = run / row.file.name
        with in_place(target, path_of(target)) as copies:
            for file, copy in zip((row.file, path_of(row.file)), copies, strict=True):
                shutil.copy2(file, copy)
        rows.append(row._replace(file=target))
    delivery = member.delivery._replace(
        rows=tuple(rows), remarks=(f"Handed over: {because}.", *member.delivery.remarks)
    )
    delivery.write(run / DELIVERY)
    return delivery


def _measured(member: Member, precision: str) -> _Measured | None:
    row = next((row for row in member.delivery.rows if row.form == f"ONNX {precision}"), None)
    judge: Split = "val"
    if row is None or row.latency_ms is None or not row.map50:
        return None
    return _Measured(member, row.map50.get(judge, next(iter(row.map50.values()))), row.latency_ms)


def _said(one: _Measured) -> str:
    return f"{one.member.trial.number} (mAP50 {one.map50:.4f}, {one.ms:.3g} ms)"
