"""Our generated schemas against TAO's field table (tao_fields.yaml): every difference is meant, noted, or an error."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.build_schemas import ACTIONS
from schemas import packaged

TABLE: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("tao_fields.yaml").read_text(encoding="utf-8")
)
WORDS = ("type", "default", "minimum", "maximum", "enum", "math_cond", "depends_on", "pattern", "required", "popular",
         "automl", "parent")  # fmt: skip
KEYS = {"automl": "automl_enabled", "parent": "parent_param"}
"""Word of the table -> key of a schema, where they differ."""

DIFFERENT: Mapping[tuple[str, str], Any] = {
    ("dataset.eval_class_ids", "default"): None,
    ("dataset.augmentation.fixed_random_crop", "default"): None,
    ("inference.input_height", "default"): None,
    ("inference.input_width", "default"): None,
    ("export.input_height", "default"): 640,
    ("export.input_width", "default"): 640,
    ("wandb.enable", "default"): False,
    ("train.precision", "enum"): ["fp16", "fp32", "bf16"],
}
"""(field, word of the table) -> what ours says instead."""
WIDER = {"model.backbone"}
"""Fields whose choices are those of the table and more."""
ADDED = {
    "dataset.augmentation.pad_size_divisor", "model.two_stage", "train.keep_checkpoints", "train.optim.lr_drop",
    "train.optim.warmup_steps", "train.per_forward", "evaluate.latency_batch_sizes",
    "export.attention", "export.input_dtype", "export.overwrite", "export.postprocess",
    "gen_trt_engine.tensorrt.calibration.method",
    "deploy", "deploy.accuracy_slack", "deploy.calibration_images", "deploy.max_drop", "deploy.max_drop.fp16",
    "deploy.max_drop.fp32", "deploy.max_drop.int8", "deploy.max_latency_ms", "deploy.objective", "deploy.precisions",
}  # fmt: skip
"""Fields of ours that the table lacks."""


def nodes(properties: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, node in properties.items():
        name = f"{path}.{key}" if path else key
        yield name, node
        yield from nodes(node.get("properties", {}), name)


def ours(action: str) -> dict[str, Mapping[str, Any]]:
    return dict(nodes(packaged.document(action)["properties"]))


def of_table(action: str) -> dict[str, Mapping[str, Any]]:
    def belongs(name: str) -> bool:
        section = name.split(".")[0]
        return section == action or section not in ACTIONS or section in ("train", "quantize")

    return {name: row for name, row in TABLE.items() if belongs(name)}


def stated(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a schema of ours would say it: an infinite maximum is none, in strict JSON."""
    words = {word: value for word, value in row.items() if value != math.inf}
    return {**words, **({"parent": "TRUE"} if row.get("parent") else {})}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_fields_are_those_of_the_table(action: str) -> None:
    assert of_table(action).keys() <= ours(action).keys()
    added = ours(action).keys() - of_table(action).keys()
    assert added == {name for name in ADDED if name.split(".")[0] in packaged.document(action)["properties"]}


@pytest.mark.parametrize("action", ACTIONS)
def test_every_fact_is_that_of_the_table_or_a_difference_that_is_meant(action: str) -> None:
    found: dict[tuple[str, str], Any] = {}
    mine = ours(action)
    for name, row in of_table(action).items():
        said, table = mine[name], stated(row)
        for word in WORDS:
            value = said.get(KEYS.get(word, word))
            if word == "default" and word not in table:
                wrong = "properties" not in said and value not in (None, {}) and row["type"] != "collection"
            elif word == "enum" and name in WIDER:
                wrong = not set(table[word]) < set(value)
            elif isinstance(value, list) and word != "default":
                wrong = set(value) != set(table.get(word) or ())
            else:
                wrong = value != table.get(word) or isinstance(value, bool) != isinstance(table.get(word), bool)
            if wrong:
                found[name, word] = value
    sections = set(packaged.document(action)["properties"])
    assert found == {key: value for key, value in DIFFERENT.items() if key[0].split(".")[0] in sections}


def test_every_difference_has_a_note_beside_its_field() -> None:
    everything = {name: node for action in ACTIONS for name, node in ours(action).items()}
    noted = {name for name, node in everything.items() if node.get("x_note")}
    assert noted == {name for name, _ in DIFFERENT} | WIDER | ADDED


@pytest.mark.parametrize("action", ACTIONS)
def test_the_lists_at_the_root(action: str) -> None:
    document, table = packaged.document(action), of_table(action)
    for key, flag in (("automl_default_parameters", True), ("automl_disabled_parameters", False)):
        assert set(document[key]) - ADDED == {name for name, row in table.items() if row.get("automl") is flag}
    popular = {name for name, node in nodes(document["properties"]) if node.get("popular") is True}
    assert popular == {name for name, row in table.items() if row.get("popular") is True}
    at_root: dict[str, Any] = document["popular"]
    assert {name.rsplit(".", 1)[0] for name in popular} <= set(groups_of(at_root))


def groups_of(nested: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in nested.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            yield name
            yield from groups_of(value, name)


def test_no_words_of_the_table_go_unread() -> None:
    assert {word for row in TABLE.values() for word in row} == set(WORDS)
