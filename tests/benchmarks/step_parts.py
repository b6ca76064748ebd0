"""Parts of a training step by themselves, CPU ms: products of matrices, the MLP in blocks and by autograd, the ways to
draw and to apply a dropout mask, and the parts of the quickstart's detector, forward and backward.

    python tests/benchmarks/step_parts.py [--rounds 9]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from training_step import Case, inputs, optimizer, our_step

from model.network.detr import build
from model.network.dropout import BLOCK, Dropout
from model.network.levels import Levels
from model.network.mlp import expand

SIZES = ((10880, 256, 1024), (600, 256, 1024), (1512, 64, 256), (800, 64, 256))
"""Tokens, hidden features, features between: encoder and decoder at 512 pixels, batch 2, and the quickstart's."""


Ways = dict[str, Callable[[], object]]


def turns(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of runs in turns; the first does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            begun = time.process_time()
            run()
            if number:
                taken[name].append(1000 * (time.process_time() - begun))
    return taken


def told(taken: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(ms):.2f} ({min(ms):.2f})" for name, ms in taken.items())


def products(rounds: int) -> None:
    for tokens, inside, between in SIZES:
        x, weight = torch.randn(tokens, inside), torch.randn(between, inside)
        taken = turns({"product": lambda x=x, weight=weight: x @ weight.t()}, rounds)
        rate = 2e-6 * tokens * inside * between / statistics.median(taken["product"])
        print(f"{tokens} x {inside} x {between}: {told(taken)}, {rate:.0f} GFLOP/s")


def mlp(rounds: int) -> None:
    for tokens, inside, between in SIZES:
        taken = turns(mlps(tokens, inside, between), rounds)
        print(f"MLP {tokens} x {inside} x {between}, forward and backward: {told(taken)}")


def mlps(tokens: int, inside: int, between: int) -> Ways:
    one, two, dropout = nn.Linear(inside, between), nn.Linear(between, inside), Dropout(0.1)
    x, slope = torch.randn(1, tokens, inside).requires_grad_(), torch.randn(1, tokens, inside)
    over = [x, *one.parameters(), *two.parameters()]
    return {
        "in blocks": lambda: torch.autograd.grad(expand(one, two, dropout, x), over, slope),
        "by autograd": lambda: torch.autograd.grad(dropout.plus(two(dropout(one(x).relu())), x), over, slope),
    }


def masks(rounds: int) -> None:
    """Of as many elements as dropout takes at a time."""
    x, out, numbers = (torch.randn(BLOCK) for _ in range(3))
    drawn = torch.empty(BLOCK // 4, dtype=torch.int64).random_(-(2**63), None)
    bools = torch.empty(BLOCK, dtype=torch.bool)
    halves = drawn.view(torch.int16)
    steps: dict[str, Ways] = {
        "draw": {
            "torch": lambda: drawn.random_(-(2**63), None),
            "numpy's SFC64": lambda: np.random.SFC64(1).random_raw(BLOCK // 4),
            "torch's own dropout, all of it": lambda: nn.functional.dropout(x, 0.1),
        },
        "compare": {
            "to bools": lambda: torch.ge(halves, 0, out=bools),
            "to numbers": lambda: torch.ge(halves, 0, out=numbers),
        },
        "apply": {"bools": lambda: torch.mul(x, bools, out=out), "numbers": lambda: torch.mul(x, numbers, out=out)},
    }
    for name, ways in steps.items():
        print(f"dropout of {BLOCK} elements, {name}: {told(turns(ways, 20 * rounds))}")


def detector(rounds: int) -> None:
    """Its backbone, one layer of each kind by itself, the optimizer, and the whole step."""
    case = Case(96, 3, backbone=False, tiny=True)
    network = build(case.spec, case.classes, pretrained=False).train()
    pixels, targets = inputs(case)
    encoder, decoder = network.transformer.encoder.layers[0], network.transformer.decoder.layers[0]
    levels = Levels.of(((12, 12), (6, 6), (3, 3)))
    tokens, queries = (torch.randn(case.batch, length, 64).requires_grad_() for length in (189, 100))
    everywhere, boxes = torch.rand(1, 189, 3, 2), torch.rand(case.batch, 100, 3, 4)
    rule = optimizer(network)
    network(pixels).final.boxes.sum().backward()  # gradients for the optimizer alone
    forward: dict[str, Callable[[], Tensor]] = {
        "backbone": lambda: torch.stack([each.mean() for each in network.backbone(pixels)]),
        "encoder's sampling": lambda: encoder.self_attn(tokens, everywhere, tokens, levels, None),
        "encoder's MLP": lambda: expand(encoder.linear1, encoder.linear2, encoder.dropout, tokens),
        "queries' attention": lambda: decoder.self_attn(queries, queries),
        "decoder's sampling": lambda: decoder.cross_attn(queries, boxes, tokens, levels, None),
        "decoder's MLP": lambda: expand(decoder.linear1, decoder.linear2, decoder.dropout, queries),
    }
    ways: Ways = {name: lambda run=run: run().sum().backward() for name, run in forward.items()}
    whole = our_step(case, pixels, targets)
    print(f"quickstart's detector: {told(turns({**ways, 'optimizer': rule.step, 'whole step': whole}, 5 * rounds))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for part in (products, mlp, masks, detector):
        part(rounds)


if __name__ == "__main__":
    main()
