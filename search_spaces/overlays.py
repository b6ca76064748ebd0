"""The YAML overlays of this package: what we know of a model that its schema cannot say, and what the names of keys
tell in a model that we do not know (`common.yaml`). Decides no range."""

import functools
import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from importlib.resources import files
from typing import Any

import yaml

from schemas.dialect import Leaf, Schema
from search_spaces.constraints import RELATIVE, keys

COMMON = "common"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def overlay(network: str) -> Mapping[str, Any] | None:
    """The overlay of a network by its `network_arch` (`deformable_detr`), or None when we have none."""
    path = files("search_spaces") / f"{network}.yaml"
    if not network.isidentifier() or not path.is_file():
        return None
    # Ours, so no line numbers are needed: libyaml reads it in a tenth of the time.
    told: Mapping[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    return told


def common() -> Mapping[str, Any]:
    """What holds in any model by the name of a key, such as `workers`."""
    found = overlay(COMMON)
    assert found is not None
    return found


def entry(leaf: Leaf, schema: Schema, section: str = "parameters") -> dict[str, Any]:
    """What `common.yaml` says of a key, its relatives (`~optimizer`) in place; empty when it says nothing.

    The first pattern counts that fits the name and whose rule finds the keys that it reads.
    """
    for pattern, told in _patterns(section):
        if pattern.match(f".{leaf.name}"):
            placed = _placed(told, _Relatives(leaf.name, schema))
            read = [*keys(placed.get("of", [])), placed.get("times", "")]
            if not any(key.startswith(RELATIVE) for key in read):
                return dict(placed)
    return {}


def other_action(leaf: Leaf, schema: Schema) -> str | None:
    """The action that a key's section belongs to where that is not the schema's own (train, when it names none)."""
    section, own = leaf.name.partition(".")[0], str(schema.origin.get("action") or "train")
    return section if section in common()["actions"] and section != own else None


@functools.cache
def _patterns(section: str) -> list[tuple[re.Pattern[str], Mapping[str, Any]]]:
    told: list[Mapping[str, Any]] = common()[section]
    return [(re.compile(translate(pattern)), entry) for entry in told for pattern in entry["keys"].split()]


class _Relatives:
    """The keys that stand near one key of a schema."""

    def __init__(self, name: str, schema: Schema) -> None:
        self.name, self.schema = name, schema

    def find(self, word: str) -> str | None:
        """The key that a relative stands for; None where the schema has none."""
        if word == f"{RELATIVE}self":
            return self.name
        told: Mapping[str, Any] = common()["relatives"][word.removeprefix(RELATIVE)]
        near = self._near(told["names"], told.get("where", "anywhere"))
        return next((name for name in near if self._fits(name, told.get("like"))), None)

    def _near(self, names: list[str], where: str) -> Iterator[str]:
        """Beside the key, then in the groups above it, then, where just one key of the training is called so, any."""
        group = self.name
        while group:
            group = group.rpartition(".")[0]
            for name in names:
                key = f"{group}.{name}" if group else name
                if key in self.schema.leaves and key != self.name:
                    yield key
            if where == "beside":
                return
        for name in names if where == "anywhere" else ():
            found = [
                key
                for key, leaf in self.schema.leaves.items()
                if key.endswith(f".{name}") and key != self.name and not other_action(leaf, self.schema)
            ]
            yield from found if len(found) == 1 else ()

    def _fits(self, name: str, like: str | None) -> bool:
        """Whether the key is what its name says: a `type` may be of an optimizer or of anything else."""
        leaf = self.schema.leaves[name]
        values = [*(leaf.choices or ()), leaf.default]
        return like is None or any(re.search(like, str(value), re.IGNORECASE) for value in values)


def _placed(value: Any, relatives: _Relatives) -> Any:
    """A copy of an entry with the relatives' full names; one that the schema lacks stays as it is written."""
    if isinstance(value, Mapping):
        return {_placed(key, relatives): _placed(each, relatives) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, relatives) for each in value]
    if not isinstance(value, str) or RELATIVE not in value:
        return value
    return re.sub(rf"{RELATIVE}\w+", lambda match: relatives.find(match[0]) or match[0], value)
