"""Forward and backward of the sampling core, in bags and by grid, for widths of a head and sizes of an image, in turns.

python tests/benchmarks/attention_forms.py [--threads 1] [--rounds 5]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from model.network.attention import gridsample
from model.network.bags import bags
from model.network.levels import Levels

HEADS, POINTS = 8, 4
CASES = {"96 px": (8, (12, 6, 3)), "256 px": (2, (32, 16, 8, 4)), "512 px": (2, (64, 32, 16, 8))}
"""Images of a batch, and the sides of the levels."""


def inputs(batch: int, levels: Levels, queries: int | None, width: int) -> list[Tensor]:
    """queries None: an encoder's, each of which reads around itself; else a decoder's, which read anywhere."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in levels.sizes)
    if queries is None:
        sides = [
            torch.stack(torch.meshgrid(*(((torch.arange(n) + 0.5) / n,) * 2), indexing="xy"), -1)
            for n, _ in levels.sizes
        ]
        around = torch.cat([side.reshape(-1, 2) for side in sides])[None, :, None, None, None]
        spread = 2 / torch.tensor(levels.sizes)[:, None].flip(-1)
        queries = tokens
    else:
        around, spread = torch.rand(1, queries, 1, 1, 1, 2, generator=generator), torch.tensor(0.2)
    shape = (batch, queries, HEADS, len(levels.sizes), POINTS)
    location = around + spread * torch.randn(*shape, 2, generator=generator)
    value = torch.randn(batch, tokens, HEADS, width, generator=generator)
    weight = torch.rand(shape, generator=generator)
    return [each.requires_grad_() for each in (value, location, weight)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name, (batch, sides) in CASES.items():
        levels = Levels.of(tuple((side, side) for side in sides))
        for width in (8, 16, 32):
            for what, queries in (("encoder", None), ("decoder", 300)):
                value, location, weight = inputs(batch, levels, queries, width)
                slope = torch.randn(batch, location.shape[1], HEADS * width, generator=torch.Generator().manual_seed(1))
                best = dict.fromkeys((gridsample, bags), float("inf"))
                for _ in range(asked.rounds):
                    for form in best:
                        begun = time.process_time()
                        torch.autograd.grad(form(value, levels, location, weight), (value, location, weight), slope)
                        best[form] = min(best[form], time.process_time() - begun)
                grid, bag = best.values()
                told = f"grid {1000 * grid:.1f} ms, bags {1000 * bag:.1f} ms, {grid / bag:.2f}"
                print(f"{name}, {what}, head of {width}: {told}")


if __name__ == "__main__":
    main()
