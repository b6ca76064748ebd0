"""Weights of other programs, made here under their names: every tensor arrives where its name says, or is reported."""

import argparse
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.batch import padding_mask
from model.errors import CheckpointError
from model.network.detr import DeformableDETR, build
from model.spec import ExperimentSpec, ModelSpec, TrainSpec
from model.weights import fit, load_backbone, load_detector, start

SMALL = ModelSpec(
    backbone="resnet_18", num_queries=100, hidden_dim=32, nheads=4, enc_layers=2, dec_layers=3, dim_feedforward=48
)
FORMS = {
    "plain": {"with_box_refine": False},
    "refined": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}
Saver = Callable[[Any], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saver:
    def save(content: Any) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return save


def network(classes: int = 5, **model: Any) -> DeformableDETR:
    return build(replace(SMALL, **model), classes, pretrained=True)


def learnt(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state that no initialisation gives. Modules under several names keep one value, as they would in training."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
        for buffer in filter(torch.is_floating_point, module.buffers()):
            buffer.uniform_(0.5, 2)
    return {name: value.clone() for name, value in module.state_dict().items()}


def shuffled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In another order: position must mean nothing."""
    names = sorted(state)
    random.Random(4).shuffle(names)
    return {name: state[name] for name in names}


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the original repository stores it: heads a second time below the decoder."""
    copies = {f"transformer.decoder.{n}": v for n, v in state.items() if n.startswith("bbox_embed.")}
    if "transformer.enc_output.weight" in state:
        copies |= {f"transformer.decoder.{n}": v for n, v in state.items() if n.startswith("class_embed.")}
    return shuffled({**state, **copies})


def assert_holds(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    mine = module.state_dict()
    assert {name for name in mine if not torch.equal(mine[name], state[name])} == set()


def torchvision_resnet50() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of torchvision's resnet50 (timm's are the same), written from its definition."""

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (width,)
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    inside = 64
    for layer, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            shapes = ((width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for number, shape in enumerate(shapes, start=1):
                yield f"{prefix}.conv{number}.weight", shape
                yield from norm(f"{prefix}.bn{number}", shape[0])
            if block == 0:
                yield f"{prefix}.downsample.0.weight", (4 * width, inside, 1, 1)
                yield from norm(f"{prefix}.downsample.1", 4 * width)
            inside = 4 * width
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torchvision": lambda state: state,
    "timm": lambda state: {"state_dict": state, "arch": "resnet50", "metric": np.float64(80.4)},
    "NGC": lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 90},
    "MMLab": lambda state: {"meta": {}, "state_dict": {f"backbone.{n}": v for n, v in state.items()}},
    "original": lambda state: {"model": {f"backbone.0.body.{n}": v for n, v in state.items()}},
    "TAO": lambda state: {"state_dict": {f"model.model.backbone.0.body.{n}": v for n, v in state.items()}},
}


@pytest.mark.parametrize("program", WRAPPINGS)
def test_a_resnet50_of_each_program_fills_the_backbone(program: str, saved: Saver) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.rand(shape, generator=generator) for name, shape in torchvision_resnet50()}
    assert len(state) == 320  # of torchvision's resnet50
    model = network(backbone="resnet_50")
    report = load_backbone(model, saved(WRAPPINGS[program](shuffled(state))))
    assert_holds(model.get_submodule("backbone.0.body"), state)
    assert (report.missing, report.mismatched) == ([], {})
    assert report.unexpected == ["fc.bias", "fc.weight"]
    assert len(report.matched) == 53 + 4 * 53


def test_a_safetensors_backbone_is_known_by_content_not_by_suffix(tmp_path: Path) -> None:
    state = learnt(network().get_submodule("backbone.0.body"))
    save_file(state, tmp_path / "resnet18.bin")
    model = network()
    load_backbone(model, tmp_path / "resnet18.bin")
    assert_holds(model.get_submodule("backbone.0.body"), state)


@pytest.mark.parametrize("form", FORMS)
def test_the_original_repositorys_checkpoints(form: str, saved: Saver) -> None:
    state = learnt(network(**FORMS[form]))
    content = {
        "model": published(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
        "lr_scheduler": {"last_epoch": 49},
        "epoch": 49,
        "args": argparse.Namespace(lr=2e-4, lr_backbone_names=["backbone.0"], output_dir=""),
    }
    model = network(**FORMS[form])
    report = load_detector(model, saved(content))
    assert_holds(model, state)
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], {})


@pytest.mark.parametrize("form", FORMS)
def test_taos_lightning_checkpoints(form: str, saved: Saver) -> None:
    state = learnt(network(**FORMS[form]))
    wrapped = {f"model.model.{name}": value for name, value in published(state).items()}
    content = {"epoch": 3, "global_step": 40, "state_dict": wrapped, "optimizer_states": [], "loops": {}}
    model = network(**FORMS[form])
    report = load_detector(model, saved(content))
    assert_holds(model, state)
    assert report.wrapper == "model.model."
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], {})


def test_our_own_checkpoint_trained_from_scratch(saved: Saver) -> None:
    """Its BatchNorm was live; here it is frozen, under the same names."""
    source = build(SMALL, 5, pretrained=False)
    state = learnt(source)
    model = network()
    report = load_detector(model, saved({"state_dict": {f"model.{name}": value for name, value in state.items()}}))
    assert_holds(model, state)
    assert (report.missing, report.unexpected) == ([], [])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_hugging_face_files_give_the_same_answers(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers' own detector, saved by itself: tied heads stand in the file once."""
    pytest.importorskip("transformers", reason="transformers is not installed: it makes the file")
    sys.path.insert(0, str(Path(__file__).parent / "network"))
    request.addfinalizer(lambda: sys.path.remove(str(Path(__file__).parent / "network")))
    import test_transformers_parity as parity

    theirs = parity.peer(refine=form != "plain", two_stage=form == "two-stage")
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    spec, _ = parity.ours(theirs, refine=form != "plain", two_stage=form == "two-stage")
    model = build(spec, parity.CLASSES, pretrained=True).eval()
    report = load_detector(model, tmp_path / "model.safetensors")
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], {})

    torch.manual_seed(2)
    mask = padding_mask(torch.tensor([[96, 128], [77, 101]]), 96, 128)
    pixels = torch.randn(2, 3, 96, 128).masked_fill(mask[:, None], 0.0)
    expected, found = theirs(pixel_values=pixels, pixel_mask=(~mask).long()), model(pixels, mask)
    assert (expected.logits - found.final.logits).abs().max() < 1e-4
    assert (expected.pred_boxes - found.final.boxes).abs().max() < 1e-4


