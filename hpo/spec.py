"""A spec file with overrides and flags to a checked request: what to train, whether to search, and how.

`automl_policy` and the `automl:` block are ours: they are taken out before the rest is checked against the schemas.
Every problem of a file is in one report. Knows no ray, no torch and no network; does nothing but read.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deploy.spec import DeploySpec, ExportSpec, GenTrtEngineSpec, QuantizeSpec
from hpo.chain import Context, again, infer, is_unset, locked, rules
from hpo.jobs import Job, find_job
from hpo.overrides import BLOCK, PARENT, POLICY, read_document
from hpo.policy import Policy, read_policy
from hpo.sweep_spec import SweepSpec
from model.errors import SpecError
from model.findings import some
from model.notices import notices
from model.spec import DEPLOY_SECTIONS, ExperimentSpec
from schemas import dotted, packaged, validate, yamlio
from schemas.dialect import Schema
from schemas.structure import MANDATORY, structure
from search_spaces import overlays
from search_spaces.derive import Choice, derive, full_name
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from model.data.coco import Summary

DEPLOYMENT: Mapping[str, type] = {
    "export": ExportSpec,
    "gen_trt_engine": GenTrtEngineSpec,
    "quantize": QuantizeSpec,
    "deploy": DeploySpec,
}
PATHS = frozenset({
    "image_dir", "json_file", "classmap", "results_dir", "checkpoint", "trt_engine", "onnx_file", "timing_cache",
    "cal_image_dir", "cal_cache_file", "model_path", "pretrained_model_path", "pretrained_backbone_path",
    "resume_training_checkpoint_path",
})  # fmt: skip
"""Last names of the keys that hold a path, or a list of them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run as the user asked for it, checked."""

    action: str
    spec: ExperimentSpec
    """Paths absolute; `automl.fix` is in it; `dataset.num_classes` is the data's where the user wrote none."""
    raw: Mapping[str, Any]
    """The user's file and overrides without the automl keys, paths absolute."""
    sweep: SweepSpec
    policy: Policy
    sections: Mapping[str, Any]
    """`export`, `gen_trt_engine`, `quantize` as classes of deploy.spec."""
    automl_keys: tuple[str, ...] = ()
    """Which of `automl_policy` and `automl` the user wrote."""
    data: "Summary | None" = None
    """Of the training annotations, where they were asked for."""
    parent: Job | None = None
    """The earlier job that the user named."""
    inferred: Mapping[str, Any] = field(default_factory=dict)
    """What was taken from it: dotted key to value."""

    @property
    def facts(self) -> dict[str, float]:
        """What the derivation of a space may know of the training data; what is unknown is left out."""
        if self.data is None:
            return {}
        named = ("images", "most_objects", "shortest_side", "longest_side")
        return {name: getattr(self.data, name) for name in named if getattr(self.data, name) is not None}

    def notices(self) -> list[str]:
        """A line for each key that the user wrote and nothing reads, and for what was derived in place of one."""
        from deploy.notices import notices as deploy_notices

        found = [*notices(self.raw), *deploy_notices(self.raw)]
        if self.data is not None and not self.states_num_classes:
            gaps = f"; no category has id {some(self.data.gaps)}, whose outputs learn nothing" if self.data.gaps else ""
            found.append(
                f"dataset.num_classes is {self.spec.dataset.num_classes}: the largest category id of the training "
                f"data, plus one{gaps}"
            )
        if self.parent is not None:
            files = {name: value for name, value in self.inferred.items() if name.rpartition(".")[2] in PATHS}
            found += [f"{name}: {value} (from {self.parent.id})" for name, value in files.items() if value is not None]
            if values := [name for name in self.inferred if name not in files]:
                found.append(f"as {self.parent.id} has them: {', '.join(values)}")
        return found

    @property
    def states_num_classes(self) -> bool:
        """Whether the user wrote `dataset.num_classes`."""
        return _has_num_classes(self.raw)

    def with_data(self) -> "Request":
        """This request with what its training annotations say. SpecError for what is wrong with them."""
        spec, summary, problems = _with_data(self.raw, self.spec, {})
        if problems:
            raise SpecError(problems, of_data=problems)
        return replace(self, spec=spec, data=summary)

    def space(self, facts: Mapping[str, float] | None = None) -> SearchSpace:
        """What a search of this request ranges over. `facts` in place of the request's own. SpecError when the
        `automl:` block asks for what cannot be."""
        try:
            return _derive(self.spec, self.sweep.choice(), self.facts if facts is None else facts)
        except ValueError as error:
            raise SpecError([f"`{BLOCK}`: {error}"]) from None


