"""Parameter groups, the optimizer and the learning rate as a function of the epoch and step. Knows no training loop."""

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


def settings(spec: OptimSpec, group: dict[str, Any]) -> dict[str, Any]:
    """What of a parameter group in an optimizer comes from the spec; `group` as parameter_groups makes it."""
    found = {"peak_lr": group["peak_lr"], "weight_decay": spec.weight_decay}
    return {**found, "momentum": spec.momentum} if spec.optimizer == "SGD" else found


def factor(spec: OptimSpec, epoch: int, *, progress: float = 0.0, step: int = 0) -> float:
    """What every peak learning rate is multiplied by: in `epoch` (from 0), after `progress` of the whole training
    (0..1) and `step` optimizer steps. A pure function, so a resumed run has nothing to restore and a wrong scheduler
    state cannot survive in a checkpoint."""
    warm = min(1.0, (step + 1) / spec.warmup_steps) if spec.warmup_steps else 1.0
    return warm * float(spec.lr_decay ** drops(spec, epoch, progress))


def drops(spec: OptimSpec, epoch: int, progress: float) -> int:
    """How often the rate has dropped."""
    if spec.lr_drop is not None:
        return int(progress >= spec.lr_drop)
    if spec.lr_scheduler == "StepLR":
        return epoch // spec.lr_step_size
    return sum(epoch >= step for step in spec.lr_steps)


def late_drops(spec: OptimSpec, num_epochs: int) -> str | None:
    """A warning where drops lie beyond the end, which is allowed and seldom meant; None where all is well."""
    name, steps = "lr_steps", list(spec.lr_steps)
    if spec.lr_scheduler == "StepLR":
        name, steps = "lr_step_size", [spec.lr_step_size]
    late = [step for step in steps if step >= num_epochs]
    if spec.lr_drop is not None or not late:
        return None
    effect = "the learning rate never drops" if len(late) == len(steps) else "not all drops come"
    return (
        f"train.optim.{name} names epoch {late[0]}, beyond train.num_epochs={num_epochs}: {effect}. "
        f"0.8 x {num_epochs} epochs would be {max(1, round(0.8 * num_epochs))}; train.optim.lr_drop=0.8 says so for "
        "any length."
    )
