"""Files of tensors and plain values, from any program, read without running code. Knows no names of tensors.

PyTorch's own format (`torch.save`, Lightning) and safetensors; which of them is told by content, not by suffix.
"""

import argparse
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import safe_globals

from model.errors import CheckpointError

# Published checkpoints keep their command line and numpy scores beside the weights. These types hold data only.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before numpy 2, and since
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")},
]
# An unpickler that meets arbitrary bytes fails in whatever operation those bytes happen to ask for.
_DAMAGE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, EOFError,
    MemoryError, ImportError, OSError, pickle.UnpicklingError, struct.error, SafetensorError,
)  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL ([\w.]+\w)")


def read_raw(path: Path) -> dict[str, Any]:
    """The file's whole dict on the CPU. Raises CheckpointError naming file and fix."""
    if path.is_dir():
        inside = sorted(each.name for each in path.iterdir() if each.suffix in (".safetensors", ".pth", ".bin"))
        raise CheckpointError(
            f"a checkpoint must be a file, but {path} is a folder; name the file in it"
            f"{': ' + ', '.join(inside[:5]) if inside else ''}."
        )
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must exist, but there is no file {path}; check the path.")
    if path.suffix in (".engine", ".plan"):
        raise CheckpointError(
            f"a checkpoint must hold weights, but {path} is a TensorRT engine, whose weights cannot be read back; name "
            "the checkpoint or the ONNX file that it was built from."
        )
    try:
        raw = load_file(path) if _is_safetensors(path) else _load_torch(path)
    except _DAMAGE as error:
        raise CheckpointError(_unreadable(path, error)) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"a checkpoint must hold a dict, but {path} holds a {type(raw).__name__}.")
    if raw.get("state_dict_encrypted"):
        raise CheckpointError(_encrypted(path))
    return raw


def _load_torch(path: Path) -> Any:
    with safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pickle protocol that arbitrary bytes claim
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and not start.startswith(b"PK")


def _unreadable(path: Path, error: BaseException) -> str:
    code = _GLOBAL.search(str(error))
    if path.suffix in (".tlt", ".etlt") or (code and code[1] == "_io.BytesIO"):
        return _encrypted(path)
    if code:
        return (
            f"a checkpoint must hold tensors and plain values only, but {path} also holds code ({code[1]}), which is "
            "never loaded; where you trust the file, save its state_dict alone."
        )
    # PyTorch's text on a pickle that it refuses is advice to load it unsafely.
    reason = "" if isinstance(error, pickle.UnpicklingError) else f": {str(error).partition(chr(10))[0][:160]}"
    return (
        f"a checkpoint must be a whole file of torch.save or safetensors, but {path} ({path.stat().st_size} bytes) "
        f"cannot be read ({type(error).__name__}{reason}); it is cut short, damaged, encrypted or of another kind. "
        "Copy it again."
    )


def _encrypted(path: Path) -> str:
    return (
        f"a checkpoint must not be encrypted, but {path} is; no key is asked for and none is kept. Decrypt it with the "
        "program that wrote it, or take the unencrypted .pth."
    )
