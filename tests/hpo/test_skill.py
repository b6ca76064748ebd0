"""`ddetr skill`: the folder for TAO's AutoML runner, whole or not at all. The runner itself is met in tests/interop."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.cli import main
from hpo.skill import INFO, PLAN, strict
from model.whole import write_text
from schemas import dotted, packaged
from schemas.validate import check

ACTIONS = sorted(packaged.manifest()["actions"])
OPEN = "quantize.backend_kwargs"
"""The group that may hold anything, which the runner cannot take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skill") / "deep" / "skill"
    assert main(["skill", str(folder)]) == 0
    return folder


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def leaves(properties: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, node in properties.items():
        if "properties" in node:
            yield from leaves(node["properties"], f"{above}{name}.")
        else:
            yield f"{above}{name}", node


def test_the_layout(folder: Path) -> None:
    expected = {"SKILL.md", INFO, PLAN}
    expected |= {f"schemas/{action}.schema.json" for action in ACTIONS}
    expected |= {f"references/spec_template_{action}.yaml" for action in ACTIONS}
    assert files(folder).keys() == expected
    assert [path.name for path in folder.parent.iterdir()] == ["skill"]


@pytest.mark.parametrize("action", ACTIONS)
def test_templates_are_the_packaged_ones(folder: Path, action: str) -> None:
    made = yaml.safe_load((folder / f"references/spec_template_{action}.yaml").read_text())
    packed = yaml.safe_load(packaged.template(action))
    for name in (OPEN, "inference.color_map") if action == "inference" else (OPEN,):
        packed = dotted.drop(packed, name)
    if action == "train":
        assert dotted.get(packed, "deploy.objective") == ""
        packed = dotted.put(packed, "deploy.objective", None)
    assert made == packed
    assert json.loads((folder / f"schemas/{action}.schema.json").read_text())["default"] == made


@pytest.mark.parametrize("action", ACTIONS)
def test_schemas_say_what_the_packaged_ones_say(action: str) -> None:
    """Every key with the same facts, but for how null is spelt and for what is searched without an end."""
    made, packed = dict(leaves(strict(packaged.document(action))["properties"])), packaged.schema(action)
    inner = {f"dataset.{split}_data_sources" for split in ("test", "infer", "quant_calibration")}
    anything = {OPEN, "inference.color_map"} & packed.leaves.keys()
    assert {name for name in made if name.rpartition(".")[0] not in inner} == packed.leaves.keys() - inner - anything
    kept = ("title", "description", "minimum", "maximum", "enum", "math_cond", "depends_on")
    originals = dict(leaves(packaged.document(action)["properties"]))
    for name, node in made.items():
        if name not in originals:
            continue
        before = originals[name]
        assert {key: node.get(key) for key in kept} == {key: before.get(key) for key in kept}
        kind = node["type"] if "type" in node else node["anyOf"][0]["type"]
        assert kind == before["type"]
        assert ("anyOf" in node) == (node["default"] is None)
        searched = bool(before.get("automl_enabled")) and {"minimum", "maximum"} <= before.keys()
        assert bool(node.get("automl_enabled")) == searched, name


def test_what_is_searched_is_what_the_metadata_promises(folder: Path) -> None:
    made = dict(leaves(json.loads((folder / "schemas/train.schema.json").read_text())["properties"]))
    searched = {name for name, node in made.items() if node.get("automl_enabled")}
    unbounded = {leaf.name for leaf in packaged.schema("train").leaves.values() if leaf.search} - searched
    assert len(searched) == 13
    page = (folder / "SKILL.md").read_text()
    assert unbounded
    assert all(f"`{name}`" in page for name in unbounded)


def test_commands_run_from_another_folder(folder: Path, tmp_path: Path) -> None:
    """As the runner calls them: the environment's interpreter, the script, the words with the config's path."""
    info = yaml.safe_load((folder / INFO).read_text())
    plan = json.loads((folder / PLAN).read_text())
    params = plan["steps"][0]["params"]
    assert params["skill_dir"] == str(folder)
    python = Path(params["sdk_kwargs"]["venv_path"]) / "bin" / "python"
    assert sorted(info["actions"]) == ACTIONS
    for action, entry in info["actions"].items():
        assert entry["execution"]["args"] == [action, "-e", "{config_path}"]
    execution = info["actions"]["train"]["execution"]
    words = [word.replace("{config_path}", "nowhere.yaml") for word in execution["args"]]
    done = subprocess.run([python, execution["script"], *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "nowhere.yaml cannot be read" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", ACTIONS)
def test_templates_are_specs_that_we_take(folder: Path, action: str) -> None:
    """Every key and value passes the check of a spec file, as the packaged template does."""
    made = yaml.safe_load((folder / f"references/spec_template_{action}.yaml").read_text())
    assert not check(made, {action: packaged.schema(action)})


def test_it_is_made_anew_but_replaces_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skill, other = tmp_path / "skill", tmp_path / "other"
    skill.mkdir()  # empty
    assert main(["skill", str(skill)]) == 0
    before = files(skill)
    (skill / "SKILL.md").write_text("old")
    (skill / "schemas" / "train.schema.json").unlink()
    assert main(["skill", str(skill)]) == 0
    assert files(skill) == before

    (skill / "mine.json").write_text("{}")
    assert main(["skill", str(skill)]) == 2
    assert "mine.json" in capsys.readouterr().err
    assert files(skill) == {**before, "mine.json": "{}"}

    (other / "references").mkdir(parents=True)
    (other / INFO).write_text("network_arch: deformable_detr\n")  # somebody else's skill
    assert main(["skill", str(other)]) == 2
    assert files(other) == {INFO: "network_arch: deformable_detr\n"}
    (tmp_path / "file").write_text("")
    assert main(["skill", str(tmp_path / "file")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "skill"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skill = tmp_path / "skill"
    assert main(["skill", str(skill)]) == 0
    before = files(skill)

    def disk(text: str, path: Path) -> None:
        if path.name == "quantize.schema.json":
            raise OSError(28, "No space left on device")
        write_text(text, path)

    monkeypatch.setattr("hpo.skill.write_text", disk)
    assert main(["skill", str(skill)]) == main(["skill", str(tmp_path / "new")]) == 1
    assert files(skill) == before
    assert [path.name for path in tmp_path.iterdir()] == ["skill"]


def test_another_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "environment"
    (other / "bin").mkdir(parents=True)
    for name in ("bin/python", "bin/deformable_detr"):
        (other / name).touch()
    words = ["skill", str(tmp_path / "skill"), "--python", str(other / "bin" / "python")]
    assert main(words) == 2
    assert "pyvenv.cfg" in capsys.readouterr().err
    assert not (tmp_path / "skill").exists()
    (other / "pyvenv.cfg").touch()
    assert main(words) == 0
    info = yaml.safe_load((tmp_path / "skill" / INFO).read_text())
    assert info["actions"]["train"]["execution"]["script"] == str(other / "bin" / "deformable_detr")
    assert str(sys.prefix) not in "".join(files(tmp_path / "skill").values())
