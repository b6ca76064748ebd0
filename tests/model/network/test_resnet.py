"""ResNets: the published sizes and names, the shapes of every stage, frozen against live normalisation."""

import pytest
import torch
from torch import nn

from model.network.resnet import RESNETS, FrozenBatchNorm2d, LiveBatchNorm2d, ResNet

# Parameters of the published classifiers less their last layer (1000 classes from 512 or 2048 features).
PUBLISHED = {
    "resnet_18": 11_689_512 - 513_000,
    "resnet_34": 21_797_672 - 513_000,
    "resnet_50": 25_557_032 - 2_049_000,
    "resnet_101": 44_549_160 - 2_049_000,
}
CHANNELS = {
    "resnet_tiny": (24, 48, 96, 192),
    "resnet_18": (64, 128, 256, 512),
    "resnet_34": (64, 128, 256, 512),
    "resnet_50": (256, 512, 1024, 2048),
    "resnet_101": (256, 512, 1024, 2048),
}


def resnet(name: str, stages: tuple[int, ...] = (0, 1, 2, 3), *, dilation: bool = False) -> ResNet:
    return ResNet(name, stages, dilation=dilation, norm=nn.BatchNorm2d)


@pytest.mark.parametrize("name", sorted(RESNETS))
def test_every_stage_has_its_channels_and_stride(name: str) -> None:
    with torch.no_grad():
        features = resnet(name).eval()(torch.rand(1, 3, 70, 64))
    # 70 rows: each stride-2 step rounds up, 35, 18, 9, 5, 3
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (channels, height, width)
        for channels, height, width in zip(CHANNELS[name], (18, 9, 5, 3), (16, 8, 4, 2), strict=True)
    ]
    assert resnet(name).channels == CHANNELS[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert sum(parameter.numel() for parameter in resnet(name).parameters()) == PUBLISHED[name]


def test_names_are_torchvisions() -> None:
    names = set(resnet("resnet_50").state_dict())
    for name in (
        "conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.bias", "layer2.3.bn2.weight", "layer3.5.conv2.weight", "layer4.2.bn3.running_mean",
    ):  # fmt: skip
        assert name in names
    assert "layer1.1.downsample.0.weight" not in names
    assert {"layer1.0.bn2.weight", "layer2.1.conv2.weight"} <= set(resnet("resnet_18").state_dict())
    assert "layer1.0.downsample.0.weight" not in resnet("resnet_18").state_dict()


def test_the_stride_sits_on_the_3x3() -> None:
    block = resnet("resnet_50").get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_unused_stages_are_not_built() -> None:
    body = resnet("resnet_tiny", (1,))
    assert not any(name.startswith(("layer3", "layer4")) for name in body.state_dict())
    assert [feature.shape[1] for feature in body(torch.rand(1, 3, 64, 64))] == [48]


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet_18", "resnet_50"])
def test_dilation_keeps_stride_16_and_the_weights(name: str) -> None:
    plain, dilated = resnet(name), resnet(name, dilation=True)
    dilated.load_state_dict(plain.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    before, after = plain(pixels), dilated(pixels)
    assert after[3].shape[2:] == (4, 4)
    assert before[3].shape[2:] == (2, 2)
    torch.testing.assert_close(after[2], before[2])


def test_frozen_normalisation_equals_the_live_one_in_evaluation_and_never_moves() -> None:
    live = nn.BatchNorm2d(5)
    with torch.no_grad():
        for tensor in (live.weight, live.bias, live.running_mean, live.running_var):
            tensor.uniform_(0.5, 2.0)
    frozen = FrozenBatchNorm2d(5)
    frozen.load_state_dict(live.state_dict())
    assert not list(frozen.parameters())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(frozen.train()(x), live.eval()(x))
    torch.testing.assert_close(frozen.running_mean, live.running_mean)


def test_live_normalisation_is_torchs_until_it_is_frozen() -> None:
    ours, torchs = LiveBatchNorm2d(5), nn.BatchNorm2d(5)
    x = 3 + 2 * torch.randn(4, 5, 3, 3)
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    ours.requires_grad_(False)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours(x), torchs.eval()(x))
    assert torch.equal(ours.running_mean, before)


def test_one_value_a_feature_is_no_batch_to_learn_from() -> None:
    """The last map of one picture of 32 pixels; torch's own normalisation raises there."""
    norm = LiveBatchNorm2d(5)
    x = torch.randn(1, 5, 1, 1)
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    assert not norm.running_mean.any()


@pytest.mark.parametrize("name", ["resnet_18", "resnet_50"])
def test_folded_normalisation_is_what_convolution_and_normalisation_give_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[torch.Tensor]:
        features = body(pixels)
        return [*features, *torch.autograd.grad(torch.stack([each.square().mean() for each in features]).sum(), over)]

    body = ResNet(name, (0, 1, 2, 3), dilation=False, norm=FrozenBatchNorm2d).double().train()
    generator = torch.Generator().manual_seed(3)
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for statistic in (module.weight, module.running_var):
                statistic.uniform_(0.5, 1.5, generator=generator)
            for statistic in (module.bias, module.running_mean):
                statistic.normal_(generator=generator)
    pixels = torch.randn(1, 3, 64, 96, generator=generator, dtype=torch.float64).requires_grad_()
    over = [pixels, *body.parameters()]
    folded = found()
    taken: list[object] = []
    monkeypatch.setattr(
        FrozenBatchNorm2d, "after", lambda norm, convolution, x: taken.append(norm) or norm(convolution(x))
    )
    for ours, plain in zip(folded, found(), strict=True):
        torch.testing.assert_close(ours, plain)
    assert len(taken) == sum(isinstance(module, FrozenBatchNorm2d) for module in body.modules())


def test_a_trace_keeps_convolution_and_normalisation_apart_and_the_order_of_memory() -> None:
    body = ResNet("resnet_18", (0, 1, 2, 3), dilation=False, norm=FrozenBatchNorm2d).eval().requires_grad_(False)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    traced = torch.jit.trace(body, pixels, check_trace=False)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::batch_norm") == kinds.count("aten::_convolution")
    assert "aten::contiguous" not in kinds
    for ours, eager in zip(traced(pixels), body(pixels), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
