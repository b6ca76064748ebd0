import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from hpo.cli import main
from hpo.show_space import print_space, range_text
from hpo.spec import read_request
from schemas import packaged
from search_spaces.derive import derive
from search_spaces.space import Parameter, SearchSpace


def shown(space: SearchSpace, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_space(space, console)
    return console.export_text()


def test_every_default_parameter_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    text = shown(read_request(tmp_path / "a.yaml").space())
    for name in packaged.document("train")["automl_default_parameters"]:
        assert name in text
    assert "0.0001 to 0.005" in text
    assert "automl.params=[+lr_decay]" in text  # not taken for markup


def test_ranges_in_words() -> None:
    assert range_text(Parameter(name="x", kind="categorical", choices=("a", True, None))) == "a, True, None"
    assert range_text(Parameter(name="x", kind="int", low=8, high=64, step=8)) == "8 to 64 by 8"
    assert range_text(Parameter(name="x", kind="float", low=5e-324, high=0.5)) == ">0 to 0.5"


def test_an_empty_space_says_so() -> None:
    assert "0 parameters" in shown(SearchSpace(parameters=()))


FOREIGN = {
    "type": "object",
    "x_tao_schema": {"model": "segmenter", "network_arch": "segmenter"},
    "automl_default_parameters": ["train.lr", "train.momentum", "data.workers", "train.size", "train.gone"],
    "default": {"train": {"lr": 0.01, "momentum": 0.9, "size": 99}, "data": {"workers": 4}},
    "properties": {
        "train": {
            "type": "object",
            "properties": {
                "lr": {"type": "float", "minimum": 0.0, "maximum": 1.0, "math_cond": "> 0.0", "automl_enabled": "TRUE"},
                "momentum": {"type": "float", "minimum": 0.0, "maximum": 1.0},
                "optimizer": {"type": "categorical", "enum": ["AdamW", "SGD"], "default": "AdamW"},
                "size": {"type": "int", "default": 99, "minimum": 1, "maximum": 50},
                "top": {"type": "float", "default": 1.0, "maximum": float("inf")},
            },
        },
        "data": {"type": "object", "properties": {"workers": {"type": "int", "minimum": 1, "maximum": float("inf")}}},
    },
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "segmenter.schema.json"
    path.write_text(json.dumps(FOREIGN))  # with a bare Infinity, as TAO writes it
    return path


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_space_of_a_model_that_we_do_not_know(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "--schema", str(foreign)]) == 0
    text = capsys.readouterr().out
    for part in ("segmenter: 6 keys; no overlay of ours knows it", "0.001 to 0.1", "throughput", "AdamW",
                 "train.gone: ", "the default 99 is outside its bounds"):  # fmt: skip
        assert part in text, part


def test_one_json_document_for_a_program(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("train: {optimizer: SGD, size: 99}\nautoml: {exclude: [size]}\n")
    flags = ["--spec", str(spec), "--range", "lr=0.02:0.2:log", "--tier", "wide"]
    assert main(["space", "--schema", str(foreign), "--json", *flags]) == 0
    found = strict(capsys.readouterr().out)
    space = SearchSpace.from_dict(found)
    assert (space["train.lr"].low, space["train.lr"].high, space.tier) == (0.02, 0.2, "wide")
    assert "train.momentum" in space.targets  # alive under SGD
    assert {"data.workers", "train.size"} <= {name for name, _ in space.dropped}
    assert {"schema", "data", "remarks", "findings"} <= found.keys()
    kinds = {finding["kind"] for finding in found["findings"]}
    assert {"throughput", "default"} <= kinds
    assert all(finding["name"] and finding["text"] for finding in found["findings"])


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("# no JSON", "it is not JSON"), ("[1, 2]", "holds a list"), ("{}", "an object without"),
     ('{"actions": {}}', "an object without")],
)  # fmt: skip
def test_a_file_that_is_no_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    assert main(["space", "--schema", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(path) in error
    assert len(error.strip().splitlines()) == 1


def test_a_wrong_spec_of_any_model_is_one_report(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("train:\n  lr: 5\n  size: 98\n  topp: 1\nautoml:\n  params: [+foo]\n  fix: {momentum: 2}\n")
    assert main(["space", "--schema", str(foreign), "--spec", str(spec), "--range", "lr=0.1:3"]) == 2
    error = capsys.readouterr().err
    for part in ("but is 5. (spec.yaml:2)", "`train.size` must be at least 1 and at most 50, but is 98. (spec.yaml:3)",
                 "did you mean `train.top`? (spec.yaml:4)", "`automl.params`: unknown parameter `foo`. (spec.yaml:6)",
                 "`train.momentum` must be at least 0 and at most 1, but is 2. (spec.yaml:7)",
                 "(--range lr=0.1:3)"):  # fmt: skip
        assert part in error, part


def test_a_spec_with_its_data(digits_spec: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits_spec["model"]["num_select"] = 50
    del digits_spec["dataset"]["num_classes"]
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump(digits_spec))
    assert main(["space", "-e", str(path), "--json", "--params", "+num_queries"]) == 0
    found = strict(capsys.readouterr().out)
    assert (found["data"]["images"], found["data"]["longest_side"]) == (24, 48)
    assert found["context"]["dataset.num_classes"] == 3
    request = read_request(path, ["automl.params=[+num_queries]"], data=True)
    assert SearchSpace.from_dict(found) == request.space()

    digits_spec["dataset"]["train_data_sources"][0]["json_file"] = "/nowhere.json"
    path.write_text(yaml.safe_dump(digits_spec))
    assert main(["space", "-e", str(path)]) == 0
    assert "derived without the training data: `/nowhere.json`" in capsys.readouterr().out


def test_an_overlay_counts_for_the_network_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(packaged.document("train")))
    assert main(["space", "--schema", str(path), "--json"]) == 0
    assert SearchSpace.from_dict(strict(capsys.readouterr().out)) == read_request(None).space()
    document = {**packaged.document("train"), "x_tao_schema": {"network_arch": "common"}}
    path.write_text(json.dumps(document))
    assert main(["space", "--schema", str(path), "--json"]) == 0
    assert SearchSpace.from_dict(strict(capsys.readouterr().out)) == derive(document, {})
