"""`ddetr explain` from outside."""

import json
from pathlib import Path

import pytest

from hpo.cli import main
from hpo.sweep_spec import SweepSpec
from schemas import packaged
from schemas.fields import members


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {optim: {lr: 3e-4}, num_epochs: 12}\n")
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["explain", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_searched_key_by_its_short_name(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "lr", "-e", str(spec_file))
    assert text.startswith("train.optim.lr (float): Learning rate")
    for part in ("default 0.0002", "in effect 0.0003", "above 0 and at most 0.01", "searched yes",
                 "3e-05 to 0.003, log", "decides over train.optim.lr_backbone"):  # fmt: skip
        assert part in text, part
    assert told(capsys, "train.optim.lr", "-e", str(spec_file)) == text


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("momentum", ("searched no: inert: train.optim.optimizer is AdamW", "depends on train.optim.optimizer")),
        ("lr_backbone", ("train.optim.lr_backbone/lr: ", "the drawn ratio times train.optim.lr")),
        ("batch_size", ("dataset.batch_size (int)", "also evaluate.batch_size, export.batch_size")),
        ("seed", ("train.seed (int)", "also automl.seed")),
        (
            "automl.trials",
            ("automl.trials (int): Trials", "default 20", "allowed at least 1", "decides about the search"),
        ),
        ("tier", ("one of narrow, medium, wide",)),
        ("automl_policy", ("default auto", "auto, on or off")),
        ("evaluate.checkpoint", ("default",)),
        ("opset_version", ("only `export` reads it",)),
        ("train.optim", ("(a group of keys)", "weight_decay Weight decay")),
        ("eval_class_ids", ("default unset", "automl_disabled_parameters")),
    ],
)
def test_each_kind_of_key(key: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, key)
    for part in parts:
        assert part in text, part


def test_no_key_is_without_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    """Every key that a spec file may have, and every key of the automl block."""
    names = {f"automl.{name}": info.title for name, _, _, info in members(SweepSpec)}
    for action in ("train", "export", "quantize"):
        names |= {leaf.name: leaf.title for leaf in packaged.schema(action).leaves.values()}
    for name in sorted(names)[::9]:
        text = told(capsys, name)
        assert text.startswith(f"{name} (")
        assert names[name] in text


@pytest.mark.parametrize(
    ("key", "words"),
    [("lrr", "did you mean `lr`?"), ("crop_min", "did you mean `dataset.augmentation.train_random_crop_min`?"),
     ("onnx_file", "export.onnx_file, gen_trt_engine.onnx_file; write it in full")],
)  # fmt: skip
def test_unknown_and_ambiguous_keys(key: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == 2
    assert words in capsys.readouterr().err


def test_a_key_of_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaf = {"type": "float", "default": 0.01, "minimum": 0.0, "maximum": 1.0, "automl_enabled": True, "title": "Rate"}
    schema = {"type": "object", "properties": {"train": {"type": "object", "properties": {"lr": leaf}}}}
    (tmp_path / "other.json").write_text(json.dumps(schema))
    text = told(capsys, "lr", "--schema", str(tmp_path / "other.json"))
    assert text.startswith("train.lr (float): Rate")
    assert "0.001 to 0.1, log" in text
    assert main(["explain", "model.num_queries", "--schema", str(tmp_path / "other.json")]) == 2
