import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import PolicyError
from hpo.policy import means_off, read_policy, require_metric, resolve
from model.errors import SpecError
from schemas import packaged

OFF = [
    "turn off AutoML", "Please turn AutoML off.", "disable AutoML", "disable automl for this run", "no HPO",
    "no AutoML", "there is no need for HPO", "AutoML is not needed", "I don't want to train with HPO",
    "plain training", "Just do a plain training, please", "train without HPO", "skip the hyperparameter search",
    "switch off auto-ml", "don't use AutoML", "do not run HPO", "don\u2019t run any hyperparameter optimization",
    "AutoML off", "automl_policy=off", "automl: off", "I do not want to use AutoML", "just train",
    "AutoML should be off",
    "disabling AutoML is fine; do not turn off logging", "without the hyperparameter tuning",
    "Do not turn off the lights. Turn off AutoML.",
]  # fmt: skip
ON = [
    "do not turn off AutoML", "don't disable AutoML", "do not disable automl", "Please don't turn AutoML off",
    "never skip the hyperparameter search", "don't train without HPO", "not plain training", "no plain training please",
    "rather than plain training, search", "train the detector", "use AutoML", "turn on AutoML", "", "automl",
    "instead of plain training", "find the best learning rate", "do not just train", "a plainly difficult training set",
    "you must not switch off AutoML",
]  # fmt: skip


@pytest.mark.parametrize("text", OFF)
def test_words_that_mean_off(text: str) -> None:
    assert means_off(text)
    assert read_policy(None, text) == "off"
    assert read_policy(text) == "off"


@pytest.mark.parametrize("text", ON)
def test_words_that_do_not(text: str) -> None:
    assert not means_off(text)
    assert read_policy(None, text) == "auto"


@pytest.mark.parametrize(
    ("value", "policy"),
    [(None, "auto"), ("auto", "auto"), ("on", "on"), ("off", "off"), ("OFF", "off"), (" On ", "on"), (True, "on"),
     (False, "off")],
)  # fmt: skip
def test_values(value: Any, policy: str) -> None:
    assert read_policy(value) == policy


def test_an_explicit_value_wins_over_words() -> None:
    assert read_policy(True, "turn off AutoML") == "on"
    assert read_policy("on", "no HPO") == "on"
    assert read_policy(False, "do not turn off AutoML") == "off"
    assert read_policy("auto", "no HPO") == "off"  # auto decides nothing, so the words do


@pytest.mark.parametrize("value", ["maybe", "do not turn off AutoML", 1, ["on"]])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="`automl_policy` must be auto, on or off"):
        read_policy(value)


def test_decisions() -> None:
    assert resolve("auto", "train").run_hpo
    assert resolve("on", "train").run_hpo
    assert not resolve("off", "train").run_hpo
    for action in ("evaluate", "inference", "export", "gen_trt_engine", "quantize"):
        for policy in ("auto", "on", "off"):
            decision = resolve(policy, action)
            assert not decision.run_hpo
            assert "never" in decision.because or "only `train`" in decision.because


@pytest.mark.parametrize("policy", ["auto", "on", "off"])
def test_a_reason_is_always_given(policy: Any) -> None:
    assert resolve(policy, "train").because.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("manifest.json", "train.schema.json", "spec_template_train.yaml"):
        shutil.copy(str(files("schemas") / name), tmp_path / name)
    return tmp_path


def test_a_whole_folder_is_runnable(folder: Path) -> None:
    assert resolve("auto", "train", folder=folder).run_hpo


@pytest.mark.parametrize("name", ["train.schema.json", "spec_template_train.yaml"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    decision = resolve("auto", "train", folder=folder)
    assert not decision.run_hpo
    assert decision.because == f"AutoML is enabled but not runnable, because schemas/{name} is missing"
    with pytest.raises(PolicyError, match=f"automl_policy=on.*{name} is missing"):
        resolve("on", "train", folder=folder)
    assert not resolve("off", "train", folder=folder).run_hpo


def test_broken_schema_and_manifest(folder: Path) -> None:
    (folder / "train.schema.json").write_text("{")
    assert "not readable as JSON" in resolve("auto", "train", folder=folder).because
    (folder / "manifest.json").unlink()
    assert "manifest.json is missing" in resolve("auto", "train", folder=folder).because
    with pytest.raises(PolicyError):
        resolve("on", "train", folder=folder)


def test_disabled_in_the_manifest(folder: Path) -> None:
    manifest = {**packaged.manifest(), "automl_enabled": False}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    decision = resolve("auto", "train", folder=folder)
    assert not decision.run_hpo
    assert "AutoML is disabled" in decision.because
    with pytest.raises(PolicyError, match="AutoML is disabled"):
        resolve("on", "train", folder=folder)


def test_nothing_is_written(folder: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for policy in ("auto", "on", "off"):
        resolve(policy, "train", folder=folder)  # type: ignore[arg-type]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_search_needs_a_metric() -> None:
    require_metric(True)
    with pytest.raises(PolicyError, match=r"dataset\.val_data_sources"):
        require_metric(False)
