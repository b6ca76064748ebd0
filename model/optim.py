"""Parameter groups, the optimizer and the learning rate as a function of the epoch. Knows no training loop."""

from typing import Any

from torch import nn, optim

from model.spec import ExperimentSpec, OptimSpec


def parameter_groups(model: nn.Module, spec: ExperimentSpec) -> list[dict[str, Any]]:
    """Groups by name: backbone at `lr_backbone`, sampling offsets and reference points at `lr` x multiplier, the rest
    at `lr` (paper, section A.4). Frozen parameters belong to none. A name in both lists counts as backbone."""
    rates = spec.train.optim
    groups: dict[str, tuple[float, list[nn.Parameter]]] = {
        "transformer": (rates.lr, []),
        "backbone": (rates.lr_backbone, []),
        "projections": (rates.lr * rates.lr_linear_proj_mult, []),
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "transformer"
        if any(part in name for part in spec.model.backbone_names):
            kind = "backbone"
        elif any(part in name for part in spec.model.linear_proj_names):
            kind = "projections"
        groups[kind][1].append(parameter)
    return [
        {"name": kind, "lr": rate, "peak_lr": rate, "params": parameters}
        for kind, (rate, parameters) in groups.items()
        if parameters
    ]


def make_optimizer(groups: list[dict[str, Any]], spec: OptimSpec, *, fused: bool) -> optim.Optimizer:
    if spec.optimizer == "SGD":
        return optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=fused)
    return optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay, fused=fused)


def decay(spec: OptimSpec, epoch: int) -> float:
    """The factor on every peak learning rate in `epoch` (from 0). A pure function, so a resumed run has nothing to
    restore and a wrong scheduler state cannot survive in a checkpoint."""
    if spec.lr_scheduler == "StepLR":
        drops = epoch // spec.lr_step_size
    else:
        drops = sum(epoch >= step for step in spec.lr_steps)
    return float(spec.lr_decay**drops)
