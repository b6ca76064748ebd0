"""How a training step of the R50 detector grows with image size, queries, layers and boxes, one at a time around 256
pixels, 300 queries, 6 + 6 layers and 10 boxes an image; and how much of it is matching and loss. Batch 2, 91 classes,
backbone frozen, CPU seconds. The exponent is the slope of log seconds over log of what is varied, by least squares.

    python tests/benchmarks/step_scaling.py [--threads 1] [--rounds 3] [--only boxes ...]
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from training_step import optimizer, truths

from model.network.criterion import Criterion
from model.network.detr import build
from model.spec import ModelSpec

CLASSES, BATCH = 91, 2


@dataclass(frozen=True)
class Case:
    size: int = 256
    queries: int = 300
    layers: int = 6
    boxes: int = 10


VARIED = {"size": (128, 192, 256, 384, 512), "queries": (100, 300, 900), "layers": (1, 3, 6), "boxes": (1, 10, 50, 100)}


def measure(case: Case, rounds: int) -> tuple[float, float]:
    """Medians of a step's CPU seconds and of those in matching and loss, their backward pass included."""
    torch.manual_seed(0)
    spec = ModelSpec(
        pretrained_backbone_path="random", train_backbone=False, num_queries=case.queries,
        enc_layers=case.layers, dec_layers=case.layers,
    )  # fmt: skip
    network, criterion = build(spec, CLASSES, pretrained=True).train(), Criterion(spec, CLASSES)
    rule = optimizer(network)
    pixels = torch.randn(BATCH, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
    truth, whole, loss = truths(BATCH, case.boxes, CLASSES), [], []
    for number in range(rounds + 1):
        begun = time.process_time()
        output = network(pixels)
        known: list[Any] = [part for layer in (*output.auxiliary, output.final) for part in layer]
        judged = time.process_time()
        slopes = torch.autograd.grad(criterion(output, truth).total, known)
        back = time.process_time()
        torch.autograd.backward(known, slopes)
        rule.step()
        rule.zero_grad()
        if number:
            whole.append(time.process_time() - begun)
            loss.append(back - judged)
    return statistics.median(whole), statistics.median(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=tuple(VARIED), default=tuple(VARIED))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for what in asked.only:
        rows = []
        for value in VARIED[what]:
            whole, loss = measure(replace(Case(), **{what: value}), asked.rounds)
            rows.append((value, whole, loss))
            print(f"{what:8s} {value:4d}  {whole:7.3f} s a step, matching and loss {loss:.3f} s ({loss / whole:.1%})")
        values, seconds, losses = np.log(np.array(rows)).T
        slope, of_loss = (float(np.polyfit(values, each, 1)[0]) for each in (seconds, losses))
        print(f"{what:8s} exponent {slope:.2f}, of matching and loss {of_loss:.2f}", flush=True)


if __name__ == "__main__":
    main()