def test_hugging_face_files_with_a_timm_backbone() -> None:
    """As they were published: torchvision's names below `conv_encoder`."""
    state = learnt(network())
    theirs: dict[str, Tensor] = {"model.decoder.layers.0.encoder_attn.value_proj.bias": torch.zeros(1)}
    for name, value in state.items():
        if name.startswith("backbone.0.body."):
            theirs[name.replace("backbone.0.body.", "model.backbone.conv_encoder.model.")] = value
    model = network()
    filled, _ = fit(model.get_submodule("backbone.0.body"), shuffled(theirs))
    assert all(torch.equal(state[f"backbone.0.body.{name}"], value) for name, value in filled.items())
    assert len(filled) == len(model.get_submodule("backbone.0.body").state_dict())


def test_a_gc_vit_classifier_fills_the_backbone(saved: Saver) -> None:
    model = network(backbone="gc_vit_xxtiny", return_interm_indices=(0, 1, 2, 3))
    body = model.get_submodule("backbone.0.body")
    classifier = {name: value for name, value in learnt(body).items() if not re.match(r"norm\d", name)}
    extra = {"norm.weight": torch.ones(512), "head.weight": torch.ones(1000, 512), "head.bias": torch.ones(1000)}
    fresh = network(backbone="gc_vit_xxtiny", return_interm_indices=(0, 1, 2, 3))
    report = load_backbone(fresh, saved({"state_dict": shuffled({**classifier, **extra}), "epoch": 300}))
    assert report.unexpected == sorted(extra)
    assert all(re.match(r"norm\d", name) for name in report.missing)
    mine = fresh.get_submodule("backbone.0.body").state_dict()
    assert all(torch.equal(mine[name], value) for name, value in classifier.items())