def read_request(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    action: str = "train",
    request_text: str | None = None,
    automl: bool = True,
    flags: Mapping[str, Any] | None = None,
    data: bool = False,
) -> Request:
    """Reads, overrides, checks and makes paths absolute (to the current folder, as TAO does). SpecError lists every
    problem, each with its place: the file's line, the flag, the command line. Rules between network keys count only
    where the action builds one. Without a path there are only the overrides.

    flags: parsed arguments; `--from` (`run`), or else the key `parent_job_id`, names an earlier job, from which the
    keys are filled that `hpo.chain` knows, and the whole spec of a training where there is none. data: reads the
    training annotations too, derives `dataset.num_classes` from them and checks the batch against them.
    """
    document = read_document(path, overrides, flags or {})
    problems: list[str] = []
    given = dict(document.data)
    named = given.pop(PARENT, None)
    named = (flags or {}).get("run") or named
    automl_keys = tuple(name for name in (POLICY, BLOCK) if name in given)
    wanted, block = given.pop(POLICY, None), given.pop(BLOCK, None)
    policy = _policy(wanted, request_text, problems) if automl else "off"
    sweep = read_sweep(block if automl else None, packaged.schema("train"), problems)
    for name, value in sweep.fix.items():
        given = dotted.put(given, name, value)
    document = replace(document, origins={**document.origins, **fixed_places(block, sweep, document)})
    raw, parent, inferred = absolute(given), None, dict[str, Any]()
    if named is not None:
        parent = find_job(str(named), Path(str(raw.get("results_dir") or "runs")))
        if path is None and action == "train":
            raw = dotted.merge(again(parent), raw)
        inferred = infer(Context(action=action, given=raw, parent=parent), _stated(path, document, action))
        for name, value in inferred.items():
            raw = dotted.put(raw, name, value)
    spec, sections, wrong = _structure(raw, action)
    summary: Summary | None = None
    of_data: list[str] = []
    if data:
        spec, summary, of_data = _with_data(raw, spec, wrong)
    found = [*problems, *_name_problems(sweep), *wrong.values(), *sections.problems, *of_data, *locked(raw, action)]
    if action == "train":
        # A rule between keys says nothing while one of them is wrong.
        names = {name.rpartition(".")[2] for name in wrong}
        found += [rule for rule in spec.problems() if not names & set(re.findall(r"\w+", rule))]
    found = [place(problem, document) for problem in found]
    if automl and action == "train":
        found += choice_problems(sweep.choice(), document, lambda choice: _derive(spec, choice, {}))
    if found:
        raise SpecError(found, of_data=[place(problem, document) for problem in of_data])
    return Request(
        action=action,
        spec=spec,
        raw=raw,
        sweep=sweep,
        policy=policy,
        sections=sections.parts,
        automl_keys=automl_keys,
        data=summary,
        parent=parent,
        inferred=inferred,
    )


def _stated(path: Path | None, document: yamlio.Document, action: str) -> set[str]:
    """Keys of the action's rules that are written elsewhere than in the spec file."""
    file = yamlio.loads("") if path is None else yamlio.load(path)
    places = {rule.key: document.origin(rule.key) for rule in rules(action)}
    return {
        name
        for name, place in places.items()
        if place is not None and place != file.origin(name) and not is_unset(dotted.get(document.data, name))
    }


def absent_weights(spec: ExperimentSpec) -> list[str]:
    """A problem for each file that a training would start from and that is not there."""
    named = {"train.resume_training_checkpoint_path": spec.train.resume_training_checkpoint_path}
    if spec.train.resume_training_checkpoint_path is None:  # a resumed training reads no other file
        named = {
            "model.pretrained_backbone_path": spec.model.pretrained_backbone_path,
            "train.pretrained_model_path": spec.train.pretrained_model_path,
        }
    return [
        f"`{name}` must be a file with weights, but there is none at {path}; correct the path, or leave it out."
        for name, path in named.items()
        if path and "://" not in path and not os.path.isfile(path)
    ]


