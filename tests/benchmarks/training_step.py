"""What one training step costs against transformers' of the same detector: forward, loss, backward, optimizer.

ResNet-50, 300 queries, 6 + 6 layers, 91 classes, batch 2, the same weights, pictures and boxes for both, no padding;
they take turns in one process, and each takes a few steps in a process of its own for its peak memory. As it ships,
transformers trains no parameter of its own ResNet, so ours is frozen too; `--backbone` trains stages 2 to 4 in both.

    python tests/benchmarks/training_step.py --size 512 --threads 1 --rounds 7 [--backbone]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from model.batch import Target
from model.foreign import from_hugging_face
from model.network.criterion import Criterion
from model.network.detr import build
from model.spec import ModelSpec

CLASSES, BATCH, RATE = 91, 2, 1e-5
Step = Callable[[], float]


def truths(boxes: int) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(BATCH):
        centre = 0.2 + 0.6 * torch.rand(boxes, 2, generator=generator)
        side = 0.05 + 0.3 * torch.rand(boxes, 2, generator=generator)
        label = torch.randint(1, CLASSES, (boxes,), generator=generator)
        found.append(Target(label, torch.cat((centre, side), 1), number, (1, 1)))
    return found


def peer(*, backbone: bool) -> Any:
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False, use_pretrained_backbone=False, num_labels=CLASSES, with_box_refine=True,
        auxiliary_loss=True,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.DeformableDetrForObjectDetection(config).train()
    for name, parameter in network.named_parameters():
        if "backbone" in name:
            # transformers' filter looks for torchvision's names, so that nothing of its own ResNet is trained.
            parameter.requires_grad_(backbone and any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return network


def optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=RATE, fused=True)


def their_step(network: Any, pixels: torch.Tensor, targets: list[Target]) -> Step:
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    rule = optimizer(network)

    def step() -> float:
        rule.zero_grad()
        loss = network(pixel_values=pixels, labels=labels).loss
        loss.backward()
        rule.step()
        return loss.item()

    return step


def our_step(
    pixels: torch.Tensor, targets: list[Target], *, backbone: bool, weights: dict[str, torch.Tensor] | None = None
) -> Step:
    spec = ModelSpec(pretrained_backbone_path="random", train_backbone=backbone, cls_loss_coef=1.0)
    network = build(spec, CLASSES, pretrained=True).train()
    if weights is not None:
        network.load_state_dict(from_hugging_face(weights), strict=True)
    criterion, rule = Criterion(spec, CLASSES), optimizer(network)

    def step() -> float:
        rule.zero_grad()
        loss = criterion(network(pixels), targets).total
        loss.backward()
        rule.step()
        return loss.item()

    return step


def inputs(asked: argparse.Namespace) -> tuple[torch.Tensor, list[Target]]:
    torch.set_num_threads(asked.threads)
    pixels = torch.randn(BATCH, 3, asked.size, asked.size, generator=torch.Generator().manual_seed(0))
    return pixels, truths(asked.boxes)


def memory(asked: argparse.Namespace) -> None:
    """Prints the peak of resident memory, MiB, of a process that does three steps."""
    given = inputs(asked)
    if asked.memory_of == "ours":
        step = our_step(*given, backbone=asked.backbone)
    else:
        step = their_step(peer(backbone=asked.backbone), *given)
    for _ in range(3):
        step()
    # Not getrusage's, which begins with what the parent process held.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--boxes", type=int, default=10, help="objects an image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backbone", action="store_true", help="train the backbone's stages 2 to 4 in both")
    parser.add_argument("--memory-of", choices=("transformers", "ours"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory_of:
        memory(asked)
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {asked.threads} threads")
    print(
        f"{asked.size} x {asked.size}, batch {BATCH}, {asked.boxes} boxes an image, backbone trained: {asked.backbone}"
    )
    given, network = inputs(asked), peer(backbone=asked.backbone)
    steps = {
        "ours": our_step(*given, backbone=asked.backbone, weights=network.state_dict()),
        "transformers": their_step(network, *given),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(asked.rounds + 1):  # the first does not count
        for name, step in steps.items():
            begun = time.process_time()
            loss = step()
            if number:
                taken[name].append(time.process_time() - begun)
            else:
                print(f"{name}: loss of the first step {loss:.3f}")
    ratios = [theirs / ours for theirs, ours in zip(taken["transformers"], taken["ours"], strict=True)]
    for name, seconds in taken.items():
        print(f"{name}: {statistics.median(seconds):.3f} CPU s a step, {min(seconds):.3f} to {max(seconds):.3f}")
    print(f"ratio, pair by pair: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    peaks = {}
    for name in steps:
        command = [sys.executable, *sys.argv, "--memory-of", name]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(", ".join(f"{name} {peak} MiB" for name, peak in peaks.items()))
    print(f"peak memory: {peaks['ours'] / peaks['transformers']:.2f} of transformers'")


if __name__ == "__main__":
    main()
