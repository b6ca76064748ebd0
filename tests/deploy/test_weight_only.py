"""Eight-bit weights: which layers, how far from what they were, and a file that every reader of checkpoints takes."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.layer_rules import Rule, rules
from deploy.weight_only import TorchaoMissing, choose, quantise
from model.checkpoint import KEY, load_model, read_checkpoint
from model.errors import CheckpointError
from model.tensorfile import read_raw
from model.weights import load_detector

ENCODER = "transformer.encoder.layers.0"


def layer(pattern: str, dtype: str, **more: Any) -> dict[str, Any]:
    return {"module_name": pattern, "weights": {"dtype": dtype}, **more}


@pytest.fixture
def small(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny detector with `layers` quantised."""

    def make(*layers: dict[str, Any], source: Path = checkpoint) -> Path:
        model, read = load_model(source)
        target = tmp_path / "small" / "quantised.pth"
        quantise(model, read, choose(model, rules(layers)), target)
        return target

    return make


def linears(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.weight.detach() for name, each in model.named_modules() if isinstance(each, nn.Linear)}


def test_int8_is_within_half_a_step_of_each_row(checkpoint: Path, small: Callable[..., Path]) -> None:
    before, after = linears(load_model(checkpoint)[0]), linears(load_model(small())[0])
    assert before.keys() == after.keys()
    for name, weight in before.items():
        step = weight.abs().amax(1, keepdim=True) / 127.5
        assert float(((after[name] - weight).abs() - step / 2).max()) < 1e-6, name
        assert not torch.equal(after[name], weight), name


def test_fp8_is_within_a_sixteenth_of_each_weight(checkpoint: Path, small: Callable[..., Path]) -> None:
    before, after = linears(load_model(checkpoint)[0]), linears(load_model(small(layer("*", "fp8_e4m3fn")))[0])
    for name, weight in before.items():
        least = weight.abs().amax(1, keepdim=True) / 448 * 2**-10  # half of the smallest step
        assert bool(((after[name] - weight).abs() <= weight.abs() / 16 + least + 1e-9).all()), name


def test_a_row_of_zeros_stays_one(checkpoint: Path, tmp_path: Path) -> None:
    model, source = load_model(checkpoint)
    name = f"{ENCODER}.linear1"
    model.get_submodule(name).weight.data[2] = 0.0
    state = {**source.state, f"{name}.weight": model.get_submodule(name).weight.detach()}
    for dtype in ("int8", "fp8_e4m3fn"):
        target = tmp_path / f"{dtype}.pth"
        made = quantise(model, replace(source, state=state), {name: dtype}, target)
        assert made.error < 0.04
        assert read_checkpoint(target).state[f"{name}.weight"][2].tolist() == [0.0] * 32


def test_what_is_not_chosen_stays_bit_for_bit(checkpoint: Path, small: Callable[..., Path]) -> None:
    path = small(layer(f"{ENCODER}.*", "int8"), layer("*.linear2", "native"))
    before, after = read_checkpoint(checkpoint), read_checkpoint(path)
    changed = {name for name, value in before.state.items() if not torch.equal(value, after.state[name])}
    assert changed == {f"{name}.weight" for name in after.quantised}
    assert f"{ENCODER}.linear1" in after.quantised
    assert f"{ENCODER}.linear2" not in after.quantised
    assert (after.spec, after.classes, after.epoch) == (before.spec, before.classes, before.epoch)
    assert after.metrics == {}  # measured with other weights


def test_the_file_holds_bytes_and_says_where_they_come_from(checkpoint: Path, small: Callable[..., Path]) -> None:
    raw = read_raw(small(layer("Linear", "int8"), layer("class_embed.0", "float8_e4m3fn")))
    kinds = {name: value.dtype for name, value in raw["state_dict"].items()}
    assert kinds[f"model.{ENCODER}.linear1.weight"] == torch.int8
    assert kinds["model.class_embed.0.weight"] == torch.float8_e4m3fn
    assert kinds[f"model.{ENCODER}.linear1.bias"] == torch.float32
    said = json.loads(raw[KEY])["quantised"]
    assert said["layers"]["class_embed.0"] == "fp8_e4m3fn"
    assert (said["from"], said["sha256"]) == (checkpoint.name, read_checkpoint(checkpoint).sha256)
    assert said["metrics"] == {"val_mAP50": 0.25}


