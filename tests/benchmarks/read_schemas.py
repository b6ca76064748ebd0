"""CPU milliseconds to read, translate, validate and derive a space from every schema of a folder.

    python tests/benchmarks/read_schemas.py [FOLDER] [--repeat 5]

Without a folder: the packaged schemas. Each schema is timed cold (the first time that it is seen, its validator made)
and the best of `--repeat` such rounds counts, after one round that is thrown away (imports, caches of jsonschema).
"""

import argparse
import sys
import time
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from schemas.dialect import loads, read_schema
from schemas.validate import check
from search_spaces.derive import derive
from search_spaces.overlays import overlay

STEPS = ("load", "read", "validate", "derive")


def measure(text: str) -> tuple[dict[str, float], Any]:
    """Milliseconds of each step, and the schema."""
    times = [time.process_time()]
    document = loads(text)
    times.append(time.process_time())
    schema = read_schema(document)
    times.append(time.process_time())
    check(schema.default, {"any": schema})
    times.append(time.process_time())
    derive(schema, schema.default, overlay(str(schema.origin.get("network_arch"))))
    times.append(time.process_time())
    spans = [1e3 * (after - before) for before, after in pairwise(times)]
    return dict(zip(STEPS, spans, strict=True)), schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(str(files("schemas"))))
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.rglob("*.schema.json"))
    if not paths:
        raise SystemExit(f"{arguments.folder} holds no *.schema.json.")
    measure(paths[0].read_text(encoding="utf-8"))
    print(f"{'schema':58s} {'keys':>5s} " + " ".join(f"{step:>9s}" for step in (*STEPS, "sum")) + "  findings")
    worst = 0.0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        rounds = [measure(text) for _ in range(arguments.repeat)]
        best, schema = min(rounds, key=lambda each: sum(each[0].values()))
        total = sum(best.values())
        worst = max(worst, total)
        kinds = Counter(finding.kind for finding in schema.findings)
        figures = " ".join(f"{value:9.2f}" for value in (*best.values(), total))
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        print(f"{str(path.relative_to(arguments.folder))[-58:]:58s} {len(schema.leaves):5d} {figures}  {words}")
    print(f"worst {worst:.1f} ms of {len(paths)} schemas")


if __name__ == "__main__":
    main()
