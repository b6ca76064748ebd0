"""The files in schemas/: made from the spec classes, and what they promise."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from hpo.build_schemas import ACTIONS, build
from model.spec import ExperimentSpec
from schemas import dotted, packaged, validate, yamlio

DEFAULTS = [
    "dataset.augmentation.horizontal_flip_prob", "dataset.augmentation.train_random_crop_max",
    "dataset.augmentation.train_random_crop_min", "dataset.batch_size", "dataset.workers", "model.dec_layers",
    "model.enc_layers", "model.num_queries", "model.num_select", "train.optim.lr", "train.optim.lr_backbone",
    "train.optim.lr_decay", "train.optim.lr_linear_proj_mult", "train.optim.lr_step_size", "train.optim.momentum",
    "train.optim.weight_decay",
]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    return build()


def test_no_drift(built: dict[str, str]) -> None:
    folder = Path(str(files("schemas")))
    for name, text in built.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name} is out of date: run `make schemas`"
    present = {path.name for pattern in ("*.json", "*.yaml") for path in folder.glob(pattern)}
    assert present == set(built), "files that `make schemas` does not write"


@pytest.mark.parametrize("action", ACTIONS)
def test_schema(action: str) -> None:
    document = packaged.document(action)
    sections = {"dataset", "encryption_key", "model", "model_name", "quantize", "results_dir", "train", "wandb"}
    assert set(document["properties"]) == sections | {action} | ({"deploy"} if action == "train" else set())
    assert document["automl_default_parameters"] == DEFAULTS
    assert document["x_tao_schema"]["action"] == action
    assert "Infinity" not in json.dumps(document)
    odd = [finding for finding in packaged.schema(action).findings if "unbounded" not in finding.text]
    # TAO states this dependence without its rule; ours stands in the overlay and in model/spec.py.
    assert [finding.name for finding in odd] == ["model.num_select"]


@pytest.mark.parametrize("action", ACTIONS)
def test_template_is_valid_and_holds_the_defaults(action: str) -> None:
    data = yamlio.loads(packaged.template(action)).data
    assert data == packaged.document(action)["default"]
    assert validate.check(data, {action: packaged.schema(action)}) == []
    assert ExperimentSpec.from_dict(data) == ExperimentSpec()


@pytest.mark.parametrize("action", ["gen_trt_engine", "evaluate", "inference"])
def test_template_of_an_engine(action: str) -> None:
    data = yamlio.loads(packaged.template(action, deploy=True)).data
    assert validate.check(data, {action: packaged.schema(action)}) == []
    spec = ExperimentSpec.from_dict(data)
    assert spec == ExperimentSpec() if action == "gen_trt_engine" else spec.dataset.batch_size == 1
    # Architecture and preprocessing are the engine's own; only what has to be filled in differs from the defaults.
    assert not {"model", "train", "quantize", "wandb"} & set(data)
    default = packaged.document(action)["default"]
    changed = {name for name, value in dotted.leaves(data) if value != dotted.get(default, name)}
    assert changed == {
        "gen_trt_engine": {"results_dir"},
        "evaluate": {"results_dir", "dataset.batch_size", "dataset.test_data_sources.image_dir",
                     "dataset.test_data_sources.json_file", "evaluate.trt_engine"},
        "inference": {"results_dir", "dataset.batch_size", "dataset.infer_data_sources.image_dir",
                      "inference.trt_engine"},
    }[action]  # fmt: skip
    assert {"???"} == {value for name, value in dotted.leaves(data) if name in ("results_dir", f"{action}.trt_engine")}


def test_titles_and_descriptions_are_written_for_every_key() -> None:
    for action in ACTIONS:
        for leaf in packaged.schema(action).leaves.values():
            assert leaf.title, leaf.name
            assert leaf.doc, leaf.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.augmentation.fixed_random_crop", None), ("dataset.eval_class_ids", None), ("wandb.enable", False),
        ("model.dropout_ratio", 0.3), ("train.optim.lr_steps", [40]), ("model.dim_feedforward", 1024),
        ("train.pretrained_model_path", ""), ("train.optim.lr", 2e-4),
    ],
)  # fmt: skip
def test_defaults_that_matter(name: str, value: object) -> None:
    assert dotted.get(packaged.document("train")["default"], name) == value


def test_what_has_to_be_given() -> None:
    for action, names in {
        "evaluate": ["evaluate.checkpoint"],
        "inference": ["inference.checkpoint"],
        "export": ["export.checkpoint", "export.onnx_file"],
        "gen_trt_engine": ["gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"],
    }.items():
        for name in names:
            assert dotted.get(packaged.document(action)["default"], name) == "???"


def test_manifest() -> None:
    manifest = packaged.manifest()
    assert manifest["automl_enabled"] is True
    assert manifest["metric"] == {"name": "val_mAP50", "goal": "maximize"}
    assert manifest["dataset_type"] == "object_detection"
    assert manifest["formats"] == ["coco", "coco_raw"]
    assert set(manifest["actions"]) == set(ACTIONS)
    assert set(manifest["deploy"]) == {"gen_trt_engine", "evaluate", "inference"}
    names = [part["template"] for part in manifest["deploy"].values()]
    assert names == [f"spec_template_deploy_{action}.yaml" for action in manifest["deploy"]]