CASES: dict[str, tuple[list[dict[str, Any]], list[str], dict[str, str]]] = {
    "later rules count": ([layer("a.*", "int8"), layer("a.1", "fp8_e4m3fn")], [], {"a.0": "int8", "a.1": "fp8_e4m3fn"}),
    "the class": ([layer("Linear", "int8")], ["a.*"], {"b": "int8"}),
    "native": ([layer("*", "int8"), layer("a.?", "native")], [], {"b": "int8"}),
    "none: all": ([], [], {"a.0": "int8", "a.1": "int8", "b": "int8"}),
    "e5m2 becomes e4m3": ([layer("b", "fp8_e5m2")], [], {"b": "fp8_e4m3fn"}),
    "activations are passed over": ([layer("b", "int8", activations={"dtype": "int8"})], [], {"b": "int8"}),
}


def toy() -> nn.Module:
    shape = {"a": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "b": nn.Linear(2, 2), "c": nn.Conv2d(1, 1, 1)}
    return nn.ModuleDict(shape)


@pytest.mark.parametrize("case", CASES)
def test_which_layers(case: str) -> None:
    layers, skipped, expected = CASES[case]
    assert choose(toy(), rules(layers), skipped) == expected


@pytest.mark.parametrize(
    ("layers", "skipped", "words"),
    [
        (
            [layer("d.*", "int8")],
            [],
            r"`quantize\.layers` must fit .* as Linear, but `d\.\*` fits none of 3, such as a\.0",
        ),
        ([layer("c", "int8")], [], r"`quantize\.layers` must fit a layer"),
        ([], ["lm_head"], r"`quantize\.skip_names` must fit .* `lm_head`"),
        ([layer("*", "native")], [], "must leave something to quantise"),
        ([layer("*", "int4")], [], r"one of int8, fp8_e4m3fn, .*native, but one is \{'module_name'"),
        ([{"module_name": "*"}], [], r"must have a module_name and weights\.dtype"),
        (["Linear"], [], r"must have a module_name and weights\.dtype"),
    ],
)
def test_what_fits_nothing_or_cannot_be_read(layers: list[Any], skipped: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(toy(), rules(layers), skipped)


def test_heads_that_layers_share_are_one(other_checkpoint: Callable[..., Path], small: Callable[..., Path]) -> None:
    shared = other_checkpoint(with_box_refine=False)
    path = small(layer("class_embed.0", "int8"), source=shared)
    after = read_checkpoint(path)
    assert set(after.quantised) == {"class_embed.0", "class_embed.1"}
    assert torch.equal(after.state["class_embed.0.weight"], after.state["class_embed.1.weight"])
    weight = load_model(path)[0].class_embed[0].weight
    assert torch.equal(weight, after.state["class_embed.0.weight"])


def test_reading_needs_no_torchao_and_making_names_it(
    checkpoint: Path, small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small()
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model, source = load_model(path)
    assert len(source.quantised) == len(linears(model))
    with pytest.raises(TorchaoMissing, match=r"pip install 'ddetr-automl\[quantize\]'"):
        quantise(model, source, {f"{ENCODER}.linear1": "int8"}, tmp_path / "no.pth")
    assert not list(tmp_path.glob("*no.pth*"))


def test_a_training_starts_from_what_the_bytes_stand_for(checkpoint: Path, small: Callable[..., Path]) -> None:
    path = small()
    model, _ = load_model(checkpoint)
    load_detector(model, path)
    for name, weight in linears(model).items():
        assert torch.equal(weight, read_checkpoint(path).state[f"{name}.weight"])


@pytest.mark.parametrize("change", ["none", "one less", "another shape"])
def test_scales_of_other_weights_are_refused(change: str, small: Callable[..., Path]) -> None:
    path = small()
    raw = read_raw(path)
    name = f"model.{ENCODER}.linear1.weight"
    scales = raw.pop("scales")
    if change == "one less":
        del scales[name]
    if change == "another shape":
        scales[name] = scales[name][:3]
    torch.save(raw if change == "none" else {**raw, "scales": scales}, path)
    with pytest.raises(CheckpointError, match="must hold the scales of its eight-bit weights"):
        read_checkpoint(path)


def test_rules_are_what_was_written() -> None:
    assert rules([layer("a", "float8_e4m3fn"), layer("b", "native")]) == (Rule("a", "fp8_e4m3fn"), Rule("b", "native"))
