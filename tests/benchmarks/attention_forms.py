"""Forward and backward of one attention layer, sampled in bags and by grid, for widths of a head and sizes of an image,
in turns.

    python tests/benchmarks/attention_forms.py [--threads 1] [--rounds 5]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from model.network import attention
from model.network.attention import MSDeformAttn
from model.network.levels import Levels

HEADS, POINTS = 8, 4
CASES = {"96 px": (8, (12, 6, 3)), "256 px": (2, (32, 16, 8, 4)), "512 px": (2, (64, 32, 16, 8))}
"""Images of a batch, and the sides of the levels."""


def inputs(batch: int, levels: Levels, queries: int | None, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, reference and tokens. queries None: an encoder's, each of which reads around itself; else a decoder's,
    which read anywhere."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in levels.sizes)
    if queries is None:
        sides = [
            torch.stack(torch.meshgrid(*(((torch.arange(n) + 0.5) / n,) * 2), indexing="xy"), -1)
            for n, _ in levels.sizes
        ]
        reference, queries = torch.cat([side.reshape(-1, 2) for side in sides])[None], tokens
    else:
        reference = torch.rand(batch, queries, 2, generator=generator)
    value = torch.randn(batch, tokens, features, generator=generator).requires_grad_()
    query = torch.randn(batch, queries, features, generator=generator).requires_grad_()
    return query, reference[:, :, None].expand(-1, -1, len(levels.sizes), -1), value


def layer_of(levels: Levels, features: int) -> MSDeformAttn:
    """Points as after some training: around where they start, a cell or two apart from query to query."""
    generator = torch.Generator().manual_seed(2)
    layer = MSDeformAttn(features, len(levels.sizes), HEADS, POINTS)
    for linear in (layer.sampling_offsets, layer.attention_weights):
        torch.nn.init.normal_(linear.weight, std=1.5 / features**0.5, generator=generator)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    attention.WIDE = 0  # heads of any width in bags
    for name, (batch, sides) in CASES.items():
        levels = Levels.of(tuple((side, side) for side in sides))
        for width in (8, 16, 32):
            layer = layer_of(levels, HEADS * width)
            for what, queries in (("encoder", None), ("decoder", 300)):
                query, reference, tokens = inputs(batch, levels, queries, HEADS * width)
                slope = torch.randn(query.shape, generator=torch.Generator().manual_seed(1))
                over = [query, tokens, *layer.parameters()]
                best = {"gridsample": float("inf"), None: float("inf")}
                for _ in range(asked.rounds):
                    for form in best:
                        layer.sampler = form
                        begun = time.process_time()
                        torch.autograd.grad(layer(query, reference, tokens, levels, None), over, slope)
                        best[form] = min(best[form], time.process_time() - begun)
                grid, bag = best.values()
                told = f"grid {1000 * grid:.1f} ms, bags {1000 * bag:.1f} ms, {grid / bag:.2f}"
                print(f"{name}, {what}, head of {width}: {told}")


if __name__ == "__main__":
    main()
