"""A spec file with overrides to a checked request: what to train, whether to search, and how.

`automl_policy` and the `automl:` block are ours: they are taken out before the rest is checked against the schemas.
Every problem of a file is in one report. Knows no ray, no torch and no network; does nothing but read.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.spec import ExportSpec, GenTrtEngineSpec, QuantizeSpec
from hpo.policy import Policy, read_policy
from hpo.sweep_spec import SweepSpec
from model.errors import SpecError
from model.notices import notices
from model.spec import DEPLOY_SECTIONS, ExperimentSpec
from schemas import dotted, packaged, validate, yamlio
from schemas.structure import MANDATORY, structure
from search_spaces import overlays
from search_spaces.derive import derive, full_name
from search_spaces.space import SearchSpace

DEPLOYMENT: Mapping[str, type] = {"export": ExportSpec, "gen_trt_engine": GenTrtEngineSpec, "quantize": QuantizeSpec}
POLICY, BLOCK = "automl_policy", "automl"
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
    """Paths absolute; `automl.fix` is in it."""
    raw: Mapping[str, Any]
    """The user's file and overrides without the automl keys, paths absolute."""
    sweep: SweepSpec
    policy: Policy
    sections: Mapping[str, Any]
    """`export`, `gen_trt_engine`, `quantize` as classes of deploy.spec."""
    automl_keys: tuple[str, ...] = ()
    """Which of `automl_policy` and `automl` the user wrote."""

    def notices(self) -> list[str]:
        """A line for each key that the user wrote and nothing reads."""
        from deploy.notices import notices as deploy_notices

        return [*notices(self.raw), *deploy_notices(self.raw)]

    def space(self) -> SearchSpace:
        """What a search of this request ranges over. SpecError when the `automl:` block asks for what cannot be."""
        try:
            network = packaged.manifest()["network_arch"]
            return derive(packaged.schema("train"), self.spec.to_dict(), overlays.overlay(network), self.sweep.choice())
        except ValueError as error:
            raise SpecError([f"`automl`: {error}"]) from None


def read_request(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    action: str = "train",
    request_text: str | None = None,
    automl: bool = True,
) -> Request:
    """Reads, overrides, checks and makes paths absolute (to the current folder, as TAO does). SpecError lists every
    problem, each with its place in the file. Rules between network keys count only where the action builds one.
    Without a path there are only the overrides."""
    try:
        document = yamlio.override(yamlio.load(path) if path else yamlio.loads("", source="nothing"), overrides)
    except yamlio.SpecFileError as error:
        raise SpecError([str(error)]) from None
    problems: list[str] = []
    given = dict(document.data)
    automl_keys = tuple(name for name in (POLICY, BLOCK) if name in given)
    wanted, block = given.pop(POLICY, None), given.pop(BLOCK, None)
    policy = _policy(wanted, request_text, problems) if automl else "off"
    sweep = _sweep(block if automl else None, problems)
    for name, value in sweep.fix.items():
        given = dotted.put(given, name, value)
    fixed = dict.fromkeys(map(dotted.split, sweep.fix), f"by {BLOCK}.fix")
    document = replace(document, origins={**document.origins, **fixed})
    raw = absolute(given)
    spec, sections, more = _structure(raw, action)
    problems += more
    if problems:
        raise SpecError([_placed(problem, document) for problem in problems])
    return Request(
        action=action, spec=spec, raw=raw, sweep=sweep, policy=policy, sections=sections, automl_keys=automl_keys
    )


def with_classes(request: Request, say: Callable[[str], None]) -> Request:
    """The request with `dataset.num_classes` from the training annotations where the user wrote none, and said so."""
    from model.data.coco import derive_num_classes

    if (request.raw.get("dataset") or {}).get("num_classes") is not None:
        return request
    count = derive_num_classes(request.spec.dataset.train_data_sources)
    say(f"dataset.num_classes is {count}: the largest category id of the training data, plus one")
    return replace(request, spec=with_values(request.spec, {"dataset.num_classes": count}))


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


def _sweep(block: Any, problems: list[str]) -> SweepSpec:
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
            fix[full_name(name, packaged.schema("train").leaves)] = value
        except ValueError as error:
            problems.append(f"`{BLOCK}.fix`: {error}")
    return replace(
        sweep,
        fix=fix,
        ranges=dict(dotted.leaves(sweep.ranges)),
        points=tuple(dict(dotted.leaves(point)) for point in sweep.points),
    )


def _structure(given: Mapping[str, Any], action: str) -> tuple[ExperimentSpec, dict[str, Any], list[str]]:
    """The spec, the deploy sections, and every problem once: first what the schemas say key by key, then, with the
    wrong keys at their defaults, what only the classes know."""
    actions = [action, *(name for name in packaged.manifest()["actions"] if name != action)]
    wrong = validate.check(given, {name: packaged.schema(name) for name in actions})
    sound: Mapping[str, Any] = given
    for problem in wrong:
        sound = dotted.drop(sound, problem.name)
    spec, found = structure(ExperimentSpec, sound, ignore=DEPLOY_SECTIONS)
    if action == "train":
        # A rule between keys says nothing while one of them is wrong.
        names = {problem.name.rpartition(".")[2] for problem in wrong}
        found += [rule for rule in spec.problems() if not names & set(re.findall(r"\w+", rule))]
    sections, more = _deploy_sections(sound)
    return spec, sections, [problem.text for problem in wrong] + found + more


def _deploy_sections(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    sections: dict[str, Any] = {}
    problems: list[str] = []
    for name, cls in DEPLOYMENT.items():
        section = given.get(name)
        sections[name], found = structure(cls, section if isinstance(section, Mapping) else {}, name)
        problems += found
    return sections, problems


def _placed(problem: str, document: yamlio.Document) -> str:
    """A problem with the place of the keys that it names between backticks: the first that is written somewhere."""
    names = problem.split("`")[1::2]
    exact = (document.origins.get(dotted.split(name)) for name in names)
    origin = next((each for each in (*exact, *map(document.origin, names)) if each is not None), None)
    return f"{problem} ({origin})" if origin else problem
