"""ResNet backbones in torchvision's layout (v1.5: the stride sits on the 3 x 3), under torchvision's parameter names.

Knows images in and feature maps out; knows nothing of projections, levels beyond its last stage, or weights on disk.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map, all buffers, as for a pretrained backbone."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def after(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """What `self(convolution(x))` is, as one convolution with scaled weights and a bias: the map before
        normalisation is neither written nor kept for the backward pass."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        weight, bias = convolution.weight * scale[:, None, None, None], self.bias - self.running_mean * scale
        return F.conv2d(x, weight, bias, convolution.stride, convolution.padding, convolution.dilation)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        state.pop(prefix + "num_batches_tracked", None)  # a live BatchNorm counts; a frozen one has nothing to count
        super()._load_from_state_dict(state, prefix, *args)


class LiveBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that learns, for a backbone trained from random weights.

    Once its affine map is frozen its statistics stay too, so that a frozen part computes the same function all along.
    Where a batch has one value a feature there is no spread to divide by, and the statistics so far must do.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and (not self.weight.requires_grad or x.shape[0] * x.shape[2] * x.shape[3] == 1):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _normalised(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    # In a trace the exporter does this itself, with the names of the weights left as they are.
    if isinstance(norm, FrozenBatchNorm2d) and not torch.jit.is_tracing():
        return norm.after(convolution, x)
    return norm(convolution(x))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions (He et al. 2015, figure 5 left)."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(inside, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_normalised(self.conv1, self.bn1, x), inplace=True)
        y = _normalised(self.conv2, self.bn2, y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions (He et al. 2015, figure 5 right)."""

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        outside = width * self.expansion
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = norm(outside)
        self.downsample = _shortcut(inside, outside, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_normalised(self.conv1, self.bn1, x), inplace=True)
        y = F.relu(_normalised(self.conv2, self.bn2, y), inplace=True)
        y = _normalised(self.conv3, self.bn3, y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Shortcut(nn.Sequential):
    """A 1 x 1 convolution to the block's width and stride."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self[0], self[1], x)


def _shortcut(inside: int, outside: int, stride: int, norm: Norm) -> Shortcut | None:
    if stride == 1 and inside == outside:
        return None
    return Shortcut(nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))


class Architecture(NamedTuple):
    """What tells one ResNet from another."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)


RESNETS = {
    "resnet_tiny": Architecture(BasicBlock, (1, 1, 1, 1), (24, 48, 96, 192)),
    "resnet_18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet_34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet_50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet_101": Architecture(Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier, cut after the last stage that is asked for.

    stages: which of the stages 0 to 3 to return, in rising order; their strides are 4, 8, 16, 32.
    dilation: the last stage keeps stride 16 and dilates its 3 x 3 convolutions instead ("DC5").
    """

    def __init__(self, name: str, stages: tuple[int, ...], *, dilation: bool, norm: Norm) -> None:
        super().__init__()
        block, depths, widths = RESNETS[name]
        self.stages = stages
        self.channels = tuple(widths[stage] * block.expansion for stage in stages)
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = norm(widths[0])
        inside = widths[0]
        for stage in range(max(stages) + 1):
            dilated = dilation and stage == 3
            blocks = []
            for index in range(depths[stage]):
                stride = 2 if index == 0 and stage > 0 and not dilated else 1
                # The first block still sees undilated features, so that pretrained weights keep their meaning.
                blocks.append(block(inside, widths[stage], stride, 2 if dilated and index > 0 else 1, norm))
                inside = widths[stage] * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels (B, 3, H, W). Returns one (B, channels, H / stride, W / stride) for each of `stages`, rounded up."""
        x = F.relu(_normalised(self.conv1, self.bn1, _laid_for(self.conv1, pixels)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(self.stages[-1] + 1):
            layer = self.get_submodule(f"layer{stage + 1}")
            x = layer(_laid_for(layer, x))
            if stage in self.stages:
                features.append(x)
        return features


def _laid_for(part: nn.Module, x: Tensor) -> Tensor:
    """`x` in the memory layout that takes least on a CPU (`tests/benchmarks/backbone_layouts.py`): channels last where
    the map outweighs the weights of what comes next, which have to be laid anew in every step."""
    if x.device.type != "cpu" or torch.jit.is_tracing():
        return x
    weights = sum(parameter.numel() for parameter in part.parameters())
    return x.contiguous(memory_format=torch.channels_last if x.numel() > weights else torch.contiguous_format)
