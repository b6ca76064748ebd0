"""Files that are no checkpoints: one clear error each, whatever the bytes, and no code is run."""

import contextlib
import io
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.errors import CheckpointError
from model.tensorfile import read_raw


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("was_run",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Malicious()}, path)
    with pytest.raises(CheckpointError, match=r"also holds code \(.*mkdir\), which is never loaded"):
        read_raw(path)
    assert not Path("was_run").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_give_one_named_error(tmp_path: Path, legacy: bool) -> None:
    """Cut at any place, any bit changed: read as what it was, or refused; nothing else comes out."""
    whole = tmp_path / "whole.pth"
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    torch.save({"state_dict": state, "epoch": 3}, whole, _use_new_zipfile_serialization=not legacy)
    data, damaged = whole.read_bytes(), tmp_path / "damaged.pth"
    chance = random.Random(0)
    for _ in range(150):
        bits = bytearray(data)
        bits[chance.randrange(len(bits))] ^= 1 << chance.randrange(8)
        for content in (data[: chance.randrange(len(data))], bytes(bits), chance.randbytes(200)):
            damaged.write_bytes(content)
            with contextlib.suppress(CheckpointError):
                read_raw(damaged)
    damaged.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"whole file .* cannot be read .* cut short"):
        read_raw(damaged)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_raw(path)


def test_encrypted_files_are_named_as_such(tmp_path: Path) -> None:
    for name, content in {
        "a.pth": {"state_dict": b"\x01\x02", "state_dict_encrypted": True},
        "b.pth": {"state_dict": io.BytesIO(b"\x01\x02"), "state_dict_encrypted": True},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="must not be encrypted"):
            read_raw(tmp_path / name)
    for name in ("c.tlt", "d.etlt"):
        (tmp_path / name).write_bytes(random.Random(1).randbytes(500))
        with pytest.raises(CheckpointError, match="must not be encrypted"):
            read_raw(tmp_path / name)


def test_a_folder_an_absent_file_and_a_list(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a folder; name the file in it: model\.safetensors"):
        read_raw(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file"):
        read_raw(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"must hold a dict, but .* holds a list"):
        read_raw(tmp_path / "list.pth")
