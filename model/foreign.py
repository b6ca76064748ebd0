"""Other programs' names for the tensors of a detector -> ours. Knows names only: no files, no shapes, no coverage."""

import re
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

# Each rule rewrites a name once, in this order.
_HUGGING_FACE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The backbone: transformers' own ResNet, or timm's under one of several wrappers.
        (r"^model\.backbone\.(?:conv_encoder\.)?(?:model\.)?(?:_backbone\.)?", "backbone.0.body."),
        (r"^(backbone\.0\.body\.)embedder\.embedder\.convolution\.", r"\1conv1."),
        (r"^(backbone\.0\.body\.)embedder\.embedder\.normalization\.", r"\1bn1."),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
        # The transformer. Older releases spell `fc1` and `out_proj` where newer ones spell `mlp.fc1` and `o_proj`.
        (r"^model\.(encoder|decoder|level_embed|reference_points|enc_output|pos_trans)", r"transformer.\1"),
        (r"^model\.input_proj\.", "input_proj."),
        (r"^model\.query_position_embeddings\.", "query_embed."),
        (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
        (r"^(transformer\.encoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(transformer\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
        (r"^(transformer\.decoder\..*)\.encoder_attn_layer_norm\.", r"\1.norm1."),
        (r"^(transformer\.decoder\..*)\.self_attn_layer_norm\.", r"\1.norm2."),
        (r"^(transformer\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
        (r"^(transformer\.decoder\..*)\.encoder_attn\.", r"\1.cross_attn."),
        (r"^(transformer\.decoder\..*\.self_attn)\.o_proj\.", r"\1.out_proj."),
    )
)
_STAGE = re.compile(r"^(backbone\.0\.body\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)$")
_CONVOLUTION = re.compile(r"^layer\.(\d+)\.(convolution|normalization)\.(.*)$")
_PART = re.compile(r"^(transformer\.decoder\..*\.self_attn\.)([qkv])_proj\.(weight|bias)$")


def is_hugging_face(names: Mapping[str, object]) -> bool:
    """Whether the names are those of transformers' DeformableDetrForObjectDetection."""
    return any(name.startswith("model.backbone.") for name in names) and any("encoder_attn." in name for name in names)


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of transformers' DeformableDetrForObjectDetection under the names of model.network.detr.

    Query, key and value projections become one tensor, in this order. Heads that transformers stores a second time
    below the decoder are kept where the first copy is absent, as safetensors leaves out one of two equal tensors.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _rename(name)
        part = _PART.match(ours)
        if part:
            parts.setdefault(f"{part[1]}in_proj_{part[3]}", {})[part[2]] = value
        elif ours.startswith(("transformer.decoder.bbox_embed.", "transformer.decoder.class_embed.")):
            copies[ours.removeprefix("transformer.decoder.")] = value
        else:
            found[ours] = value
    for name, three in parts.items():
        if set(three) == set("qkv"):
            found[name] = torch.cat([three[letter] for letter in "qkv"])
    return copies | found


def _rename(name: str) -> str:
    for pattern, replacement in _HUGGING_FACE:
        name = pattern.sub(replacement, name, count=1)
    stage = _STAGE.match(name)
    if not stage:
        return name
    prefix, index, block, rest = stage.groups()
    inner = _CONVOLUTION.match(rest)
    if inner:
        kind = "conv" if inner[2] == "convolution" else "bn"
        rest = f"{kind}{int(inner[1]) + 1}.{inner[3]}"
    return f"{prefix}layer{int(index) + 1}.{block}.{rest}"


_HEAD = re.compile(r"^(class_embed|bbox_embed)\.(\d+)\.(.*)$")


def without_wrapper(found: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """What training programs put before the names of a network (`module.`, `model.model.`, `backbone.0.body.`), and
    the tensors without it. It is the prefix that makes most names those that are wanted; other names stay whole."""
    votes: Counter[str] = Counter()
    for name in found:
        starts = (0, *(match.end() for match in re.finditer(r"\.", name)))
        votes.update(name[:start] for start in starts if name[start:] in wanted)
    wrapper = min(votes, key=lambda prefix: (-votes[prefix], len(prefix), prefix), default="")
    return wrapper, {name.removeprefix(wrapper): value for name, value in found.items()}


def with_every_head(found: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Heads are stored once for all layers, or a second time below the decoder: here each has its own name, once."""
    ours = {name: value for name, value in found.items() if not _is_copy(name)}
    for name, value in found.items():
        if _is_copy(name):
            ours.setdefault(name.removeprefix("transformer.decoder."), value)
    stored = {
        head: {m[2] for m in map(_HEAD.match, ours) if m and m[1] == head} for head in ("class_embed", "bbox_embed")
    }
    for match in filter(None, map(_HEAD.match, wanted)):
        if len(stored[match[1]]) == 1:
            source = f"{match[1]}.{next(iter(stored[match[1]]))}.{match[3]}"
            if source in ours:
                ours.setdefault(match[0], ours[source])
    return ours


def _is_copy(name: str) -> bool:
    return name.startswith(("transformer.decoder.bbox_embed.", "transformer.decoder.class_embed."))
