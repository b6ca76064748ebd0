"""GC-ViT: published sizes and names, the shapes of every stage, attention against loops, and no chance where frozen."""

import math
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from model.network.detr import DeformableDETR, build
from model.network.gcvit import GC_VITS, Block, GCViT, GlobalQuery, drop_path
from model.spec import ModelSpec
from model.weights import load_backbone

# Millions of parameters that are published (paper, table 1; the release's README).
PUBLISHED = {
    "gc_vit_xxtiny": 12, "gc_vit_xtiny": 20, "gc_vit_tiny": 28, "gc_vit_small": 51, "gc_vit_base": 90,
    "gc_vit_large": 201,
}  # fmt: skip


def detector(**changes: object) -> DeformableDETR:
    sizes = {
        "backbone": "gc_vit_xxtiny", "num_queries": 12, "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 1,
        "dim_feedforward": 48, "dropout_ratio": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return build(ModelSpec(**{**sizes, **changes}), 3, pretrained=False)  # type: ignore[arg-type]


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        body = GCViT(name, (3,))
    # Whole millions are published. The large variant's fits without the classifier (200.5), not with it (202.1).
    classifier = 0 if name == "gc_vit_large" else (body.channels[-1] + 1) * 1000
    millions = (sum(parameter.numel() for parameter in body.parameters()) + classifier) / 1e6
    assert round(millions) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(GC_VITS))
def test_every_stage_has_its_channels_and_stride_at_any_size(name: str) -> None:
    with torch.device("meta"):
        body = GCViT(name, (0, 1, 2, 3)).eval()
        features = body(torch.empty(2, 3, 101, 70))
    width = GC_VITS[name].width
    # Each step rounds up: 101 gives 51, 26, 13, 7, 4.
    sizes = zip((26, 13, 7, 4), (18, 9, 5, 3), strict=True)
    assert [tuple(map_.shape) for map_ in features] == [
        (2, width * 2**stage, height, across) for stage, (height, across) in enumerate(sizes)
    ]
    assert body.channels == tuple(width * 2**stage for stage in range(4))


def test_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        names = set(GCViT("gc_vit_small", (1, 3)).state_dict())
    for name in (
        "patch_embed.proj.bias", "patch_embed.conv_down.conv.0.weight", "patch_embed.conv_down.conv.2.fc.2.weight",
        "patch_embed.conv_down.reduction.weight", "patch_embed.conv_down.norm1.weight",
        "levels.0.downsample.norm2.bias",
        "levels.0.q_global_gen.to_q_global.2.conv.3.weight", "levels.2.q_global_gen.to_q_global.0.conv.2.fc.0.weight",
        "levels.3.blocks.4.attn.qkv.bias", "levels.3.blocks.4.attn.relative_position_bias_table",
        "levels.2.blocks.18.gamma1", "levels.1.blocks.0.mlp.fc1.weight", "levels.0.blocks.1.attn.proj.weight",
        "norm1.weight", "norm3.bias",
    ):  # fmt: skip
        assert name in names
    assert not any(name.startswith(("norm0", "norm2", "levels.3.downsample")) for name in names)
    with torch.device("meta"):
        tiny = GCViT("gc_vit_tiny", (1,)).state_dict()
    assert not any("gamma" in name or name.startswith(("levels.2", "levels.1.downsample")) for name in tiny)
    # The first block of a stage attends by its own queries, the second by the image's.
    assert tiny["levels.0.blocks.0.attn.qkv.weight"].shape[0] == 3 * 64
    assert tiny["levels.0.blocks.1.attn.qkv.weight"].shape[0] == 2 * 64


def attention_by_loops(block: Block, x_HWC: Tensor, query_TC: Tensor | None) -> Tensor:
    """Every window, head and pair of cells in turn; cells beyond the map are zeros that take part."""
    side, attn = block.window, block.attn
    height, width, dim = x_HWC.shape
    per_head = dim // attn.heads
    out = torch.zeros_like(x_HWC)
    for top in range(0, height, side):
        for left in range(0, width, side):
            cells = [(row, column) for row in range(side) for column in range(side)]
            inside = [
                x_HWC[top + row, left + column] if top + row < height and left + column < width else torch.zeros(dim)
                for row, column in cells
            ]
            parts = [attn.qkv(cell).split(dim) for cell in inside]
            for i, (row, column) in enumerate(cells):
                if top + row >= height or left + column >= width:
                    continue
                query = parts[i][0] if query_TC is None else query_TC[i]
                mixed = []
                for head in range(attn.heads):
                    at = slice(head * per_head, (head + 1) * per_head)
                    scores = [
                        query[at] @ part[-2][at] / math.sqrt(per_head)
                        + attn.relative_position_bias_table[
                            (row - other_row + side - 1) * (2 * side - 1) + column - other_column + side - 1, head
                        ]
                        for part, (other_row, other_column) in zip(parts, cells, strict=True)
                    ]
                    share = torch.stack(scores).softmax(0)
                    mixed.append(sum(share[j] * part[-1][at] for j, part in enumerate(parts)))
                out[top + row, left + column] = attn.proj(torch.cat(mixed))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("by_global_query", [False, True])
