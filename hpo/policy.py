"""Search, train plainly, or "enabled but not runnable, because ...": one decision with its reason.

Reads the packaged manifest and writes nothing: an `automl_policy` is for one run. Knows no space and no budget.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hpo.errors import PolicyError
from model.errors import SpecError
from schemas import packaged

Policy = Literal["auto", "on", "off"]
POLICIES: tuple[Policy, ...] = ("auto", "on", "off")
SEARCHED = "train"
"""The only action that is ever searched."""

_SUBJECT = r"(?:auto[\s_-]?ml|hpo|hyper[\s-]?parameter\s+(?:search\w*|tuning|optimi[sz]ation)|(?:the\s+)?sweeps?)"
_FILLER = r"(?:\s+(?:the|any|all|an?|use|using|doing|running|of|with|need|for))*\s+"
_OFF = [
    re.compile(rf"\b(?:turn|switch)(?:ed|ing|es|s)?\s+off{_FILLER}{_SUBJECT}\b"),
    re.compile(rf"\b(?:turn|switch)(?:ed|ing|es|s)?(?:\s+the)?\s+{_SUBJECT}\s+off\b"),
    re.compile(rf"\b(?:disabl|skip|avoid|omit)\w*{_FILLER}{_SUBJECT}\b"),
    re.compile(rf"\b(?:no|without){_FILLER}{_SUBJECT}\b"),
    re.compile(rf"\b(?:do\s+not|don'?t|never|not)\s+(?:want|use|run|do|start|enable|perform|need)"
               rf"(?:\s+to\s+\w+)?{_FILLER}{_SUBJECT}\b"),
    re.compile(rf"\b{_SUBJECT}\s*(?:(?:_|\s)policy)?\s*(?:=|:|is|should\s+be|must\s+be)?\s*(?:off|disabled)\b"),
    re.compile(rf"\b{_SUBJECT}\s+(?:is|are)(?:\s+not|n't)\s+(?:needed|wanted|necessary|required)\b"),
    re.compile(r"\b(?:plain|ordinary|normal|single|simple)\s+train(?:ing)?\b"),
    re.compile(r"\b(?:train\s+(?:it\s+)?(?:plainly|once)|just\s+train)\b"),
]  # fmt: skip
"""Ways to say that this run should not search, in lower case."""
_NEGATED = re.compile(
    r"\b(?:do\s+not|does\s+not|did\s+not|should\s+not|must\s+not|don'?t|doesn'?t|shouldn'?t|mustn'?t|won'?t|never|not|no|without|"
    r"instead\s+of|rather\s+than|avoid|stop)(?:\s+(?:to|a|an|the|please|ever|just|want|need|do|use|run|train|turn|switch|leave|keep|set|you|me|it|by))*\s*$"
)
"""What stands right before such words and turns them round: "do not turn off AutoML"."""


class Decision(NamedTuple):
    run_hpo: bool
    because: str
    """Never empty; printed and recorded."""


def means_off(text: str) -> bool:
    """Whether words ask for a run without a search. "do not turn off AutoML" does not."""
    words = " ".join(text.lower().replace("\u2019", "'").split())
    return any(not _NEGATED.search(words[: match.start()]) for pattern in _OFF for match in pattern.finditer(words))


def read_policy(value: Any, request_text: str | None = None) -> Policy:
    """The policy of a run from the spec's `automl_policy` and the user's words.

    `on` and `off` win over words; `auto`, or nothing, leaves it to them. Unquoted `on` and `off` are booleans in YAML.
    The value may itself be words that mean off. SpecError for anything else.
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    word = str(value).strip().lower() if value is not None else "auto"
    chosen = next((policy for policy in POLICIES if policy == word), None)
    if chosen is None:
        if isinstance(value, str) and means_off(value):
            return "off"
        raise SpecError(
            [
                '`automl_policy` must be auto, on or off, or words that mean off such as "plain training", but is '
                f"{value!r}."
            ]
        )
    return "off" if chosen == "auto" and request_text and means_off(request_text) else chosen


def resolve(policy: Policy, action: str, *, folder: Traversable | Path | None = None) -> Decision:
    """Whether to search. PolicyError when `on` asks for a search that cannot run.

    folder: where manifest, schema and template lie; the packaged ones by default.
    """
    if action != SEARCHED:
        return Decision(False, f"`{action}` runs directly; only `{SEARCHED}` is ever searched")
    if policy == "off":
        return Decision(False, "automl_policy is off for this run")
    obstacle = _obstacle(folder if folder is not None else packaged.folder())
    if obstacle is None:
        how = "automl_policy is on" if policy == "on" else "automl_policy is auto, and AutoML is enabled and runnable"
        return Decision(True, how)
    if policy == "on":
        raise PolicyError(
            f"`automl_policy=on` asks for a search, but there can be none: {obstacle}. Mend that, or train once with "
            "automl_policy=off."
        )
    return Decision(False, obstacle)


def require_metric(has_validation_data: bool) -> None:
    """PolicyError for a search without a validation source: nothing would tell one trial from another."""
    if not has_validation_data:
        raise PolicyError(
            "a search needs validation data to compare trials by, but `dataset.val_data_sources` is unset; set its "
            "image_dir and json_file, or train once with automl_policy=off."
        )


def _obstacle(folder: Traversable | Path) -> str | None:
    """Why a search cannot run, as a clause."""
    manifest = _json(folder / packaged.MANIFEST)
    if isinstance(manifest, str):
        return f"whether AutoML is enabled is unknown, because {manifest}"
    if manifest.get("automl_enabled") is not True:
        return f"AutoML is disabled: automl_enabled is not true in schemas/{packaged.MANIFEST}"
    files = manifest.get("actions", {}).get(SEARCHED, {})
    for kind in ("schema", "template"):
        if kind not in files:
            return f"AutoML is enabled but not runnable, because the manifest names no {kind} for {SEARCHED}"
    broken = _json(folder / files["schema"])
    if isinstance(broken, str):
        return f"AutoML is enabled but not runnable, because {broken}"
    if not (folder / files["template"]).is_file():
        return f"AutoML is enabled but not runnable, because schemas/{files['template']} is missing"
    return None


def _json(path: Traversable | Path) -> Mapping[str, Any] | str:
    """The object in a file, or what is wrong with the file."""
    if not path.is_file():
        return f"schemas/{path.name} is missing"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return f"schemas/{path.name} is not readable as JSON"
    return found if isinstance(found, dict) else f"schemas/{path.name} is no JSON object"
