"""Weights that a checkpoint keeps in eight bits, and how they are read back. Knows no library that makes them.

Such a file has one more entry, `scales`: for each weight that `state_dict` holds as int8 or float8, the float32 factor
of every output row. Both are plain tensors, so that the file needs no package but torch, and no class is pickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import CheckpointError

SCALES = "scales"
STATE = "state_dict"
DTYPES: Mapping[str, torch.dtype] = {"int8": torch.int8, "fp8_e4m3fn": torch.float8_e4m3fn}
"""The spec's word for a type to torch's."""


def in_full(raw: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The dict of the file at `path` with those weights in float32; any other file's as it is. Raises CheckpointError
    where weights and scales do not belong together."""
    state, scales = raw.get(STATE), raw.get(SCALES, {})
    if not isinstance(state, Mapping) or not isinstance(scales, Mapping):
        return raw
    small = {name for name, value in state.items() if isinstance(value, Tensor) and value.dtype in DTYPES.values()}
    if small != set(scales) or any(scales[name].shape != (len(state[name]), 1) for name in small):
        raise CheckpointError(
            f"a quantised checkpoint must hold the scales of its eight-bit weights, but those of {path} are of others; "
            "the file was altered. Copy it again, or quantise anew."
        )
    return {**raw, STATE: {**state, **{name: state[name].float() * scales[name] for name in small}}}
