"""Spec files and `key=value` overrides to plain nested dicts that remember where each value was written.

Safe YAML 1.1 with three repairs: `1e-4` is a number, `1:30` and dates are text, a key given twice is an error.
`on` and `off` stay booleans; whoever reads a key that allows them maps them. Knows no key by name.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from schemas import dotted

COMMAND_LINE = "on the command line"
DEEPEST = 100
"""Groups and lists within one another."""
MOST = 100_000
"""Values of a file, each counted as often as it is referred to."""
_KINDS: Mapping[type, str] = {str: "text", list: "a list", int: "a number", float: "a number", bool: "true or false"}


class SpecFileError(ValueError):
    """A spec file or an override cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Document:
    data: dict[str, Any]
    origins: Mapping[tuple[str, ...], str]
    """Path of a key -> `spec.yaml:12`, or that it was an override."""

    def origin(self, name: str) -> str | None:
        """Where `name`, or the nearest group or list around it, was written."""
        steps = dotted.split(name)
        for length in range(len(steps), 0, -1):
            if steps[:length] in self.origins:
                return self.origins[steps[:length]]
        return None

    def origin_within(self, name: str) -> str | None:
        """Where `name` itself was written, or the first key in it where those alone were."""
        steps = dotted.split(name)
        inner = (where for path, where in self.origins.items() if path[: len(steps)] == steps)
        return self.origins.get(steps) or next(inner, None)


class _Loader(yaml.SafeLoader):
    """SafeLoader with its own number forms (below), duplicate keys refused and one origin for each key."""

    source = ""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        self._go_deeper(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._go_deeper(len(self.indents))
        return bool(super().add_indent(column))

    def _go_deeper(self, depth: int) -> None:
        """PyYAML's time grows with the square of the depth, until Python's stack ends."""
        if depth > DEEPEST:
            raise RecursionError

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise SpecFileError(
                        f"{self.source}:{line}: the key `{key.value}` is given twice in one group, first in line "
                        f"{seen[key.value]}; keep one of them."
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rsplit(":", 1)[1] not in ("int", "float", "timestamp")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_EXPONENT = r"([eE][-+]?[0-9]+)"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        rf"^([-+]?([0-9][0-9_]*\.[0-9_]*{_EXPONENT}?|\.[0-9][0-9_]*{_EXPONENT}?|[0-9][0-9_]*{_EXPONENT})"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load(path: Path) -> Document:
    """Reads a spec file. SpecFileError when it is missing, is not YAML, repeats a key or is not a group of keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecFileError(f"the file {path} cannot be read: {reason}; correct its path.") from None
    # JSON may be indented with tabs, which YAML refuses; inside its texts there are none.
    return loads(text.replace("\t", " ") if path.suffix == ".json" else text, source=path.name)


def loads(text: str, *, source: str = "spec") -> Document:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise SpecFileError(
            f"{source}: not readable as YAML: it holds the control character {chr(error.character)!r} at "
            f"{error.position + 1}; remove it."
        ) from None
    loader.source = source
    try:
        node = loader.get_single_node()
        _check_aliases(node, source)
        data = {} if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise SpecFileError(
            f"{place}: not readable as YAML: {error.problem or error.context}; correct this "
            "line or the one before: keys are indented with spaces, `key: value`, and brackets close."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, SpecFileError):
            raise
        raise SpecFileError(f"{source}: not readable as YAML: {error}") from None
    except RecursionError:
        raise SpecFileError(f"{source}: brackets are nested too deeply to be read; a spec needs few levels.") from None
    finally:
        loader.dispose()
    if data is None:
        data, node = {}, None
    if not isinstance(data, dict):
        raise SpecFileError(
            f"{source}: a spec is a group of keys, but this file holds {_KINDS.get(type(data), 'a value')}; write "
            "`key: value` lines."
        )
    origins: dict[tuple[str, ...], str] = {}
    if node is not None:
        _note_origins(node, (), source, origins)
    return Document(data=data, origins=origins)


def parse_value(text: str) -> Any:
    """The right side of `key=value`: a YAML value. Text that YAML would shorten or refuse is taken as it stands."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_aliases(node, text)
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: such as a date of month 13
        return text
    quoted = text.strip()[:1] in ("'", '"')
    return text.strip() if isinstance(value, str) and not quoted else _paired(value)


def _paired(value: Any) -> Any:
    """Hydra needs no space after a colon: in YAML `{image_dir:/data}` would be one key without a value."""
    if isinstance(value, list):
        return [_paired(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    paired = {}
    for key, item in value.items():
        name, colon, text = key.partition(":") if isinstance(key, str) and item is None else (key, "", "")
        paired[name] = parse_value(text) if colon else _paired(item)
    return paired


def override(document: Document, overrides: Sequence[str], origin: str = COMMAND_LINE) -> Document:
    """`key=value` on top of a document, in order. `+key` and `++key` (Hydra's "add") mean the same here. origin: where
    these were written."""
    data, origins = document.data, dict(document.origins)
    for text in overrides:
        key, equals, value = text.partition("=")
        name = key.strip().lstrip("+")
        if not equals or not name or any(step == "" for step in dotted.split(name)):
            raise SpecFileError(f"an override has the form key=value, such as train.optim.lr=1e-4, but is {text!r}.")
        parsed = parse_value(value)
        if isinstance(parsed, Mapping) and isinstance(dotted.get(data, name), Mapping):
            parsed = dotted.merge(dotted.get(data, name), parsed)
        data = dotted.put(data, name, parsed)
        steps = dotted.split(name)
        origins = {path: where for path, where in origins.items() if path[: len(steps)] != steps}
        origins[steps] = origin
    return Document(data=data, origins=origins)


def _check_aliases(root: yaml.Node | None, source: str) -> None:
    """SpecFileError for few lines that stand for more values than fit into memory, or for themselves."""
    counts: dict[yaml.Node, int] = {}

    def count(node: yaml.Node) -> int:
        if node not in counts:
            counts[node] = MOST  # of a node within itself
            inner: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
            counts[node] = min(1 + sum(map(count, parts)), MOST)
        return counts[node]

    if root is not None and count(root) >= MOST:
        raise SpecFileError(
            f"{source}: its aliases (`*name`) stand for {MOST} values or more, or for themselves; write out what is "
            "meant."
        )


class _Dumper(yaml.SafeDumper):
    """Quotes text that either this reader or a plain YAML 1.1 reader would take for something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump(data: Mapping[str, Any]) -> str:
    """YAML text that reads the same here and in plain YAML 1.1; keys keep their order."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110
    )


def _note_origins(
    node: yaml.Node, path: tuple[str, ...], source: str, origins: dict[tuple[str, ...], str], depth: int = 0
) -> None:
    if depth > 50:  # an alias may contain itself
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value)) if isinstance(key, yaml.ScalarNode) else path
            origins.setdefault(inner, f"{source}:{key.start_mark.line + 1}")
            _note_origins(value, inner, source, origins, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            origins.setdefault((*path, str(place)), f"{source}:{item.start_mark.line + 1}")
            _note_origins(item, (*path, str(place)), source, origins, depth + 1)
