"""A backbone, forward and where it is trained backward, with its feature maps in other memory layouts, in turns.

Channels first, channels last, and what `resnet` chooses; ResNet-50 frozen and with stages 2 to 4 trained, as with
pretrained weights, and the quickstart's, all of it trained with normalisation that learns.

    python tests/benchmarks/backbone_layouts.py [--rounds 7]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from step_parts import Ways, told, turns
from torch import Tensor, nn

from model.network import resnet
from model.network.resnet import FrozenBatchNorm2d, LiveBatchNorm2d, ResNet

LAYOUTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "channels first": lambda _, x: x.contiguous(),
    "channels last": lambda _, x: x.contiguous(memory_format=torch.channels_last),
    "chosen": resnet._laid_for,
}
CASES = (
    ("resnet_50", 512, 2, 5), ("resnet_50", 256, 2, 5), ("resnet_50", 512, 2, 2), ("resnet_50", 256, 2, 2),
    ("resnet_tiny", 96, 8, 1),
)  # fmt: skip
"""Name, size, batch and the first stage that is trained (5: none)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name, size, batch, first in CASES:
        body = ResNet(name, (1, 2, 3), dilation=False, norm=LiveBatchNorm2d if first == 1 else FrozenBatchNorm2d)
        body.train().requires_grad_(first == 1)
        for stage in range(first, 5):
            body.get_submodule(f"layer{stage}").requires_grad_()
        pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))

        def step(
            choose: Callable[[nn.Module, Tensor], Tensor],
            body: ResNet = body,
            pixels: Tensor = pixels,
            trained: bool = first < 5,
        ) -> None:
            resnet._laid_for = choose
            features = body(pixels)
            if trained:
                body.zero_grad()
                torch.stack([each.mean() for each in features]).sum().backward()

        ways: Ways = {layout: lambda choose=choose, step=step: step(choose) for layout, choose in LAYOUTS.items()}
        taken = turns(ways, rounds * (10 if size < 128 else 1))
        print(f"{name}, {size} px, batch {batch}, trained from stage {first}: CPU ms, median (least): {told(taken)}")


if __name__ == "__main__":
    main()
