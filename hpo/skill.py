"""`ddetr skill DIR`: a folder from which the runner of nvidia-tao-automl 7.2 searches with our trainer.

Made from the packaged schemas, templates and manifest; a trial is `deformable_detr train` of one virtual environment.
Knows that runner's layout and what its checks refuse, and imports nothing of it: it has an environment of its own.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from hpo.errors import SkillError
from hpo.screen import near, say
from model.whole import write_text
from schemas import packaged, yamlio
from schemas.build import to_json, to_template

INFO, PLAN, MARK = "references/skill_info.yaml", "references/automl_plan.json", "# Written by `ddetr skill`."
"""The marker is the first line of INFO: by it a folder is known as ours."""
NUMERIC = ("int", "float")
SPLITS = {"dataset.train_data_sources": "train_datasets", "dataset.val_data_sources": "eval_dataset"}
"""Key of a spec -> which of the runner's two data folders fills it."""
FILES = {"image_dir": "images.tar.gz", "json_file": "annotations.json"}
"""Key of a data source -> the file of a data folder."""
PAGE = Template("""\
---
name: $model
description: Search the hyperparameters of a Deformable DETR detector with nvidia-tao-automl; ddetr-automl trains it.
---
# Deformable DETR, trained by ddetr-automl

Made for the runner of nvidia-tao-automl 7.2 on the `virtualenv` platform. A trial is `deformable_detr train` of
`$venv`, a detector in COCO format; the runner lives in an environment of its own.

1. Copy `$plan` and fill in the folders of the training and of the validation data, each
   with `images.tar.gz` and `annotations.json`, and `dataset.num_classes`, the highest category id plus one. Paths are
   absolute. Any key of `references/spec_template_train.yaml` may stand in `spec_overrides`. Then set `ready` to true.
2. With the runner's environment: `python -m tao_automl.runner PLAN --platform virtualenv`

The metric is `$metric` ($goal), read from the `status.json` of a trial: the value of its last validation.
These keys have no upper bound, and are searched only where `automl_hyperparameters` names them and
`custom_param_ranges` bounds them: $open.
""")


class Environment(NamedTuple):
    """A virtual environment that our trainer is installed in."""

    root: Path
    command: Path
    """Its `deformable_detr`."""