@torch.no_grad()
def test_window_attention_equals_loops(by_global_query: bool) -> None:
    """Two images of 5 x 4 cells in windows of 3: four windows, three of them filled up."""
    block = Block(8, 2, 3, 2, by_global_query=by_global_query, scale=None, drop=0.0)
    shaken(block)
    x, query = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 8)
    fast = block._attend(x, query)
    for image in range(2):
        slow = attention_by_loops(block, x[image], query[image] if by_global_query else None)
        torch.testing.assert_close(fast[image], slow, rtol=1e-4, atol=1e-5)


def test_a_global_query_of_the_published_resolution_is_not_resized() -> None:
    """56 cells are halved three times, to one window of 7: the last map itself."""
    module = GlobalQuery(8, 3, 7).eval()
    x = torch.randn(1, 56, 56, 8)
    expected = module.to_q_global(x.permute(0, 3, 1, 2))[0].permute(1, 2, 0).reshape(49, 8)
    torch.testing.assert_close(module(x)[0], expected)
    assert module(torch.randn(1, 30, 41, 8)).shape == (1, 49, 8)


@pytest.mark.parametrize("indices", [(1, 2, 3, 4), (0, 2)])
def test_every_parameter_trains(indices: tuple[int, ...]) -> None:
    network = detector(num_feature_levels=len(indices), return_interm_indices=indices).eval()  # no path is dropped
    shaken(network)
    final = network(torch.randn(2, 3, 70, 90)).final
    (final.logits.sum() + final.boxes.square().sum()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    body = network.backbone.get_submodule("0.body")
    assert all(parameter.grad.abs().sum() > 0 for parameter in body.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("trains", "repeats"), [(True, False), (False, True)])
def test_a_frozen_backbone_leaves_nothing_to_chance(trains: bool, repeats: bool) -> None:
    network = detector(train_backbone=trains).train()
    pixels = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        first, second = network.backbone(pixels)[-1], network.backbone(pixels)[-1]
    assert torch.equal(first, second) == repeats


def test_dropped_paths_keep_the_mean() -> None:
    torch.manual_seed(0)
    assert drop_path(torch.ones(3, 1, 1, 1), 0.0).tolist() == torch.ones(3, 1, 1, 1).tolist()
    dropped = drop_path(torch.ones(20_000, 1, 1, 2), 0.2)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    # 20,000 draws of 0 or 1.25: the mean has sd 0.0035, so 0.02 is over 5 sd, below one in a million
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropped[..., 0], dropped[..., 1])


def test_the_other_spelling_means_the_same_network() -> None:
    assert ModelSpec(backbone="gcvit_large_384") == ModelSpec(backbone="gc_vit_large_384")
    assert isinstance(detector(backbone="gcvit_xxtiny").backbone.get_submodule("0.body"), GCViT)


def test_a_published_classifiers_file_fills_all_but_the_output_normalisations(tmp_path: Path) -> None:
    """Its file holds the last stage's normalisation under another name, the classifier, and one buffer a block."""
    state = GCViT("gc_vit_xxtiny", (3,)).state_dict()
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = state.pop(f"norm3.{kind}")
        state[f"head.{kind}"] = torch.zeros(1000)
    buffers = {f"{name.rpartition('.')[0]}.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)
               for name in state if name.endswith("bias_table")}  # fmt: skip
    path = tmp_path / "classifier.pth.tar"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in (state | buffers).items()}}, path)
    network = detector()
    report = load_backbone(network, path)
    assert report.missing == [f"norm{stage}.{kind}" for stage in (1, 2, 3) for kind in ("bias", "weight")]
    assert not report.mismatched
    stem = network.get_parameter("backbone.0.body.patch_embed.proj.weight")
    assert torch.equal(stem, state["patch_embed.proj.weight"])


def test_onnx_of_any_batch_equals_torch(tmp_path: Path) -> None:
    body = GCViT("gc_vit_xxtiny", (1, 2)).eval()
    shaken(body)
    path = tmp_path / "body.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer tells of every size that becomes a constant, as it should
        torch.onnx.export(
            body, (torch.randn(1, 3, 96, 80),), path, dynamo=False, opset_version=17, input_names=["pixels"],
            output_names=["a", "b"], dynamic_axes={name: {0: "batch"} for name in ("pixels", "a", "b")},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, 96, 80)
        with torch.no_grad():
            expected = body(pixels)
        for mine, theirs in zip(expected, session.run(None, {"pixels": pixels.numpy()}), strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), rtol=1e-4, atol=1e-4)
