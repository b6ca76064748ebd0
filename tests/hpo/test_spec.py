import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpo.build_schemas import ACTIONS
from hpo.spec import Request, read_request, with_values
from hpo.sweep_spec import SweepSpec
from model.errors import SpecError
from schemas import packaged

SPEC = """
automl_policy: off
automl:
  trials: 8
  searcher: random
model:
  num_select: 100
dataset:
  num_classes: 2
  train_data_sources:
    - image_dir: data/images
      json_file: s3://bucket/train.json
train:
  num_epochs: 12
  optim:
    lr: 1e-3
export:
  onnx_file: out/model.onnx
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    return path


def problems(path: Path, *overrides: str, **options: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_request(path, overrides, **options)
    return caught.value.problems


def test_a_whole_request(path: Path) -> None:
    request = read_request(path, ["train.optim.lr=2e-3", "automl.trials=3"])
    assert isinstance(request, Request)
    assert request.policy == "off"
    assert (request.sweep.trials, request.sweep.searcher) == (3, "random")
    assert request.spec.train.optim.lr == 2e-3
    assert request.spec.train.num_epochs == 12
    assert request.spec.train.optim.weight_decay == 1e-4
    assert request.automl_keys == ("automl_policy", "automl")
    assert not {"automl", "automl_policy"} & set(request.raw)
    assert request.sections["export"].onnx_file == os.path.abspath("out/model.onnx")


@pytest.mark.parametrize(
    ("line", "policy"),
    [("", "auto"), ("automl_policy: on", "on"), ("automl_policy: off", "off"), ("automl_policy: auto", "auto"),
     ("automl_policy: no HPO", "off"), ("automl_policy: null", "auto")],
)  # fmt: skip
def test_policy_from_file(tmp_path: Path, line: str, policy: str) -> None:
    (tmp_path / "a.yaml").write_text(line + "\n")
    assert read_request(tmp_path / "a.yaml").policy == policy


def test_policy_from_the_command_line_and_words(path: Path) -> None:
    assert read_request(path, ["automl_policy=on"]).policy == "on"
    assert read_request(path, ["automl_policy=auto"], request_text="plain training").policy == "off"
    assert read_request(path, ["automl_policy=on"], request_text="plain training").policy == "on"


def test_paths_are_absolute_to_the_current_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_request(
        path, ["results_dir=~/runs", "train.pretrained_model_path=a/../b.pth", "export.checkpoint=???"]
    )
    (source,) = request.spec.dataset.train_data_sources
    assert source.image_dir == str(tmp_path / "data/images")
    assert source.json_file == "s3://bucket/train.json"
    assert request.spec.results_dir == os.path.expanduser("~/runs")
    assert request.spec.train.pretrained_model_path == str(tmp_path / "b.pth")
    assert request.sections["export"].checkpoint is None
    assert request.raw["dataset"]["train_data_sources"][0]["image_dir"] == str(tmp_path / "data/images")


def test_every_problem_in_one_report_each_with_its_place(path: Path) -> None:
    found = problems(
        path, "train.optim.lr=1", "automl.trails=3", "train.optm.lr=2", "train.validation_interval=50",
        "automl_policy=maybe", "model.nheads=7", "export.format=tflite", "dataset.train_data_sources.0.imagedir=x",
    )  # fmt: skip
    text = "\n".join(found)
    for part in (
        "`automl_policy` must be auto, on or off",
        "unknown key `automl.trails`; did you mean `trials`? (on the command line)",
        "unknown key `train.optm`; did you mean `train.optim`?",
        "`train.optim.lr` must be above 0 and at most 0.01, but is 1. (on the command line)",
        "`export.format` must be one of onnx, xdl, but is 'tflite'. (on the command line)",
        "unknown key `dataset.train_data_sources[0].imagedir`; did you mean `image_dir`?",
        "`model.hidden_dim` must be a multiple of `model.nheads`",
        "`train.validation_interval` must be at most `train.num_epochs`",
    ):
        assert part in text, part
    assert len(found) == 8


def test_places_in_the_file(path: Path) -> None:
    path.write_text(SPEC.replace("lr: 1e-3", "lr: 1e-1").replace("trials: 8", "trials: 0"))
    assert problems(path) == [
        "`automl.trials` must be at least 1, but is 0. (mine.yaml:4)",
        "`train.optim.lr` must be above 0 and at most 0.01, but is 0.1. (mine.yaml:16)",
    ]


def test_a_rule_between_keys_waits_for_the_keys(path: Path) -> None:
    # num_select=100 would break the rule at the default of 300 queries too if num_classes were wrong; one report only.
    assert problems(path, "dataset.num_classes=0") == [
        "`dataset.num_classes` must be at least 1, but is 0. (on the command line)"
    ]
    (text,) = problems(path, "model.num_select=800")
    assert "`model.num_select` must be below" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1\na: 2\n", "given twice"), ("a: [", "not readable as YAML"), ("- 1\n", "a spec is a group of keys"),
     ("automl: 3\n", "`automl` must be a group of keys"),
     ("automl: {params: {a: 1}}\n", "`automl.params` must be a list"),
     ("automl: {fix: {lrr: 1}}\n", "`automl.fix.lrr`: unknown parameter `lrr`"),
     ("automl: {tier: broad}\n", "must be one of narrow"),
     ("train.optim.lr: 1\n", "groups in place of the dots"), ("train: 3\n", "`train` must be a group of keys")],
)  # fmt: skip
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    found = problems(tmp_path / "a.yaml")
    assert len(found) == 1
    assert message in found[0]


def test_missing_file_and_malformed_override(path: Path, tmp_path: Path) -> None:
    assert "cannot be read" in problems(tmp_path / "none.yaml")[0]
    assert "form key=value" in problems(path, "train.optim.lr")[0]


def test_null_is_unset(path: Path) -> None:
    request = read_request(path, ["train.optim.lr=null", "train=null"])
    assert request.spec.train.optim.lr == 2e-4


def test_fixed_values_are_in_the_spec(path: Path) -> None:
    request = read_request(path, ["automl.fix.train.optim.weight_decay=1e-5", "automl.fix.dropout_ratio=0.1"])
    assert request.sweep.fix == {"train.optim.weight_decay": 1e-5, "model.dropout_ratio": 0.1}
    assert request.spec.train.optim.weight_decay == 1e-5
    assert request.spec.model.dropout_ratio == 0.1
    assert "model.dropout_ratio" not in request.space().targets
    assert problems(path, "automl.fix={lr: 3}") == [
        "`train.optim.lr` must be above 0 and at most 0.01, but is 3. (on the command line)"
    ]


def test_space_of_a_request(path: Path) -> None:
    space = read_request(path, ["automl.ranges.train.optim.lr=1e-4:1e-2:log", "automl.params=[+lr_decay]"]).space()
    assert (space["train.optim.lr"].low, space["train.optim.lr"].high) == (1e-4, 1e-2)
    assert space["train.optim.lr"].default == 1e-3
    assert "train.optim.lr_decay" in space.targets
    assert problems(path, "automl.params=[lrr]") == [
        "`automl.params`: unknown parameter `lrr`; did you mean `lr`? (on the command line)"
    ]


def test_flags_are_written_into_the_block(path: Path) -> None:
    path.write_text(
        "automl: {trials: 8, ranges: {train.optim.lr: 1e-4:1e-3}, exclude: [momentum], fix: {num_queries: 200}}\n"
    )
    flags = {
        "tier": "wide", "params": "lr, +lr_decay", "range": ["lr=1e-5:1e-3:log", "dropout_ratio=0:0.1"],
        "fix": ["nheads=4"], "exclude": None, "trials": "5", "hours": "0.5", "searcher": "tpe",
        "seed_from": "runs/a b", "other": 3,
    }  # fmt: skip
    sweep = read_request(path, ["automl.trials=6"], flags=flags).sweep
    assert (sweep.trials, sweep.hours, sweep.searcher, sweep.seed_from) == (6, 0.5, "tpe", "runs/a b")
    assert (sweep.tier, sweep.params, sweep.exclude) == ("wide", ("lr", "+lr_decay"), ("momentum",))
    assert sweep.fix == {"model.num_queries": 200, "model.nheads": 4}
    same = read_request(
        path, ["automl.trials=6", "automl.tier=wide", "automl.params=[lr,+lr_decay]", "automl.ranges.lr=1e-5:1e-3:log",
               "automl.ranges.dropout_ratio=0:0.1", "automl.fix.nheads=4", "automl.hours=0.5", "automl.searcher=tpe",
               "automl.seed_from=runs/a b"],
    )  # fmt: skip
    assert same.sweep == sweep
    assert same.space() == read_request(path, flags=flags).space()


def test_every_wish_that_cannot_be_is_told_with_its_place(path: Path) -> None:
    path.write_text("train: {optim: {lrr: 1}}\nautoml:\n  exclude:\n    - lr\n    - nonsense\n  fix: {lr: 3}\n")
    flags = {"params": "lrr,dropuot", "range": ["lr=1:2:log", "lr_backbone=3"], "tier": "broad", "trials": "many"}
    found = problems(path, flags=flags)
    expected = (
        ("`automl.trials` must be a number", "--trials"),
        ("`automl.tier` must be one of narrow", "--tier"),
        ("unknown key `train.optim.lrr`", "mine.yaml:1"),
        ("`train.optim.lr` must be above 0 and at most 0.01, but is 3", "mine.yaml:6"),
        ("`automl.params`: unknown parameter `lrr`; did you mean `lr`?", "--params"),
        ("`automl.params`: unknown parameter `dropuot`", "--params"),
        ("`automl.exclude`: unknown parameter `nonsense`", "mine.yaml:5"),
        ("`automl.ranges`: a range must stay inside", "--range lr=1:2:log"),
        ("`automl.ranges`: a range has the form", "--range lr_backbone=3"),
    )
    for (text, place), problem in zip(expected, sorted(found, key=_order(expected)), strict=True):
        assert problem.startswith(text)
        assert problem.endswith(f"({place})")
    assert "`--range` has the form key=value" in problems(path, flags={"range": ["lr"]})[0]


def test_an_algorithm_sets_searcher_and_scheduler_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("automl:\n  scheduler: median\n")
    assert problems(path, flags={"algorithm": "bohb"}) == [
        "`automl.scheduler` must be left out where `automl.algorithm` sets it, but is median beside bohb; take one of "
        "them away. (mine.yaml:2)"
    ]
    assert read_request(path, ["automl.scheduler=null"], flags={"algorithm": "BOHB"}).sweep.algorithm == "BOHB"


def _order(expected: Sequence[tuple[str, str]]) -> Callable[[str], int]:
    return lambda problem: next((n for n, (text, _) in enumerate(expected) if problem.startswith(text)), -1)


@pytest.fixture
def with_data(digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data.yaml"
    file = digits / "train" / "annotations.json"
    path.write_text(f"dataset: {{train_data_sources: [{{image_dir: /nowhere, json_file: {file}}}]}}\n")
    return path


def test_what_the_annotations_say(with_data: Path) -> None:
    request = read_request(with_data, data=True)
    content = json.loads(Path(request.spec.dataset.train_data_sources[0].json_file or "").read_text())
    assert request.spec.dataset.num_classes == 3
    assert any("dataset.num_classes is 3" in line for line in request.notices())
    boxes = Counter(row["image_id"] for row in content["annotations"])
    most = max(boxes.values())
    assert request.facts == {"images": 24, "most_objects": most, "shortest_side": 48, "longest_side": 48}
    assert read_request(with_data).with_data() == request
    assert read_request(with_data).facts == {}

    stated = read_request(with_data, ["dataset.num_classes=5"], data=True)
    assert stated.spec.dataset.num_classes == 5
    assert not any("num_classes" in line for line in stated.notices())


def test_rules_between_spec_and_data_are_in_the_same_report(with_data: Path) -> None:
    found = problems(with_data, "dataset.batch_size=64", "train.optim.lr=1", "model.num_select=900", data=True)
    assert len(found) == 3
    text = "\n".join(found)
    assert "but is 64 of 24; reduce batch_size or num_gpus. (on the command line)" in text
    assert "`model.num_select` must be below" in text  # 300 x 3
    (few,) = problems(with_data, "dataset.num_classes=2", data=True)
    assert "set dataset.num_classes=3 (max id + 1)" in few
    (none,) = problems(with_data, "dataset.train_data_sources=[]", data=True)
    assert "names no json_file" in none
    (lost,) = problems(with_data, "dataset.train_data_sources.0.json_file=/lost.json", data=True)
    assert "/lost.json" in lost


def test_points_and_lists_in_the_block(path: Path) -> None:
    path.write_text("automl:\n  points:\n    - {train: {optim: {lr: 1e-3}}}\n    - {model.dropout_ratio: 0.1}\n")
    assert read_request(path).sweep.points == ({"train.optim.lr": 1e-3}, {"model.dropout_ratio": 0.1})


def test_other_actions_need_no_network_that_fits_together(path: Path) -> None:
    assert read_request(path, ["model.nheads=7"], action="export").spec.model.nheads == 7
    assert "model.nheads" in problems(path, "model.nheads=7", action="train")[0]


@pytest.mark.parametrize("action", ACTIONS)
def test_templates_are_requests(tmp_path: Path, action: str) -> None:
    (tmp_path / "template.yaml").write_text(packaged.template(action))
    request = read_request(tmp_path / "template.yaml", action=action)
    assert (request.policy, request.sweep) == ("auto", SweepSpec())
    assert 5 <= len(request.space().parameters) <= 7


def test_nothing_but_overrides() -> None:
    assert read_request(None, ["train.num_epochs=3"]).spec.train.num_epochs == 3


def test_the_plain_actions_pass_over_the_automl_keys(path: Path) -> None:
    request = read_request(path, ["automl.fix={lr: 3}", "automl_policy=maybe"], automl=False)
    assert request.sweep == SweepSpec()
    assert request.automl_keys == ("automl_policy", "automl")
    assert request.spec.train.optim.lr == 1e-3


def test_with_values(path: Path) -> None:
    spec = read_request(path).spec
    trial = with_values(spec, {"train.optim.lr": 5e-4, "train.optim.lr_steps": [9]})
    assert (trial.train.optim.lr, trial.train.optim.lr_steps) == (5e-4, (9,))
    assert trial.dataset == spec.dataset
    assert with_values(spec, {}) == spec
    with pytest.raises(SpecError, match="num_select"):
        with_values(spec, {"model.num_select": 900})


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("automl.ranges={lr: [1, N]}", "a range has the form low:high"),
        ("automl.hours=N", "`automl.hours` must be a finite number"),
        ("train.optim.lr=N", "`train.optim.lr` must be a number above 0 and at most 0.01"),
        ("dataset.augmentation.input_mean=[N, 1, 1]", "must be a finite number"),
    ],
)
def test_a_whole_number_that_no_float_holds(word: str, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_request(None, [word.replace("N", "9" * 400)])
    assert rule in str(caught.value)