def skill(arguments: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all."""
    folder = arguments.directory.resolve()
    environment = environment_of(arguments.python or Path(sys.executable))
    write(folder, contents(folder, environment))
    say(f"wrote {near(folder)}; its trials run in {environment.root}")
    say(f"next: a copy of {near(folder / PLAN)} with your data, then, in the environment of nvidia-tao-automl:")
    say("  python -m tao_automl.runner PLAN --platform virtualenv")


def environment_of(python: Path) -> Environment:
    """SkillError unless the interpreter is that of a virtual environment with our commands."""
    command = Path(os.path.abspath(python)).with_name("deformable_detr")  # as it stands: it is a link out of there
    root = command.parent.parent
    for needed in (root / "pyvenv.cfg", python, command):
        if not needed.is_file():
            raise SkillError(
                "trials run in a virtual environment that ddetr-automl is installed in, but for the interpreter "
                f"{python} there is no {needed}; give another with --python ENVIRONMENT/bin/python."
            )
    return Environment(root=root, command=command)


def contents(folder: Path, environment: Environment) -> dict[str, str]:
    """Path below `folder` -> text. folder, absolute: where the plan says that the skill lies."""
    manifest = packaged.manifest()
    open_ended = [f"`{each.name}`" for each in packaged.schema("train").findings if each.kind == "unbounded"]
    texts = {
        "SKILL.md": PAGE.substitute(
            model=manifest["model"],
            venv=environment.root,
            plan=PLAN,
            metric=manifest["metric"]["name"],
            goal=manifest["metric"]["goal"],
            open=", ".join(open_ended),
        ),
        INFO: f"{MARK}\n{yamlio.dump(_info(manifest, environment))}",
        PLAN: json.dumps(_plan(manifest, folder, environment), indent=2) + "\n",
    }
    for action in manifest["actions"]:
        document = strict(packaged.document(action))
        heading = packaged.template(action).partition("\n")[0].removeprefix("# ")
        texts[f"references/spec_template_{action}.yaml"] = to_template(document, heading)
        texts[f"schemas/{action}.schema.json"] = to_json(document)
    return texts


def _info(manifest: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    return {
        **{key: manifest[key] for key in ("network_arch", "automl_enabled", "dataset_type", "formats", "metric")},
        "data_sources": {
            "train": {
                key: {
                    "source": source,
                    "multiple_sources": True,
                    "mapping": {name: {"path": file} for name, file in FILES.items()},
                }
                for key, source in SPLITS.items()
            }
        },
        "actions": {
            action: {
                "execution": {
                    "type": "python_script",
                    "script": str(environment.command),
                    "args": [action, "-e", "{config_path}"],
                    "config_format": "yaml",
                },
                "outputs": ["results_dir"],
            }
            for action in manifest["actions"]
        },
    }


def _plan(manifest: Mapping[str, Any], folder: Path, environment: Environment) -> dict[str, Any]:
    """Not ready: the data is the user's to name."""
    metric = manifest["metric"]
    return {
        "ready": False,
        "blocking_issues": ["fill in train_dataset_uri, eval_dataset_uri and dataset.num_classes, then set ready"],
        "automl_workspace_path": "automl_workspace",
        "automl_settings": {
            "algorithm": "bayesian",
            "metric": metric["name"],
            "direction": metric["goal"],
            "automl_max_recommendations": 20,
        },
        "steps": [
            {
                "params": {
                    "skill_dir": str(folder),
                    "action": "train",
                    "sdk_kwargs": {"venv_path": str(environment.root)},
                    "train_dataset_uri": "",
                    "eval_dataset_uri": "",
                    "spec_overrides": {"dataset.num_classes": 91, "train.num_epochs": 10},
                }
            }
        ],
    }


def strict(document: Mapping[str, Any]) -> dict[str, Any]:
    """A packaged schema as the runner's checks take it.

    A group has members, so one that may hold anything (`quantize.backend_kwargs`) is left out. An unset value is null,
    which the key allows in words. What is searched has both bounds. Types, bounds, enums and rules stay as they are.
    """
    groups = {name: made for name, node in document["properties"].items() if (made := _node(node)) is not None}
    return {
        "type": "object",
        "x_tao_schema": document["x_tao_schema"],
        "default": {name: node["default"] for name, node in groups.items()},
        "properties": groups,
    }


def _node(node: Mapping[str, Any]) -> dict[str, Any] | None:
    if node["type"] == "collection":
        members = node.get("properties") or _record(node["default"] or {})
        made = {name: inner for name, each in members.items() if (inner := _node(each)) is not None}
        default = {name: inner["default"] for name, inner in made.items()}
        return {**node, "properties": made, "default": default} if made else None
    found = dict(node)
    if "enum" in node and node["default"] not in node["enum"]:
        found["default"] = None
    if node["type"] in NUMERIC and not {"minimum", "maximum"} <= node.keys():
        found.pop("automl_enabled", None)
    if found["default"] is None:
        found["anyOf"] = [{"type": found.pop("type")}, {"type": "null"}]
    return found


def _record(default: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a data source, of which the dialect shows the default alone."""
    kinds = {name: "list" if isinstance(value, list) else "string" for name, value in default.items()}
    return {name: {"type": kind, "default": default[name]} for name, kind in kinds.items()}


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """The folder with exactly these files, in place of one that this function wrote. SkillError for any other that
    holds something."""
    _check_free(folder, texts)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, text in texts.items():
            write_text(text, partial / name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(folder: Path, texts: Mapping[str, str]) -> None:
    if not folder.exists():
        return
    there = [folder] if not folder.is_dir() else [path for path in folder.rglob("*") if not path.is_dir()]
    info = folder / INFO
    known = texts if info.is_file() and info.read_bytes().startswith(MARK.encode()) else ()
    strange = [path for path in there if path == folder or path.relative_to(folder).as_posix() not in known]
    if strange:
        raise SkillError(
            f"DIR must be new, empty, or hold what `ddetr skill` wrote and nothing else, but there is "
            f"{near(strange[0])}; name another folder."
        )
