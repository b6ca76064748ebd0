"""A checkpoint -> the same detector with eight-bit weights, by torchao. Knows layers and types; knows no data.

Only the kept weights are smaller: activations stay float32, and the network computes with what the weights stand for.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from deploy.layer_rules import Rule, select
from model.checkpoint import KEY, PREFIX, Checkpoint, describe
from model.errors import Kind
from model.quantised import SCALES, STATE
from model.whole import in_place


class TorchaoMissing(ImportError):  # noqa: N818 - named for what happened
    """torchao cannot be imported; the message says what to install."""

    kind: ClassVar[Kind] = "install"


class Quantised(NamedTuple):
    layers: Mapping[str, str]
    """Layer to type."""
    before: int
    """Bytes of all weights."""
    after: int
    error: float
    """Largest difference of a weight from what it was, as a share of the largest weight of its output row."""
    worst: str
    """The layer of that."""


def choose(model: nn.Module, wanted: Sequence[Rule], skipped: Sequence[str] = ()) -> dict[str, str]:
    """Name of each linear layer that is quantised to its type, as `select` has it. A module under several names (heads
    that all decoder layers share) is chosen by its first."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            names.setdefault(module, []).append(name)
    chosen = select({first: ("Linear",) for first, *_ in names.values()}, wanted, skipped)
    return {name: chosen[each[0]] for each in names.values() if each[0] in chosen for name in each}


def quantise(model: nn.Module, source: Checkpoint, chosen: Mapping[str, str], target: Path) -> Quantised:
    """Writes `target`: `source` with the weights of `chosen` in eight bits. `model` is that of `source`; unchanged."""
    small = dict(_eight_bits(model, chosen))
    state = {PREFIX + name: value for name, value in source.state.items()}
    before = _bytes(state.values())
    error, worst = max((_error(state[PREFIX + name], *kept), name) for name, kept in small.items())
    state |= {PREFIX + name: values for name, (values, _) in small.items()}
    scales = {PREFIX + name: scale for name, (_, scale) in small.items()}
    described = describe(
        source.spec,
        source.classes,
        source.epoch,
        {},  # what was measured belongs to the whole weights
        quantised={
            "layers": dict(chosen),
            "from": source.path.name,
            "sha256": source.sha256,
            "metrics": dict(source.metrics),
        },
    )
    with in_place(target) as (partial,):
        torch.save({STATE: state, SCALES: scales, KEY: described}, partial)
    after = _bytes((*state.values(), *scales.values()))
    return Quantised(dict(chosen), before, after, error, worst.removesuffix(".weight"))


def _error(weight: Tensor, values: Tensor, scale: Tensor) -> float:
    largest = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((values.float() * scale - weight) / largest).abs().max())


def _bytes(tensors: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


def _eight_bits(model: nn.Module, chosen: Mapping[str, str]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Name of each chosen weight, its values and the scale of each output row (N, 1), as torchao has them."""
    with _torchao() as library:
        configs = {"int8": library.Int8WeightOnlyConfig, "fp8_e4m3fn": library.Float8WeightOnlyConfig}
        changed = copy.deepcopy(model).requires_grad_(False)
        for dtype in sorted(set(chosen.values())):
            wanted = {id(changed.get_submodule(name)) for name, kind in chosen.items() if kind == dtype}
            try:
                library.quantize_(
                    changed,
                    configs[dtype](version=2, set_inductor_config=False),
                    filter_fn=lambda module, _, wanted=wanted: id(module) in wanted,
                )
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                raise ValueError(
                    f"torchao must be able to make weights of `{dtype}` here, but says: {error}; use int8."
                ) from None
    for name in chosen:
        weight: Any = changed.get_submodule(name).weight
        yield f"{name}.weight", _finite(weight.qdata, weight.scale.float())


def _finite(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """torchao makes NaN of a float8 row of zeros, whose scale is zero."""
    nothing = scale == 0
    return values.float().masked_fill(nothing, 0.0).to(values.dtype), scale.masked_fill(nothing, 1.0)


@contextmanager
def _torchao() -> Iterator[Any]:
    """`torchao.quantization`, without what it says of kernels for other machines when it is imported."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import torchao.quantization as library
            except ImportError as error:
                raise TorchaoMissing(
                    f"eight-bit weights need torchao, which cannot be imported ({error}): pip install "
                    "'ddetr-automl[quantize]'."
                ) from None
            yield library
    finally:
        logging.disable(level)
