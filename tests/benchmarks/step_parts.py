"""Parts of a training step by themselves, CPU ms: products of matrices, the MLP in blocks and by autograd, and the ways
to draw and to apply a dropout mask.

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
from torch import nn

from model.network.dropout import BLOCK, Dropout
from model.network.mlp import expand

SIZES = ((10880, 256, 1024), (600, 256, 1024), (1512, 64, 256), (800, 64, 256))
"""Tokens, hidden features, features between: encoder and decoder at 512 pixels, batch 2, and the quickstart's."""


def turns(ways: dict[str, Callable[[], object]], rounds: int) -> str:
    """Medians of runs in turns; the first does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            begun = time.process_time()
            run()
            if number:
                taken[name].append(1000 * (time.process_time() - begun))
    return ", ".join(f"{name} {statistics.median(ms):.3f}" for name, ms in taken.items())


def products(rounds: int) -> None:
    for tokens, inside, between in SIZES:
        x, weight = torch.randn(tokens, inside), torch.randn(between, inside)
        told = turns({"": lambda x=x, weight=weight: x @ weight.t()}, rounds)
        rate = 2e-6 * tokens * inside * between / float(told)
        print(f"product {tokens} x {inside} x {between}:{told} ms, {rate:.0f} GFLOP/s")


def mlp(rounds: int) -> None:
    for tokens, inside, between in SIZES:
        told = turns(mlps(tokens, inside, between), rounds)
        print(f"MLP {tokens} x {inside} x {between}, forward and backward: {told}")


def mlps(tokens: int, inside: int, between: int) -> dict[str, Callable[[], object]]:
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
    steps: dict[str, dict[str, Callable[[], object]]] = {
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
        print(f"dropout of {BLOCK} elements, {name}: {turns(ways, 20 * rounds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for part in (products, mlp, masks):
        part(rounds)


if __name__ == "__main__":
    main()
