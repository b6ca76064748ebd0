"""What one training step costs against transformers' of the same detector: forward, loss, backward, optimizer.

The same pictures and boxes for both, no padding; they take turns in one process, and each takes a few steps in a
process of its own for its peak memory. ResNet-50, 300 queries, 6 + 6 layers, 91 classes, batch 2, the same weights. As
it ships, transformers trains no parameter of its own ResNet, so ours is frozen too; `--backbone` trains stages 2 to 4
in both. `--tiny`: the quickstart's detector, batch 8, all of it trained, with batch normalisation that learns in both.

    python tests/benchmarks/training_step.py --size 512 --threads 1 --rounds 7 [--backbone]
    python tests/benchmarks/training_step.py --size 96 --boxes 3 --rounds 60 --tiny
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from model.batch import Target
from model.foreign import from_hugging_face
from model.network.criterion import Criterion
from model.network.detr import build
from model.spec import ModelSpec

RATE = 1e-5
TINY = ModelSpec(
    backbone="resnet_tiny", num_queries=100, num_select=100, num_feature_levels=3, return_interm_indices=[1, 2, 3],
    hidden_dim=64, nheads=4, enc_layers=1, dec_layers=2, dim_feedforward=256, cls_loss_coef=1.0,
)  # fmt: skip
Step = Callable[[], float]


class Case(NamedTuple):
    """What is compared."""

    size: int
    boxes: int
    backbone: bool
    tiny: bool

    @property
    def classes(self) -> int:
        return 3 if self.tiny else 91

    @property
    def batch(self) -> int:
        return 8 if self.tiny else 2

    @property
    def spec(self) -> ModelSpec:
        if self.tiny:
            return TINY
        # The loss of transformers has no coefficient of the classes.
        return ModelSpec(pretrained_backbone_path="random", train_backbone=self.backbone, cls_loss_coef=1.0)


def truths(batch: int, boxes: int, classes: int) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(batch):
        centre = 0.2 + 0.6 * torch.rand(boxes, 2, generator=generator)
        side = 0.05 + 0.3 * torch.rand(boxes, 2, generator=generator)
        label = torch.randint(1, classes, (boxes,), generator=generator)
        found.append(Target(label, torch.cat((centre, side), 1), number, (1, 1)))
    return found


def peer(case: Case) -> Any:
    import transformers  # not by the process that measures our memory

    own, more = case.spec, {}
    if case.tiny:
        more = {"layer_type": "basic", "embedding_size": 24, "hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 1, 1]}
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"], **more),
        use_timm_backbone=False, use_pretrained_backbone=False, num_labels=case.classes, with_box_refine=True,
        auxiliary_loss=True, d_model=own.hidden_dim, num_queries=own.num_queries,
        num_feature_levels=own.num_feature_levels, encoder_layers=own.enc_layers, decoder_layers=own.dec_layers,
        encoder_attention_heads=own.nheads, decoder_attention_heads=own.nheads, dropout=own.dropout_ratio,
        encoder_ffn_dim=own.dim_feedforward, decoder_ffn_dim=own.dim_feedforward,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.DeformableDetrForObjectDetection(config)
    for name, parameter in network.named_parameters():
        if "backbone" in name:
            # transformers' filter looks for torchvision's names, so that nothing of its own ResNet is trained.
            later = any(f"stages.{stage}." in name for stage in (1, 2, 3))
            parameter.requires_grad_(case.tiny or (case.backbone and later))
    if case.tiny:
        learning_norms(network)
    return network.train()


def learning_norms(module: torch.nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child).__name__ == "DeformableDetrFrozenBatchNorm2d":
            module.add_module(name, torch.nn.BatchNorm2d(len(child.weight)))
        else:
            learning_norms(child)


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
    case: Case, pixels: torch.Tensor, targets: list[Target], weights: dict[str, torch.Tensor] | None = None
) -> Step:
    network = build(case.spec, case.classes, pretrained=not case.tiny).train()
    if weights is not None:
        network.load_state_dict(from_hugging_face(weights), strict=True)
    criterion, rule = Criterion(case.spec, case.classes), optimizer(network)

    def step() -> float:
        rule.zero_grad()
        loss = criterion(network(pixels), targets).total
        loss.backward()
        rule.step()
        return loss.item()

    return step


def inputs(case: Case) -> tuple[torch.Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    return pixels, truths(case.batch, case.boxes, case.classes)


def memory(case: Case, whose: str) -> None:
    """Prints the peak of resident memory, MiB, of a process that does three steps."""
    given = inputs(case)
    step = our_step(case, *given) if whose == "ours" else their_step(peer(case), *given)
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
    parser.add_argument("--tiny", action="store_true", help="the quickstart's detector")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    case = Case(asked.size, asked.boxes, asked.backbone, asked.tiny)
    if asked.memory_of:
        memory(case, asked.memory_of)
        return
    print(f"torch {torch.__version__}, transformers {version('transformers')}, {asked.threads} threads")
    print(f"{case.size} pixels, batch {case.batch}, {case.boxes} boxes an image, backbone trained: {case.backbone}")
    given, network = inputs(case), peer(case)
    weights = None if case.tiny else network.state_dict()
    steps = {"ours": our_step(case, *given, weights), "transformers": their_step(network, *given)}
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
        rate = case.batch / statistics.median(seconds)
        span = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"{name}: {statistics.median(seconds):.3f} CPU s a step ({span}), {rate:.2f} images a second")
    print(f"ratio, pair by pair: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    peaks = {}
    for name in steps:
        command = [sys.executable, *sys.argv, "--memory-of", name]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(", ".join(f"{name} {peak} MiB" for name, peak in peaks.items()))
    print(f"peak memory: {peaks['ours'] / peaks['transformers']:.2f} of transformers'")


if __name__ == "__main__":
    main()
