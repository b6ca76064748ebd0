"""The builder's timings of kernels, kept in a file between builds. Knows the file and whose it is; builds nothing.

A description beside the file, <file>.json, names the library that took the timings: those of another version are not
used, and are replaced. A file without one, of another program, is the library's own to accept; what it does not accept
is left as it is.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from deploy import sidecar, trt
from model.whole import in_place

KEY = "gen_trt_engine.timing_cache"


class Timings(NamedTuple):
    """What became of a timing cache before a build."""

    said: str
    """A sentence for the user."""
    write: bool
    """Whether the build's own timings are to go into the file."""


def check(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"`{KEY}` must name a file, but `{path}` is a folder; name a file in it.")


def attach(config: Any, library: trt.Library, log: Any, path: Path) -> Timings:
    """Gives the builder what the file holds, or an empty cache to fill."""
    if library.name in trt.AHEAD_OF_TIME or not hasattr(config, "create_timing_cache"):
        return Timings(f"{KEY} is passed over: {library.name} takes no timings when it builds.", False)
    own = _own(library)
    if not path.is_file():
        _give(config, log, b"")
        return Timings(f"{KEY}: `{path}` is new.", True)
    described = sidecar.path_of(path)
    theirs = described.read_text(encoding="utf-8") if described.is_file() else None
    if theirs in (None, own) and _give(config, log, path.read_bytes()):
        return Timings(f"{KEY}: read from `{path}`.", True)
    _give(config, log, b"")
    if theirs is None:
        return Timings(
            f"{KEY} is not used, and left as it is: {library.name} {library.version} refuses `{path}`.", False
        )
    return Timings(
        f"{KEY} is not used, and replaced: `{path}` is not of {library.name} {library.version} on this machine.", True
    )


def keep(config: Any, library: trt.Library, path: Path) -> None:
    """Writes the timings after a build."""
    with in_place(path, sidecar.path_of(path)) as (partial, described):
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
        described.write_text(_own(library), encoding="utf-8")


def _own(library: trt.Library) -> str:
    return json.dumps({"library": library.name, "library_version": library.version}) + "\n"


def _give(config: Any, log: Any, content: bytes) -> bool:
    """Whether the library takes it. It refuses by its return values, or by a complaint and an empty cache."""
    before = len(log.errors), len(log.warnings)
    cache = config.create_timing_cache(content)
    taken = cache is not None and bool(config.set_timing_cache(cache, False))
    quiet = (len(log.errors), len(log.warnings)) == before
    del log.errors[before[0] :], log.warnings[before[1] :]
    return taken and quiet
