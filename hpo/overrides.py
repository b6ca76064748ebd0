"""Spec file, overrides file, flags and `key=value` to one document; what comes later wins.

Knows short names of keys and where each value was written; no rule of any key.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import SpecError
from schemas import dotted, yamlio

POLICY, BLOCK, PARENT = "automl_policy", "automl", "parent_job_id"
"""Top-level keys of ours that are taken out before a spec is checked."""
SHORT: Mapping[str, str] = {
    "num_epochs": "train.num_epochs", "batch_size": "dataset.batch_size", "learning_rate": "train.optim.lr",
}  # fmt: skip
NUM_CLASSES = "dataset.num_classes"
COUNTED = re.compile(r"\s*<[\w ]+>\s*\+\s*1\s*")
"""`<num_classes> + 1`, as TAO's users write it: to be counted in the annotations."""
FLAGS: Mapping[str, str] = {
    "tier": "tier", "params": "params", "exclude": "exclude", "range": "ranges", "fix": "fix", "trials": "trials",
    "hours": "hours", "searcher": "searcher", "scheduler": "scheduler", "algorithm": "algorithm",
    "seed_from": "seed_from",
}  # fmt: skip
"""Name of a command line flag (`--seed-from` is `seed_from`) -> the key of the `automl:` block that it sets."""
FILE = "overrides_file"
"""Name of the flag `--overrides` among parsed arguments."""
_SUCH_AS = {"range": "lr=1e-5:1e-3:log", "fix": "train.optim.optimizer=SGD"}


def read_document(path: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]) -> yamlio.Document:
    """The spec file, then the overrides file and the flags among `flags` (parsed arguments), then `key=value`.
    SpecError for what cannot be read."""
    try:
        document = yamlio.load(path) if path else yamlio.loads("", source="nothing")
        if flags.get(FILE) is not None:
            document = laid_over(document, yamlio.load(flags[FILE]))
        for flag, text in _flag_overrides(flags):
            document = yamlio.override(document, [text], origin=flag)
        document = yamlio.override(document, [_in_full(text) for text in overrides])
    except yamlio.SpecFileError as error:
        raise SpecError([str(error)]) from None
    value = dotted.get(document.data, NUM_CLASSES)
    if isinstance(value, str) and COUNTED.fullmatch(value):
        # Left out, it is the training annotations' own, or that of the model which an action is given.
        return yamlio.Document(data=dotted.drop(document.data, NUM_CLASSES), origins=document.origins)
    return document


def laid_over(document: yamlio.Document, above: yamlio.Document) -> yamlio.Document:
    """The overrides file `above` on `document`: keys are dotted or short, values as in a spec; a group is merged key by
    key, anything else replaced. SpecFileError for one key written twice, whatever the spelling."""
    data, origins, seen = document.data, dict(document.origins), dict[str, str]()
    for key, value in above.data.items():
        name, place = SHORT.get(key, str(key)), above.origins[str(key),]
        steps = dotted.split(name)
        if "" in steps:
            raise yamlio.SpecFileError(
                f"{place}: a key of an overrides file is a dotted name, such as train.optim.lr, but is {key!r}."
            )
        for leaf, _ in dotted.leaves({name: value}):
            if leaf in seen:
                raise yamlio.SpecFileError(
                    f"{place}: the key `{leaf}` is given twice in one file, first in {seen[leaf]}; keep one of them."
                )
            seen[leaf] = place
        below = dotted.get(data, name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = dotted.merge(below, value)
        else:
            origins = {path: where for path, where in origins.items() if path[: len(steps)] != steps}
        data = dotted.put(data, name, value)
        origins |= {(*steps, *path[1:]): where for path, where in above.origins.items() if path[0] == str(key)}
    return yamlio.Document(data=data, origins=origins)


def _in_full(text: str) -> str:
    """An override with its key in full; Hydra's `~key` leaves a key to its default."""
    if text.startswith("~"):
        return f"{text[1:].partition('=')[0]}=null"
    key, equals, value = text.partition("=")
    name = key.strip().lstrip("+")
    return f"{SHORT.get(name, name)}{equals}{value}" if equals else text


def _flag_overrides(flags: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(the flag as it is typed, the override that it stands for)"""
    for name, key in FLAGS.items():
        given = flags.get(name)
        flag = f"--{name.replace('_', '-')}"
        if given is None:
            continue
        if name in ("range", "fix"):
            for text in given:
                if text.partition("=")[0] in ("", text):
                    raise SpecError([f"`{flag}` has the form key=value, such as {_SUCH_AS[name]}, but is {text!r}."])
                yield f"{flag} {text}", f"{BLOCK}.{key}.{text}"
        elif name in ("params", "exclude"):
            parts = [part.strip() for part in given.split(",") if part.strip()]
            yield flag, f"{BLOCK}.{key}={json.dumps(parts)}"
        elif name in ("trials", "hours"):
            yield flag, f"{BLOCK}.{key}={given}"
        else:
            yield flag, f"{BLOCK}.{key}={json.dumps(given)}"
