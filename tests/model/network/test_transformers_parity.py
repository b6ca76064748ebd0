"""Our detector against transformers' own, built here with random weights that are copied over by name.

Where the two differ on purpose, the test says so: see `peer`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.batch import Target, padding_mask
from model.foreign import from_hugging_face, is_hugging_face
from model.network.criterion import Criterion
from model.network.detr import DeformableDETR, Output, build
from model.network.matcher import match
from model.spec import ModelSpec

transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
loss_module = pytest.importorskip("transformers.loss.loss_deformable_detr")

CLASSES, QUERIES, HEIGHT, WIDTH = 5, 12, 96, 128
TOLERANCE = 1e-4


def peer(*, refine: bool, two_stage: bool = False) -> Any:
    """transformers' detector: ResNet-50, four levels, two layers each; every weight random, heads apart.

    It starts without dropout, as ours runs in evaluation mode; its class cost, 1 as it ships, becomes the paper's 2.
    """
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, num_queries=QUERIES,
        d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, encoder_n_points=3, decoder_n_points=4, num_feature_levels=4,
        with_box_refine=refine, two_stage=two_stage, two_stage_num_proposals=QUERIES, num_labels=CLASSES, class_cost=2,
        auxiliary_loss=True,
    )  # fmt: skip
    torch.manual_seed(7)
    network = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "backbone" not in name:  # no value may be one that hides an error: a zero, or the same in two layers
                parameter.add_(0.08 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
    return network


def ours(network: Any, *, refine: bool, two_stage: bool = False) -> tuple[ModelSpec, DeformableDETR]:
    spec = ModelSpec(
        num_queries=QUERIES, hidden_dim=64, nheads=4, enc_layers=2, dec_layers=2, dim_feedforward=96, enc_n_points=3,
        dec_n_points=4, with_box_refine=refine, two_stage=two_stage,
    )  # fmt: skip
    state = network.state_dict()
    assert is_hugging_face(state)
    copy = build(spec, CLASSES, pretrained=True).eval()
    copy.load_state_dict(from_hugging_face(state), strict=True)
    return spec, copy


def photographs() -> tuple[Tensor, Tensor]:
    """Pixels (2, 3, H, W) and their mask: one image fills the batch's size, the other is padded on both sides."""
    mask = padding_mask(torch.tensor([[HEIGHT, WIDTH], [77, 101]]), HEIGHT, WIDTH)
    return torch.randn(2, 3, HEIGHT, WIDTH).masked_fill(mask[:, None], 0.0), mask


def truth() -> list[Target]:
    counts = (3, 1)
    return [
        Target(torch.randint(CLASSES, (count,)), torch.rand(count, 4) * 0.4 + 0.1, image, (HEIGHT, WIDTH))
        for image, count in enumerate(counts)
    ]


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
@torch.no_grad()
def test_predictions_losses_and_matches_are_transformers(refine: bool) -> None:
    network = peer(refine=refine)
    spec, copy = ours(network, refine=refine)
    pixels, mask = photographs()
    targets = truth()
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    theirs = network(pixel_values=pixels, pixel_mask=(~mask).long(), labels=labels)
    mine = copy(pixels, mask)

    assert difference(theirs.logits, mine.final.logits) < TOLERANCE
    assert difference(theirs.pred_boxes, mine.final.boxes) < TOLERANCE
    for early, late in zip(theirs.auxiliary_outputs, mine.auxiliary, strict=True):
        assert difference(early["logits"], late.logits) < TOLERANCE
        assert difference(early["pred_boxes"], late.boxes) < TOLERANCE
    assert theirs.logits.std() > 0.1  # else any two networks would agree

    losses = Criterion(spec, CLASSES)(mine, targets)
    terms = {name: value for name, value in theirs.loss_dict.items() if not name.startswith("cardinality_error")}
    assert set(terms) == set(losses.terms) - {"class_error"}
    for name, value in terms.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=TOLERANCE), name
    assert_same_matches(spec, theirs, mine, targets, labels)


@torch.no_grad()
def test_two_stage_predictions_and_proposals_are_transformers() -> None:
    """Predictions only: its two-stage form gives the encoder's proposals no loss, and so cannot be trained."""
    network = peer(refine=True, two_stage=True)
    _, copy = ours(network, refine=True, two_stage=True)
    pixels, mask = photographs()
    theirs = network(pixel_values=pixels, pixel_mask=(~mask).long())
    mine = copy(pixels, mask)
    assert difference(theirs.logits, mine.final.logits) < TOLERANCE
    assert difference(theirs.pred_boxes, mine.final.boxes) < TOLERANCE
    assert mine.proposals is not None
    assert difference(theirs.enc_outputs_class, mine.proposals.logits) < TOLERANCE
    assert difference(theirs.enc_outputs_coord_logits.sigmoid(), mine.proposals.boxes) < TOLERANCE


def assert_same_matches(
    spec: ModelSpec, theirs: Any, mine: Output, targets: list[Target], labels: list[dict[str, Tensor]]
) -> None:
    matcher = loss_module.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    layers = (*mine.auxiliary, mine.final)
    logits, boxes = torch.stack([layer.logits for layer in layers]), torch.stack([layer.boxes for layer in layers])
    matches = match(logits, boxes, targets, Criterion(spec, CLASSES).costs)
    starts = [0, len(targets[0].labels)]
    outputs = [*theirs.auxiliary_outputs, {"logits": theirs.logits, "pred_boxes": theirs.pred_boxes}]
    for layer, output in enumerate(outputs):
        expected = {
            (image, int(query), int(target) + starts[image])
            for image, pairs in enumerate(matcher(output, labels))
            for query, target in zip(*pairs, strict=True)
        }
        assert set(zip(*(tensor[layer].tolist() for tensor in matches), strict=True)) == expected


def test_older_releases_names_are_known_too() -> None:
    """Files on the hub were written with other names for the same tensors: undo what newer releases renamed."""
    state = peer(refine=True).state_dict()
    old_names = {"mlp.fc": "fc", "o_proj": "out_proj", "model.backbone.": "model.backbone.conv_encoder."}
    older = dict(state)
    for new, old in old_names.items():
        older = {name.replace(new, old): value for name, value in older.items()}
    renamed = from_hugging_face(older)
    assert set(renamed) == set(from_hugging_face(state))


def test_a_head_stored_once_is_found_below_the_decoder() -> None:
    state = {"model.decoder.bbox_embed.0.layers.0.bias": torch.ones(2), "class_embed.0.bias": torch.zeros(3)}
    assert set(from_hugging_face(state)) == {"bbox_embed.0.layers.0.bias", "class_embed.0.bias"}
