"""Accepted keys without an effect say so, once, and only where the user asked for something."""

from model.notices import UNUSED, notices
from model.spec import ExperimentSpec
from schemas import dotted


def test_a_default_or_a_used_key_says_nothing() -> None:
    assert notices({}) == []
    assert notices(ExperimentSpec().to_dict()) == []
    assert notices({"wandb": {"enable": False, "tags": ["tao-toolkit"]}, "train": {"verbose": None}}) == []
    assert notices({"train": {"num_epochs": 3}, "export": {"opset_version": 16}, "encryption_key": ""}) == []


def test_keys_of_one_reason_share_a_line() -> None:
    lines = notices({"wandb": {"enable": True, "project": "cells"}, "train": {"optim": {"monitor_name": "train_loss"}}})
    assert lines == [
        "accepted and not used: wandb.enable, wandb.project; runs are tracked in MLflow",
        "accepted and not used: train.optim.monitor_name; no schedule here follows a metric",
    ]


def test_the_key_itself_is_not_printed() -> None:
    (line,) = notices({"encryption_key": "hush"})
    assert "encryption_key" in line
    assert "hush" not in line


def test_every_unused_name_is_a_key() -> None:
    spec = ExperimentSpec().to_dict()
    assert [name for name in UNUSED if not dotted.has(spec, name)] == []
