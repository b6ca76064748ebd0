"""Activation checkpointing of one module. Knows nothing of what the module computes."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """`module(*inputs)`. With `recompute`, in training, the backward pass computes its activations a second time in
    place of keeping them, with the random numbers of the first: values and gradients stay the same."""
    if recompute and module.training and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
