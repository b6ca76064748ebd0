"""Deformable DETR: backbone, projections, transformer and heads as one module under the published parameter names.

Knows normalised pixels and padding masks; knows nothing of losses, files or the size an image had before.
"""

import copy
import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import SpecError
from model.network.gcvit import GC_VITS, GCViT
from model.network.resnet import RESNETS, FrozenBatchNorm2d, LiveBatchNorm2d, ResNet
from model.network.transformer import Proposer, Sizes, Transformer, add_delta
from model.spec import ModelSpec

# B image, Q query, C class


class Prediction(NamedTuple):
    """What one decoder layer says of every query."""

    logits: Tensor
    """(B, Q, C), before the sigmoid."""
    boxes: Tensor
    """(B, Q, 4): cx, cy, w, h in [0, 1], as fractions of the unpadded image."""


class Output(NamedTuple):
    """The detector's answer."""

    final: Prediction
    auxiliary: tuple[Prediction, ...]
    """Of the earlier decoder layers, first to last; empty without auxiliary losses."""
    proposals: Prediction | None = None
    """Of the encoder in the two-stage form: one box a token in place of a query; class 0 stands for any object."""


class MLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, inside: int, hidden: int, outside: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(inside, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outside)))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))

    @property
    def last(self) -> nn.Linear:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer


class Backbone(nn.Module):
    """Holds the backbone as `body`, as published parameter names have it."""

    def __init__(self, body: ResNet | GCViT) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.body(pixels)


class DeformableDETR(nn.Module):
    """The network of Zhu et al. 2021, with or without box refinement and proposals (section 4.2)."""

    def __init__(
        self, body: ResNet | GCViT, extra_level: bool, sizes: Sizes, spec: ModelSpec, num_classes: int
    ) -> None:
        super().__init__()
        self.with_box_refine, self.aux_loss, self.two_stage = spec.with_box_refine, spec.aux_loss, spec.two_stage
        self.num_queries = spec.num_queries
        hidden = sizes.hidden_dim
        self.backbone = nn.Sequential(Backbone(body))
        projections = [_projection(inside, hidden, strided=False) for inside in body.channels]
        if extra_level:
            projections.append(_projection(body.channels[-1], hidden, strided=True))
        self.input_proj = nn.ModuleList(projections[-sizes.num_feature_levels :])
        self.extra_level = extra_level
        self.transformer = Transformer(sizes)
        if not self.two_stage:
            self.query_embed = nn.Embedding(spec.num_queries, 2 * hidden)
        # In the two-stage form the heads after the last layer's are the encoder's, as published names have it.
        heads = sizes.dec_layers + self.two_stage
        self.class_embed, self.bbox_embed = _heads(
            hidden, num_classes, heads, refine=self.with_box_refine, size_bias=0.0 if self.two_stage else -2.0
        )
        if self.with_box_refine and not self.aux_loss:
            # No loss reaches the earlier layers' heads: their boxes stay at the reference points, as initialised.
            self.class_embed[: sizes.dec_layers - 1].requires_grad_(False)
            self.bbox_embed[: sizes.dec_layers - 1].requires_grad_(False)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Output:
        """pixels (B, 3, H, W): normalised RGB. mask (B, H, W) bool: True at right and bottom padding; None: no padding.

        What `pixels` holds under the mask changes nothing: it is set to zero here, before any convolution sees it.
        """
        if mask is not None:
            pixels = pixels.masked_fill(mask[:, None], 0.0)
        features = self.backbone(pixels)
        # The extra level starts from the raw last feature map, not from its projection.
        sources = features + features[-1:] if self.extra_level else features
        levels = [
            project(source) for project, source in zip(self.input_proj, sources[-len(self.input_proj) :], strict=True)
        ]
        masks = None if mask is None else [_shrink(mask, level) for level in levels]
        box_heads = list(self.bbox_embed) if self.with_box_refine else None
        queries = (
            Proposer(self.class_embed[-1], self.bbox_embed[-1], self.num_queries)
            if self.two_stage
            else self.query_embed.weight
        )
        decoded = self.transformer(levels, masks, queries, box_heads)
        every = len(decoded.hidden) if self.aux_loss else 1
        predictions = [
            Prediction(class_head(hidden), add_delta(box_head(hidden), reference))
            for hidden, reference, class_head, box_head in list(
                zip(decoded.hidden, decoded.references, self.class_embed, self.bbox_embed, strict=not self.two_stage)
            )[-every:]
        ]
        proposals = None if decoded.proposals is None else Prediction(*decoded.proposals)
        return Output(predictions[-1], tuple(predictions[:-1]), proposals)


