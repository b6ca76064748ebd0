"""The YAML overlays of this package: what we know of a model that its schema cannot say."""

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from schemas import yamlio

COMMON = "common"


@functools.cache
def overlay(network: str) -> Mapping[str, Any] | None:
    """The overlay of a network by its `network_arch` (`deformable_detr`), or None when we have none."""
    path = files("search_spaces") / f"{network}.yaml"
    if not network.isidentifier() or not path.is_file():
        return None
    return yamlio.loads(path.read_text(encoding="utf-8"), source=path.name).data


def common() -> Mapping[str, Any]:
    """What holds for a key of any model by its last name, such as `workers`."""
    found = overlay(COMMON)
    assert found is not None
    return found