def salvage(path: Path | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Request:
    """What can be read of a request that is wrong: without the keys that are, so with their defaults. Its rules between
    keys are not looked at. SpecError where the file itself cannot be read."""
    given = dict(read_document(path, overrides, flags or {}).data)
    for name in (POLICY, PARENT):
        given.pop(name, None)
    sweep = read_sweep(given.pop(BLOCK, None), packaged.schema("train"), [])
    raw = absolute(given)
    spec, sections, wrong = _structure(raw, "train")
    for name in wrong:
        raw = dotted.drop(raw, name)
    return Request(action="train", spec=spec, raw=raw, sweep=sweep, policy="auto", sections=sections.parts)


def choice_problems(choice: Choice, document: yamlio.Document, attempt: Callable[[Choice], SearchSpace]) -> list[str]:
    """Everything wrong with what the `automl:` block asks of the space, each wish tried by itself and told with its
    place. `attempt` derives a space."""
    try:
        attempt(choice)
        return []
    except ValueError as error:
        whole = str(error)
    alone = Choice(tier=choice.tier)
    wishes: list[tuple[tuple[str, ...], Choice]] = [(("tier",), alone)]
    wishes += [(("params", str(n)), replace(alone, params=(f"+{each.lstrip('+')}",)))
               for n, each in enumerate(choice.params or ())]  # fmt: skip
    wishes += [(("exclude", str(n)), replace(alone, exclude=(each,))) for n, each in enumerate(choice.exclude)]
    wishes += [(("fix", name), replace(alone, fix={name: value})) for name, value in choice.fix.items()]
    wishes += [(("ranges", name), replace(alone, ranges={name: value})) for name, value in choice.ranges.items()]
    found = []
    for steps, wish in wishes:
        try:
            attempt(wish)
        except ValueError as error:
            place = _place_of_wish(steps, document)
            found.append(f"`{BLOCK}.{steps[0]}`: {error}" + (f" ({place})" if place else ""))
    return list(dict.fromkeys(found)) or [f"`{BLOCK}`: {whole}"]


def _place_of_wish(steps: tuple[str, ...], document: yamlio.Document) -> str | None:
    """Where a wish was written: a dotted name may be one key of the file, or groups."""
    group, *rest = steps
    for path in ((BLOCK, *steps), (BLOCK, group, *dotted.split(".".join(rest))), (BLOCK, group), (BLOCK,)):
        if path in document.origins:
            return document.origins[path]
    return None


def fixed_places(block: Any, sweep: SweepSpec, document: yamlio.Document) -> dict[tuple[str, ...], str]:
    """Where the values that `automl.fix` put into the spec were written."""
    written = dotted.get(block, "fix", {})
    found: dict[tuple[str, ...], str] = {}
    for short, _ in dotted.leaves(written) if isinstance(written, Mapping) else ():
        place = _place_of_wish(("fix", short), document) or f"by {BLOCK}.fix"
        found |= {dotted.split(name): place for name in sweep.fix if f".{name}".endswith(f".{short}")}
    return found


def _derive(spec: ExperimentSpec, choice: Choice, facts: Mapping[str, float]) -> SearchSpace:
    network = packaged.manifest()["network_arch"]
    return derive(packaged.schema("train"), spec.to_dict(), overlays.overlay(network), choice, facts)


def _has_num_classes(raw: Mapping[str, Any]) -> bool:
    return (dotted.get(raw, "dataset.num_classes") or MANDATORY) != MANDATORY


def _with_data(
    raw: Mapping[str, Any], spec: ExperimentSpec, wrong: Mapping[str, str]
) -> tuple[ExperimentSpec, "Summary | None", list[str]]:
    """The spec with the number of classes from its training annotations where the user wrote none, their summary, and
    what is wrong between the two."""
    from model.data.coco import summarise

    stated = _has_num_classes(raw)
    check = spec.dataset.num_classes if stated and "dataset.num_classes" not in wrong else None
    try:
        summary = summarise(spec.dataset.train_data_sources, check)
    except ValueError as error:
        return spec, None, [str(error)]
    if summary is None:
        missing = "names no json_file; set its image_dir and json_file."
        return spec, None, [f"`dataset.train_data_sources` must name the data to learn from, but {missing}"]
    problems = []
    if summary.images < spec.dataset.batch_size:
        problems.append(
            f"`dataset.batch_size` must be at most the number of training images, but is {spec.dataset.batch_size} of "
            f"{summary.images}; reduce batch_size or num_gpus."
        )
    if not stated:
        spec = replace(spec, dataset=replace(spec.dataset, num_classes=summary.num_classes))
    return spec, summary, problems


def with_values(spec: ExperimentSpec, values: Mapping[str, Any]) -> ExperimentSpec:
    """The spec of a trial: `values` by dotted spec key on top. SpecError when they break a rule."""
    plain: dict[str, Any] = spec.to_dict()
    for name, value in values.items():
        plain = dotted.put(plain, name, value)
    return ExperimentSpec.from_dict(plain)


def absolute(given: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with every local path absolute; `s3://` and the like stay as they are."""
    return {key: _absolute(value, str(key) in PATHS) for key, value in given.items()}


def _absolute(value: Any, is_path: bool) -> Any:
    if isinstance(value, Mapping):
        return absolute(value)
    if isinstance(value, list):
        return [_absolute(each, is_path) for each in value]
    if not is_path or not isinstance(value, str) or value in ("", MANDATORY) or "://" in value:
        return value
    return os.path.abspath(os.path.expanduser(value))


def _policy(value: Any, request_text: str | None, problems: list[str]) -> Policy:
    try:
        return read_policy(value, request_text)
    except SpecError as error:
        problems += error.problems
        return "auto"


def read_sweep(block: Any, schema: Schema, problems: list[str]) -> SweepSpec:
    """The `automl:` block for a search of `schema`. Adds what is wrong with it to `problems`."""
    if block is None:
        return SweepSpec()
    if not isinstance(block, Mapping):
        problems.append(f"`{BLOCK}` must be a group of keys, but is {block!r}.")
        return SweepSpec()
    sweep, found = structure(SweepSpec, block, BLOCK)
    problems += found + sweep.problems()
    # `automl.fix.train.optim.lr=1e-4` on the command line makes groups; the dotted name is what is meant.
    fix: dict[str, Any] = {}
    for name, value in dotted.leaves(sweep.fix):
        try:
            fix[full_name(name, schema.leaves)] = value
        except ValueError as error:
            problems.append(f"`{BLOCK}.fix.{name}`: {error}")
    return replace(
        sweep,
        fix=fix,
        ranges=dict(dotted.leaves(sweep.ranges)),
        points=tuple(dict(dotted.leaves(point)) for point in sweep.points),
    )


def _name_problems(sweep: SweepSpec) -> list[str]:
    """Algorithms, searchers and schedulers that there are not, or that exclude each other."""
    from hpo import algorithms, searchers

    usual, found = SweepSpec(), []
    several = partial(searchers.check, objectives=len(sweep.objectives))
    checks: list[tuple[Callable[[str], object], str]] = [(several, sweep.searcher)]
    if sweep.algorithm is not None:
        checks.append((algorithms.resolve, sweep.algorithm))
    if sweep.scheduler != usual.scheduler or len(sweep.objectives) > 1:
        from hpo import schedulers  # brings numpy, which nothing else here needs

        checks.append((partial(schedulers.check, objectives=len(sweep.objectives)), sweep.scheduler))
    for check, name in checks:
        try:
            check(name)
        except ValueError as error:
            found.append(str(error))
    if sweep.algorithm is not None:
        for name in ("searcher", "scheduler"):
            if getattr(sweep, name) != getattr(usual, name):
                found.append(
                    f"`{BLOCK}.{name}` must be left out where `{BLOCK}.algorithm` sets it, but is "
                    f"{getattr(sweep, name)} beside {sweep.algorithm}; take one of them away."
                )
    return found


class _Sections(NamedTuple):
    parts: Mapping[str, Any]
    problems: list[str]


def _structure(given: Mapping[str, Any], action: str) -> tuple[ExperimentSpec, _Sections, dict[str, str]]:
    """The spec and the deploy sections, what is wrong at its default, and what is wrong: key -> sentence. First what
    the schemas say key by key, then what only the classes know."""
    actions = [action, *(name for name in packaged.manifest()["actions"] if name != action)]
    found = validate.check(given, {name: packaged.schema(name) for name in actions})
    wrong = {problem.name: problem.text for problem in found}
    sound: Mapping[str, Any] = given
    for name in wrong:
        sound = dotted.drop(sound, name)
    spec, more = structure(ExperimentSpec, sound, ignore=DEPLOY_SECTIONS)
    wrong |= {text.split("`")[1]: text for text in more}
    return spec, _deploy_sections(sound), wrong


def _deploy_sections(given: Mapping[str, Any]) -> _Sections:
    parts: dict[str, Any] = {}
    problems: list[str] = []
    for name, cls in DEPLOYMENT.items():
        section = given.get(name)
        parts[name], found = structure(cls, section if isinstance(section, Mapping) else {}, name)
        problems += found
    return _Sections(parts, problems)


def place(problem: str, document: yamlio.Document) -> str:
    """A problem with the place of the keys that it names between backticks: the first that is written somewhere."""
    names = problem.split("`")[1::2]
    written = (document.origin_within(name) for name in names)
    origin = next((each for each in (*written, *map(document.origin, names)) if each is not None), None)
    return f"{problem} ({origin})" if origin else problem
