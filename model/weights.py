"""Starting weights from a file, matched by name, never by position, with a report. Knows no training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from model.checkpoint import read_raw
from model.errors import CheckpointError

MIN_COVERAGE = 0.9
"""Share of the module's tensors that a file must fill, or it is the wrong file."""
PREFIXES = ("module.", "model.", "backbone.0.body.", "backbone.")
"""Wrappers that training programs put before the names of a network."""


class LoadReport(NamedTuple):
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in self._asdict().items())
        named = [f"  {kind}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
                 for kind, names in self._asdict().items() if kind != "matched" and names]  # fmt: skip
        return "\n".join([counts, *named])


def load_by_name(module: nn.Module, path: Path, *, optional: tuple[str, ...] = ()) -> LoadReport:
    """Fills `module` from the file at `path`. Tensors of another shape are left as they are and reported. Raises
    CheckpointError below MIN_COVERAGE; names that contain a part of `optional` do not count against it."""
    wanted = module.state_dict()
    found = _strip(_tensors(read_raw(path)), set(wanted))
    fitting = {name: value for name, value in found.items() if name in wanted and value.shape == wanted[name].shape}
    report = LoadReport(
        matched=sorted(fitting),
        missing=sorted(set(wanted) - set(found)),
        unexpected=sorted(set(found) - set(wanted)),
        mismatched=sorted(n for n in found if n in wanted and n not in fitting),
    )
    needed = [name for name in wanted if not any(part in name for part in (*optional, "num_batches_tracked"))]
    coverage = sum(name in fitting for name in needed) / max(1, len(needed))
    if coverage < MIN_COVERAGE:
        raise CheckpointError(
            f"a weights file must fill at least {MIN_COVERAGE:.0%} of the module by name, but {path} fills "
            f"{coverage:.0%} ({report}); give the file of the same network."
        )
    module.load_state_dict(fitting, strict=False)
    return report


def _tensors(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(raw.get(key), dict):
            raw = raw[key]
            break
    return {name: value for name, value in raw.items() if isinstance(value, Tensor)}


def _strip(found: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Takes wrapper prefixes off as long as that makes more names fit."""
    best = found
    while True:
        options = [{name.removeprefix(prefix): value for name, value in best.items()} for prefix in PREFIXES]
        better = max(options, key=lambda option: len(wanted & set(option)))
        if len(wanted & set(better)) <= len(wanted & set(best)) and not _all_wrapped(best):
            return best
        best = better


def _all_wrapped(found: Mapping[str, Tensor]) -> bool:
    return bool(found) and any(all(name.startswith(prefix) for name in found) for prefix in PREFIXES)