@pytest.mark.parametrize("form", FORMS)
def test_another_class_count_starts_the_class_heads_anew_and_says_so(
    form: str, saved: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    state = learnt(network(91, **FORMS[form]))
    model = network(3, **FORMS[form])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        report = load_detector(model, saved({"model": published(state)}))
    heads = {name for name in before if name.startswith("class_embed.")}
    assert set(report.mismatched) == heads
    assert_holds(model, {**state, **{name: before[name] for name in heads}})
    assert "the class heads start anew" in caplog.text
    assert "(91,) in the file, (3,) here" in caplog.text


def test_every_load_prints_counts_and_first_names(saved: Saver, caplog: pytest.LogCaptureFixture) -> None:
    state = learnt(network())
    del state["transformer.level_embed"]
    state["query_embed.weight"] = torch.zeros(7, 64)
    state["mask_head.weight"] = torch.zeros(1)
    with caplog.at_level(logging.INFO):
        load_detector(network(), saved({"model": state}))
    wanted = len(network().state_dict())
    assert f"{wanted - 2} matched, 1 missing, 1 unexpected, 1 of another shape" in caplog.text
    assert "missing: transformer.level_embed" in caplog.text
    assert "unexpected: mask_head.weight" in caplog.text
    assert "query_embed.weight ((7, 64) in the file, (100, 64) here)" in caplog.text
    assert "2 other tensors keep their random start" in caplog.text


def test_layers_are_taken_by_name_when_the_counts_differ(saved: Saver) -> None:
    state = learnt(network(dec_layers=4))
    model = network(dec_layers=3)
    report = load_detector(model, saved({"model": published(state)}))
    assert_holds(model, state)
    assert any(name.startswith("transformer.decoder.layers.3.") for name in report.unexpected)


def test_a_wrong_file_is_an_error_not_a_random_start(saved: Saver) -> None:
    model = network(enc_layers=6, dec_layers=6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"at least 90% .* fills \d+%; (.|\n)*missing: ") as error:
        load_detector(model, saved({"model": learnt(network(enc_layers=1, dec_layers=1))}))
    assert "transformer.decoder.layers.1." in str(error.value)
    assert_holds(model, before)
    with pytest.raises(CheckpointError, match="fills 0%"):
        load_backbone(model, saved({"state_dict": {"embedding.weight": torch.ones(3)}}))


def test_start_reads_what_the_spec_names(saved: Saver, caplog: pytest.LogCaptureFixture) -> None:
    state = learnt(network())
    path = str(saved({"model": state}))
    model = network()
    start(model, ExperimentSpec(model=replace(SMALL, pretrained_backbone_path=path)))
    body = {n.removeprefix("backbone.0.body."): v for n, v in state.items() if n.startswith("backbone.")}
    assert_holds(model.get_submodule("backbone.0.body"), body)
    assert not torch.equal(model.state_dict()["transformer.level_embed"], state["transformer.level_embed"])
    start(model, ExperimentSpec(model=SMALL, train=TrainSpec(pretrained_model_path=path)))
    assert_holds(model, state)
    assert "random" not in caplog.text


def test_starting_without_weights_warns_and_trains_the_stem(caplog: pytest.LogCaptureFixture) -> None:
    model = build(SMALL, 5, pretrained=False)
    start(model, ExperimentSpec(model=SMALL))
    assert "no pretrained weights: the whole backbone, its stem" in caplog.text
    assert all(parameter.requires_grad for parameter in model.get_submodule("backbone.0.body").parameters())
