"""What a job takes from an earlier one: files and values for the keys of its spec, by the rules of the manifest.

A resolver is a pure function of a spec, the earlier job and a rule. Which files a job left, and which of them to take
first, `hpo.jobs` knows; nothing is read or written here.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hpo.errors import RunError
from hpo.jobs import ENCRYPTED, Job, is_numbered
from hpo.runs import model_file
from schemas import dotted, packaged
from schemas.structure import MANDATORY


class Rule(NamedTuple):
    """One row of the manifest: how one key of an action's spec is filled."""

    key: str
    by: str
    """A name of RESOLVERS."""
    files: tuple[str, ...] = ()
    """Suffixes of the files that the key takes."""
    when: Mapping[str, Any] = {}
    """Values of other keys under which the rule holds."""


@dataclass(frozen=True, kw_only=True)
class Context:
    action: str
    given: Mapping[str, Any]
    """The user's nested spec."""
    parent: Job

    @property
    def root(self) -> Path:
        """Where the results of all actions go."""
        stated = self.given.get("results_dir")
        if stated:
            return Path(stated)
        return self.parent.store if self.action == "train" else self.parent.folder

    @property
    def folder(self) -> Path:
        """Where this action's go."""
        return Path(dotted.get(self.given, f"{self.action}.results_dir") or self.root / self.action)


Resolver = Callable[[Context, Rule], Any]


def key(context: Context, rule: Rule) -> Any:
    """The encryption key is the user's own: no file of a parent holds it."""
    return context.given.get(rule.key)


def parent_model(context: Context, rule: Rule) -> str | None:
    """The first of the parent's results that the key takes."""
    return next((str(file) for file in context.parent.files if file.suffix in rule.files), None)


def parent_model_folder(context: Context, rule: Rule) -> str | None:
    found = parent_model(context, rule)
    return None if found is None else str(Path(found).parent)


def resume_model(context: Context, rule: Rule) -> str | None:
    """The newest whole checkpoint of this very job: only where the parent's folder is the one that it would write."""
    if context.parent.folder != context.folder:
        return None
    whole = [file for file in context.parent.files if file.suffix in rule.files and is_numbered(file)]
    return str(whole[0]) if whole else None


def ptm_if_no_resume_model(context: Context, rule: Rule) -> str | None:
    """The parent's model to start from, unless this training goes on from a checkpoint."""
    resumes = not is_unset(dotted.get(context.given, "train.resume_training_checkpoint_path"))
    return None if resumes or resume_model(context, rule) else parent_model(context, rule)


def output_dir(context: Context, rule: Rule) -> str:
    return str(context.root)


def create_onnx_file(context: Context, rule: Rule) -> str:
    return str(context.folder / "model.onnx")


def create_engine_file(context: Context, rule: Rule) -> str:
    precision = str(dotted.get(context.given, "gen_trt_engine.tensorrt.data_type") or "FP32")
    return str(context.folder / model_file(precision.upper(), ".engine"))


def create_cal_cache(context: Context, rule: Rule) -> str:
    return str(context.folder / "cal.bin")


def parent_spec(context: Context, rule: Rule) -> Any:
    """What the parent's spec says of the same key."""
    return dotted.get(context.parent.spec, rule.key)


RESOLVERS: Mapping[str, Resolver] = {
    each.__name__: each
    for each in (
        key, parent_model, parent_model_folder, resume_model, ptm_if_no_resume_model, output_dir, create_onnx_file,
        create_engine_file, create_cal_cache, parent_spec,
    )
}  # fmt: skip
"""By TAO's names; `parent_spec` of one key is ours."""
CHOOSES = ("parent_model", "parent_model_folder", "resume_model", "ptm_if_no_resume_model")
"""Resolvers that mean the parent which the user named, whatever file the spec file names."""


def rules(action: str) -> tuple[Rule, ...]:
    rows = packaged.manifest()["inference"][action]
    return tuple(Rule(row["key"], row["by"], tuple(row.get("files", ())), row.get("when", {})) for row in rows)


def infer(context: Context, stated: Collection[str] = ()) -> dict[str, Any]:
    """Key -> value of everything that the rules fill, in their order. stated: keys that the command line or an
    overrides file sets, which are never filled. RunError where the parent holds no file that the action could take."""
    found: dict[str, Any] = {}
    wanted = [rule for rule in rules(context.action) if _holds(rule, context)]
    models = [rule for rule in wanted if rule.by in CHOOSES]
    if models and not any(rule.key in stated for rule in models) and not _takes_any(models, context.parent):
        raise RunError(_nothing(context, models))
    for rule in wanted:
        unset = is_unset(dotted.get(context.given, rule.key))
        if rule.key in stated or rule.key in found or not (unset or rule in models):
            continue
        if any(_same_choice(rule, other, found, stated) for other in models):
            value = None
        else:
            value = RESOLVERS[rule.by](context, rule)
        if not is_unset(value) or not (unset or rule.by == "resume_model"):
            found[rule.key] = value
    return found


def again(parent: Job) -> Mapping[str, Any]:
    """The parent's spec for another training, without what belongs to its own run: folders, starting weights, the
    number of classes."""
    spec = parent.spec
    own = ("results_dir", "train.results_dir", "train.resume_training_checkpoint_path", "train.pretrained_model_path",
           "model.pretrained_backbone_path", "dataset.num_classes")  # fmt: skip
    for name in own:
        spec = dotted.drop(spec, name)
    return spec


def locked(given: Mapping[str, Any], action: str) -> list[str]:
    """A problem for each exported file to read that is encrypted; of a checkpoint, whoever reads it says so."""
    named = {rule.key: str(dotted.get(given, rule.key)) for rule in rules(action) if rule.files}
    return [
        f"`{name}` must not be encrypted, but is {value}; export the model unencrypted, as .onnx."
        for name, value in named.items()
        if value.endswith(".etlt")
    ]


def _takes_any(models: Collection[Rule], parent: Job) -> bool:
    return not parent.unfinished and any(file.suffix in rule.files for rule in models for file in parent.files)


def _same_choice(rule: Rule, other: Rule, found: Mapping[str, Any], stated: Collection[str]) -> bool:
    """Whether another key already says which of the parent's files is run."""
    both = other.by == rule.by == "parent_model" and other.key != rule.key
    return both and (found.get(other.key) is not None or other.key in stated)


def _holds(rule: Rule, context: Context) -> bool:
    return all(dotted.get(context.given, name) == value for name, value in rule.when.items())


def is_unset(value: Any) -> bool:
    """null, '', ???, and groups and lists of nothing else."""
    if isinstance(value, Mapping):
        return all(map(is_unset, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_unset, value))
    return value in (None, "", MANDATORY)


def _nothing(context: Context, models: Collection[Rule]) -> str:
    parent, takes = context.parent, " or ".join(f"`{rule.key}` ({', '.join(rule.files)})" for rule in models)
    there = [file.name for file in parent.files]
    if parent.unfinished:
        return f"a finished run holds its winner, but {parent.folder} does not; `ddetr resume {parent.id}` goes on."
    if locked := [name for name in there if name.endswith(ENCRYPTED)]:
        return (
            f"the parent's files must not be encrypted, but {parent.id} holds {', '.join(locked)}; decrypt it with the "
            "program that wrote it, or take the unencrypted .pth or .onnx."
        )
    return (
        f"the parent must hold a file for {takes}, but {parent.id} holds {', '.join(there) or 'no results'}; name "
        "another, or set the key."
    )
