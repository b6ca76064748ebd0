"""Files that almost are what a parser expects: one that is right, with a few bytes or a few values of its tree changed.

Strategies of hypothesis, so that a failing case shrinks to the smallest change.
"""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1 << 31, 1 << 63, -(1 << 70), 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "../../outside", "/etc/passwd", "\x00", "???", "s3://", "~", "${oc.env:HOME}", "!!python/object:os.system",
    "1e999", [], [[]], {}, {"": None}, [0] * 9, {"a": {"b": {"c": []}}}, "\ud800", "٣", "<b>&", "a" * 4000,
)  # fmt: skip
"""Values that an author of a parser may not have thought of."""
CHUNKS = (b"", b"\0", b"\xff" * 4, b"\n", b"{", b"]", b"'", b": ", b"- ", b"&a *a", b"\x80\x81", b"9" * 40, b"\r\n\t",
          b"[" * 20_000, b"a: " * 9, b"2001-13-41", b"1:99:99")  # fmt: skip


@st.composite
def bytes_like(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds` with up to four places overwritten, cut out, repeated or filled with oddities."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, min(64, len(content) - start)))
        match draw(st.sampled_from(("flip", "cut", "end", "again", "chunk", "random"))):
            case "flip" if content:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[start : start + length]
            case "end":
                del content[start:]
            case "again":
                content[start:start] = content[start : start + length] * draw(st.integers(1, 3))
            case "chunk":
                content[start : start + length] = draw(st.sampled_from(CHUNKS))
            case _:
                content[start : start + length] = draw(st.binary(max_size=16))
    return bytes(content)


@st.composite
def trees_like(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """One of `seeds`, nested mappings and lists, with up to four of its values replaced, removed, moved or renamed."""
    tree = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(0, 4))):
        holder, key = draw(st.sampled_from(places)) if (places := _places(tree)) else (None, None)
        if holder is None:
            return draw(st.sampled_from(ODD))
        match draw(st.sampled_from(("odd", "odd", "gone", "other", "name", "wrap"))):
            case "odd":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "gone":
                del holder[key]
            case "other":
                other, name = draw(st.sampled_from(places))
                holder[key] = json.loads(_dump(other[name]))
            case "name" if isinstance(holder, dict):
                holder[draw(st.sampled_from(("", "x", f"{key} ", f"{key}s", "__class__", "a.b")))] = holder.pop(key)
            case _:
                holder[key] = [holder[key]]
    return tree


def texts_like(seeds: Sequence[Any], write: Callable[[Any], str]) -> st.SearchStrategy[bytes]:
    """Trees as files, and files with bytes changed."""
    files = [write(seed).encode() for seed in seeds]
    return st.one_of(trees_like(seeds).map(lambda tree: write(tree).encode("utf-8", "replace")), bytes_like(files))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in the tree, in order."""
    found: list[tuple[Any, Any]] = []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        found.append((tree, key))
        found += _places(tree[key])
    return found


def _dump(value: Any) -> str:
    return json.dumps(value)