def _shrink(mask: Tensor, level: Tensor) -> Tensor:
    """The mask (B, H, W) at the size of a feature level (B, C, h, w), by the nearest pixel above and to the left."""
    return F.interpolate(mask[:, None].float(), size=level.shape[-2:], mode="nearest")[:, 0] > 0.5


def _projection(inside: int, hidden: int, *, strided: bool) -> nn.Sequential:
    conv = nn.Conv2d(inside, hidden, 3, 2, 1) if strided else nn.Conv2d(inside, hidden, 1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    # 32 groups in the paper. Small widths take fewer, so that a group of a 1 x 1 map still has two values to normalise.
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(32, hidden // 2), hidden))


def _heads(
    hidden: int, num_classes: int, layers: int, *, refine: bool, size_bias: float
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Class and box heads, one a decoder layer; without refinement all layers share the same two modules.

    The start is the focal prior of 0.01 for every class (Lin et al. 2017, section 4.1), boxes at their reference
    points, of a size of sigmoid(size_bias) where none gives one.
    """
    class_head, box_head = nn.Linear(hidden, num_classes), MLP(hidden, hidden, 4)
    nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))
    nn.init.zeros_(box_head.last.weight)
    nn.init.zeros_(box_head.last.bias)
    if refine:
        later = [(copy.deepcopy(class_head), copy.deepcopy(box_head)) for _ in range(layers - 1)]
    else:
        later = [(class_head, box_head)] * (layers - 1)
    nn.init.constant_(box_head.last.bias[2:], size_bias)
    class_heads, box_heads = zip((class_head, box_head), *later, strict=True)
    return nn.ModuleList(class_heads), nn.ModuleList(box_heads)


def build(
    spec: ModelSpec, num_classes: int, *, pretrained: bool, activation_checkpoint: bool = False
) -> DeformableDETR:
    """The network of a spec, with fresh weights drawn from torch's global generator.

    pretrained: weights for the backbone will be loaded, so a ResNet's normalisation is frozen and, as in the paper, its
    stem and first stage too. Without them all of it trains. `train_backbone=False` freezes every backbone parameter.
    activation_checkpoint: each layer of encoder and decoder, and each block of a GC-ViT, forgets its activations and
    computes them again in the backward pass: the same numbers in about half the memory and a third to a half more time.
    """
    check_spec(spec, num_classes)
    body = _backbone(spec, frozen_norm=pretrained)
    if not spec.train_backbone:
        body.requires_grad_(False)
    elif pretrained and isinstance(body, ResNet):
        body.conv1.requires_grad_(False)
        body.get_submodule("layer1").requires_grad_(False)
    sizes = Sizes(**{name: getattr(spec, name) for name in Sizes._fields})
    network = DeformableDETR(body, 4 in spec.return_interm_indices, sizes, spec, num_classes)
    for part in (body, network.transformer.encoder, network.transformer.decoder):
        if not isinstance(part, ResNet):
            part.activation_checkpoint = activation_checkpoint
    return network


def _backbone(spec: ModelSpec, *, frozen_norm: bool) -> ResNet | GCViT:
    stages = tuple(index for index in spec.return_interm_indices if index < 4) or (3,)
    if spec.backbone in GC_VITS:
        return GCViT(spec.backbone, stages)
    norm = FrozenBatchNorm2d if frozen_norm else LiveBatchNorm2d
    return ResNet(spec.backbone, stages, dilation=spec.dilation, norm=norm)


def check_spec(spec: ModelSpec, num_classes: int) -> None:
    """Raises SpecError with every rule of the network that the spec breaks."""
    problems = spec.network_problems()
    if spec.backbone not in (*RESNETS, *GC_VITS):
        known = ", ".join((*RESNETS, *GC_VITS))
        problems.append(f"`model.backbone` must be one of {known}, but is `{spec.backbone}`; choose one of them.")
    if num_classes < 1:
        problems.append(f"`dataset.num_classes` must be at least 1, but is {num_classes}; count the highest id too.")
    if problems:
        raise SpecError(problems)
