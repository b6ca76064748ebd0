import json
from pathlib import Path
from typing import Any

import pytest

from hpo.cli import DDETR, DIRECT
from hpo.spec import Request, read_request
from model.errors import SpecError
from schemas import dotted

SPEC = """\
model:
  num_select: 100
dataset:
  num_classes: 2
  test_data_sources:
    image_dir: /old/images
    json_file: /old/annotations.json
train:
  num_epochs: 12
  optim:
    lr: 1e-3
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    return path


def read(spec: Path, file: Path, *words: str, **options: Any) -> Request:
    return read_request(spec, words, flags={"overrides_file": file}, **options)


def written(spec: Path, given: Any) -> Path:
    path = spec.with_name("over.json")
    path.write_text(given if isinstance(given, str) else json.dumps(given, indent="\t"))
    return path


def test_dotted_nested_and_short_keys_mean_the_same(spec: Path) -> None:
    sources = [{"image_dir": "/a", "json_file": "/a.json"}, {"image_dir": "/b", "json_file": "/b.json"}]
    flat = {
        "num_epochs": 10, "batch_size": 2, "learning_rate": 1e-4, "dataset.num_classes": 5,
        "dataset.train_data_sources": sources, "dataset.test_data_sources.image_dir": "/new",
        "dataset.augmentation.scales": [96, 128],
    }  # fmt: skip
    nested = {
        "train": {"num_epochs": 10, "optim": {"lr": 1e-4}},
        "dataset": {
            "batch_size": 2, "num_classes": 5, "train_data_sources": sources,
            "test_data_sources": {"image_dir": "/new"}, "augmentation": {"scales": [96, 128]},
        },
    }  # fmt: skip
    found = read(spec, written(spec, flat))
    assert found.raw == read(spec, written(spec, nested)).raw
    assert (found.spec.train.num_epochs, found.spec.dataset.batch_size, found.spec.train.optim.lr) == (10, 2, 1e-4)
    assert [source.image_dir for source in found.spec.dataset.train_data_sources] == ["/a", "/b"]
    # A group is merged: what the file leaves out of it stays the spec's.
    assert dotted.get(found.raw, "dataset.test_data_sources") == {
        "image_dir": "/new", "json_file": "/old/annotations.json",
    }  # fmt: skip
    yaml = spec.with_name("over.yaml")
    yaml.write_text("num_epochs: 10\ntrain.optim: {lr: 1e-4}\n")
    assert read(spec, yaml).spec.train == found.spec.train


def test_the_command_line_wins_over_the_file_and_that_over_the_spec(spec: Path) -> None:
    file = written(spec, {"train.num_epochs": 10, "train.optim.lr": 2e-3})
    found = read(spec, file, "num_epochs=5").spec.train
    assert (found.num_epochs, found.optim.lr) == (5, 2e-3)
    flags = {"overrides_file": written(spec, {"automl.trials": 3, "automl.seed": 1}), "trials": "7"}
    assert read_request(spec, flags=flags).sweep.trials == 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train.num_epochs": 1, "train.optim.lr": 3}, "`train.optim.lr` must be .* but is 3. (over.json:3)"),
        ({"train": {"optim": {"lr": 3}}}, "but is 3. (over.json:4)"),
        ({"dataset.train_data_sources": [{"image_dri": "/a"}]}, "(over.json:4)"),
        ({"train.num_epoch": 1}, "did you mean `train.num_epochs`? (over.json:2)"),
        ({"trian.seed": 1}, "unknown key `trian`; did you mean `train`? (over.json:2)"),
        ({"num_epochs": 1, "train": {"num_epochs": 2}}, "over.json:3: the key `train.num_epochs` is given twice"),
        ({"train..lr": 1}, "over.json:2: a key of an overrides file is a dotted name"),
        ('{"train.num_epochs": 1,\n "train.num_epochs": 2}', "over.json:2: the key `train.num_epochs` is given twice"),
        ("[1]", "over.json: a spec is a group of keys, but this file holds a list"),
        ('{"a": 1,\n"b": }}', "over.json:2: not readable as YAML"),
        ({"automl.trials": 0}, "`automl.trials` must be at least 1, but is 0. (over.json:2)"),
    ],
)
def test_a_mistake_is_told_with_its_place_in_the_file(spec: Path, given: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(spec, written(spec, given))
    start, _, end = words.partition(".*")
    assert start in str(caught.value)
    assert end in str(caught.value)


def test_a_missing_file(spec: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.json cannot be read: No such file"):
        read(spec, spec.with_name("nowhere.json"))


@pytest.mark.parametrize("text", ["<num_classes> + 1", "<object classes> + 1", " <num_classes>+1 "])
@pytest.mark.parametrize("by", ["file", "word"])
def test_classes_are_counted_in_the_annotations(spec: Path, text: str, by: str) -> None:
    rows = [{"id": key, "name": f"kind {key}"} for key in (1, 2, 5)]
    file = spec.with_name("train.json")
    boxes = [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}]
    images = [{"id": each, "file_name": f"{each}.png", "height": 9, "width": 9} for each in (1, 2, 3, 4)]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": rows}))
    given = {"dataset.train_data_sources": [{"image_dir": str(spec.parent), "json_file": str(file)}]}
    words = [f"dataset.num_classes={text}"] if by == "word" else []
    if by == "file":
        given["dataset.num_classes"] = text  # type: ignore[assignment]
    found = read(spec, written(spec, given), *words, data=True)
    assert found.spec.dataset.num_classes == 6
    (line,) = [line for line in found.notices() if "num_classes" in line]
    assert line == (
        "dataset.num_classes is 6: the largest category id of the training data, plus one; no category has id 3, 4, "
        "whose outputs learn nothing"
    )
    # An action on a finished model is told by the model.
    assert not read(spec, written(spec, given), *words, action="evaluate").states_num_classes


def test_overrides_as_hydra_takes_them() -> None:
    words = [
        "+dataset.workers=2", "++train.num_epochs=4", "~train.optim.lr", "model_name='my net'",
        "dataset.eval_class_ids=[1,2,3]", "dataset.train_data_sources=[{image_dir:/a,json_file:/a.json}]",
        "dataset.test_data_sources={image_dir: s3://b/i.tar.gz, json_file: /t.json}",
        "train.freeze=[backbone,input_proj]",
        'dataset.infer_data_sources.image_dir=["/x y/z"]', "model.pretrained_backbone_path=null",
    ]  # fmt: skip
    spec = read_request(None, words, action="evaluate").spec
    assert (spec.dataset.workers, spec.train.num_epochs, spec.train.optim.lr, spec.model_name) == (2, 4, 2e-4, "my net")
    assert spec.dataset.eval_class_ids == (1, 2, 3)
    assert [(each.image_dir, each.json_file) for each in spec.dataset.train_data_sources] == [("/a", "/a.json")]
    assert spec.dataset.test_data_sources.image_dir == "s3://b/i.tar.gz"
    assert spec.dataset.infer_data_sources.image_dir == ("/x y/z",)
    assert spec.train.freeze == ("backbone", "input_proj")


@pytest.mark.parametrize("commands", [DDETR, DIRECT])
def test_every_command_that_takes_keys_takes_a_file_of_them(commands: Any) -> None:
    for command in commands.values():
        assert ("overrides" in command.arguments) == ("overrides-file" in command.arguments)
