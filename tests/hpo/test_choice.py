"""The trade-off that is handed over, by hand-worked members; and its files, promoted to those of the run."""

import json
from pathlib import Path

import pytest

from deploy.spec import DeploySpec
from hpo.choice import Member, choose, promote
from hpo.delivery import Delivery, DeliveryError, Row
from model.handoff import Handoff
from tests.hpo.trials import trial


def member(number: int, map50: float, ms: float | None, precision: str = "INT8") -> Member:
    fp32 = Row("ONNX FP32", Path("a.onnx"), 9, {"val": 0.99}, 0.0, 99.0)
    row = Row(f"ONNX {precision}", Path("b.onnx"), 3, {"val": map50, "test": 0.0}, 0.0, ms)
    return Member(trial(number), Path(), Delivery((fp32, row), ()))


FRONT = [member(3, 0.70, 40.0), member(5, 0.695, 20.0), member(8, 0.60, 5.0)]


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        (DeploySpec(objective="accuracy"), 3),
        (DeploySpec(objective="accuracy", max_latency_ms=30.0), 5),
        (DeploySpec(objective="accuracy", max_latency_ms=5.0), 8),
        (DeploySpec(objective="accuracy", max_latency_ms=1.0), 8),  # none: the fastest, and that is said
        (DeploySpec(objective="latency"), 5),
        (DeploySpec(objective="latency", accuracy_slack=0.001), 3),
        (DeploySpec(objective="latency", accuracy_slack=0.2), 8),
        (DeploySpec(objective="latency", accuracy_slack=0.2, max_latency_ms=20.0), 8),
    ],
)
def test_the_choice_is_by_what_was_measured_of_the_last_precision(wanted: DeploySpec, number: int) -> None:
    chosen, because = choose(FRONT, wanted, "INT8")
    assert chosen.trial.number == number
    assert f"trial {number} " in because
    assert ("none of 3 trade-offs is within" in because) == (wanted.max_latency_ms == 1.0)


def test_a_member_without_the_precision_is_not_chosen_unless_there_is_no_other() -> None:
    failed, slow = member(1, 0.9, 1.0, precision="FP16"), member(2, 0.3, 50.0)
    assert choose([failed, slow], DeploySpec(objective="accuracy"), "INT8")[0] is slow
    chosen, because = choose([failed], DeploySpec(objective="latency"), "INT8")
    assert chosen is failed
    assert "no trade-off was measured in INT8" in because


def test_equals_keep_the_order_that_they_came_in() -> None:
    twins = [member(4, 0.5, 7.0), member(2, 0.5, 7.0)]
    for objective in ("accuracy", "latency"):
        assert choose(twins, DeploySpec(objective=objective), "INT8")[0] is twins[0]


def test_promoted_files_are_those_of_the_member_and_no_others_stay(tmp_path: Path) -> None:
    folder, best = tmp_path / "deployed" / "5", tmp_path / "trials" / "5" / "model_best.pth"
    for parent in (folder, best.parent):
        parent.mkdir(parents=True)
    best.write_bytes(b"weights")
    for name in ("model.onnx", "model.fp16.onnx"):
        (folder / name).write_text(f"{name} of 5")
        (folder / f"{name}.json").write_text(f"about {name} of 5")
        (tmp_path / name).write_text("of an earlier winner")
    for stale in ("model.int8.onnx", "model.int8.onnx.json", "model.engine"):
        (tmp_path / stale).write_text("of an earlier winner")
    told = Handoff(
        schema_version=1, checkpoint="../../trials/5/model_best.pth", checkpoint_sha256="x", model={}, num_classes=2,
        classes={}, preprocessing={}, metric={}, budget={}, lineage={"trial": 5},
    )  # fmt: skip
    told.write(folder / "handoff.json")
    rows = (
        Row("PyTorch", best, 7, {"val": 0.5}),
        Row("ONNX FP32", folder / "model.onnx", 5, {"val": 0.5}, 0.0, 1.0),
        Row("ONNX FP16", folder / "model.fp16.onnx", 5, {"val": 0.5}, 0.0, 1.0),
    )
    delivery = promote(
        Member(trial(5, checkpoint=best), folder, Delivery(rows, ("known",))), tmp_path, "it is the fastest"
    )
    assert [row.file for row in delivery.rows] == [best, tmp_path / "model.onnx", tmp_path / "model.fp16.onnx"]
    assert (tmp_path / "model.fp16.onnx").read_text() == "model.fp16.onnx of 5"
    assert (tmp_path / "model.fp16.onnx.json").read_text() == "about model.fp16.onnx of 5"
    assert not list(tmp_path.glob("model*.engine")) + list(tmp_path.glob("model.int8*"))
    assert Handoff.read(tmp_path / "handoff.json").checkpoint == "trials/5/model_best.pth"
    kept = json.loads((tmp_path / "delivery.json").read_text())
    assert kept["remarks"] == ["Handed over: it is the fastest.", "known"]
    assert [row["file"] for row in kept["rows"]] == ["trials/5/model_best.pth", "model.onnx", "model.fp16.onnx"]


def test_a_failed_precision_is_loud_when_everything_else_is_done() -> None:
    Delivery((), ()).require()
    with pytest.raises(DeliveryError, match=r"INT8: .*0\.3"):
        Delivery((), (), ("INT8: loses 0.3 of mAP50",)).require()
