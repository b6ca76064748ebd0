"""Starting weights from any program's file: matched by name, never by position, and always with a report.

Knows what must match for a file to be the right one; knows no training and no other program's names.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from model.errors import CheckpointError
from model.foreign import from_hugging_face, is_hugging_face, with_every_head, without_wrapper
from model.quantised import in_full
from model.spec import ExperimentSpec
from model.tensorfile import read_raw

log = logging.getLogger(__name__)

MIN_COVERAGE = 0.9
"""Share of the network's tensors, class heads aside, that a file must fill, or it is the wrong file."""
BODY = "backbone.0.body"
CLASS_HEADS = "class_embed."
_CONTAINERS = ("state_dict", "model", "model_state_dict")
_COUNTER = "num_batches_tracked"
"""Of a BatchNorm that still counts; a frozen one has nothing to count."""
_NAMED = 6


class LoadReport(NamedTuple):
    """Names of tensors, sorted."""

    wrapper: str
    """What stood before the names in the file."""
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, str]
    """Name to both shapes, in words."""

    def __str__(self) -> str:
        kinds = {
            "matched": self.matched,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": [f"{name} ({shapes})" for name, shapes in self.mismatched.items()],
        }
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
        wrapper = f" (names after `{self.wrapper}`)" if self.wrapper else ""
        lines = [
            f"  {kind}: {', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
            for kind, names in kinds.items()
            if kind != "matched" and names
        ]
        return "\n".join([counts + wrapper, *lines])


def start(model: nn.Module, spec: ExperimentSpec) -> None:
    """Fills a fresh detector as the spec says: whole, its backbone, or, with a warning, not at all."""
    if spec.train.pretrained_model_path:
        if spec.model.pretrained_backbone_path:
            log.warning("model.pretrained_backbone_path is not read: train.pretrained_model_path holds a backbone too")
        load_detector(model, Path(spec.train.pretrained_model_path))
    elif spec.model.pretrained_backbone_path:
        load_backbone(model, Path(spec.model.pretrained_backbone_path))
    else:
        log.warning(
            "no pretrained weights: the whole backbone, its stem and normalisation too, trains from random ones. "
            "model.pretrained_backbone_path names a file to start from"
        )


def load_backbone(model: nn.Module, path: Path) -> LoadReport:
    """Fills the backbone of a detector from the file of a classifier or of a whole detector."""
    return _load(model.get_submodule(BODY), path, "backbone weights")


def load_detector(model: nn.Module, path: Path) -> LoadReport:
    """Fills a detector. Class heads for another number of classes start anew, as they were initialised."""
    return _load(model, path, "weights")


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor of a finished detector, each of the right shape; CheckpointError otherwise."""
    filled, report = fit(model, state)
    if report.missing or report.mismatched or report.unexpected:
        raise CheckpointError(
            f"the weights must be those of the spec beside them, but in {path} they are not ({report}); "
            "the file was altered."
        )
    model.load_state_dict(filled, strict=False)
    log.info("weights of %s: all %d matched", path, len(report.matched))


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors of `state` that `module` takes, under its names, and the report. Changes nothing."""
    wanted = module.state_dict()
    wrapper, bare = without_wrapper(from_hugging_face(state) if is_hugging_face(state) else state, wanted)
    found = with_every_head(bare, wanted)
    both = [name for name in wanted if name in found]
    filled = {name: found[name] for name in both if found[name].shape == wanted[name].shape}
    return filled, LoadReport(
        wrapper=wrapper,
        matched=sorted(filled),
        missing=sorted(name for name in wanted if name not in found and not name.endswith(_COUNTER)),
        unexpected=sorted(name for name in found if name not in wanted and not name.endswith(_COUNTER)),
        mismatched={
            name: f"{tuple(found[name].shape)} in the file, {tuple(wanted[name].shape)} here"
            for name in sorted(both)
            if name not in filled
        },
    )


def tensors(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a file, wherever its program put them."""
    for key in _CONTAINERS:
        if isinstance(raw.get(key), Mapping):
            raw = raw[key]
            break
    return {name: value for name, value in raw.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _load(module: nn.Module, path: Path, what: str) -> LoadReport:
    filled, report = fit(module, tensors(in_full(read_raw(path), path)))
    needed = [name for name in module.state_dict() if not name.startswith(CLASS_HEADS) and not name.endswith(_COUNTER)]
    coverage = sum(name in filled for name in needed) / max(1, len(needed))
    if coverage < MIN_COVERAGE:
        raise CheckpointError(
            f"a file of {what} must fill at least {MIN_COVERAGE:.0%} of the network by name and shape, but {path} "
            f"fills {coverage:.0%}; give the file of the same network. {report}"
        )
    module.load_state_dict(filled, strict=False)
    log.info("%s of %s: %s", what, path, report)
    _tell_partial(report)
    return report


def _tell_partial(report: LoadReport) -> None:
    heads = sorted(name for name in (*report.mismatched, *report.missing) if name.startswith(CLASS_HEADS))
    if heads:
        why = report.mismatched.get(heads[0], "the file has none")
        log.info("the class heads start anew: another number of classes (%s: %s)", heads[0], why)
    rest = [name for name in (*report.mismatched, *report.missing) if not name.startswith(CLASS_HEADS)]
    if rest:
        log.warning("%d other tensors keep their random start: %s", len(rest), ", ".join(rest[:_NAMED]))
