"""`deformable_detr default_specs`: a spec file to start from, as TAO's command of that name writes it."""

import argparse
from pathlib import Path
from typing import Any

from hpo.overrides import read_document
from hpo.record import recorded
from hpo.screen import near, say
from model.errors import SpecError
from model.status import StatusLog
from model.whole import write_text
from schemas import dotted, packaged, validate, yamlio

OWN = ("results_dir", "module_name", "action")


@recorded
def default_specs(arguments: argparse.Namespace) -> None:
    """Writes `<results_dir>/experiment.yaml`: every key of every action, or of `action=NAME`, with its default unless a
    spec file or an override says otherwise. `module_name` may name our network only."""
    document = read_document(arguments.spec, arguments.overrides, vars(arguments))
    given, actions = document.data, packaged.manifest()["actions"]
    network, action = packaged.manifest()["network_arch"], given.get("action")
    problems = []
    if given.get("results_dir"):
        arguments.results = Path(str(given["results_dir"])).resolve()
    else:
        problems.append("`results_dir` must name the folder to write experiment.yaml to, but is unset; set it.")
    if given.get("module_name", network) != network:
        problems.append(f"`module_name` must be {network}, but is {given['module_name']}; leave it out.")
    if action is not None and action not in actions:
        problems.append(f"`action` must be one of {', '.join(actions)}, but is {action}; leave it out for all.")
    wanted = {key: value for key, value in given.items() if key not in OWN}
    problems += [one.text for one in validate.check(wanted, {name: packaged.schema(name) for name in actions})]
    if problems:
        raise SpecError(problems)
    whole: dict[str, Any] = {}
    for name in actions if action is None else [action]:
        whole = dotted.merge(whole, packaged.document(name)["default"])
    folder: Path = arguments.results
    with StatusLog(folder).action("default_specs"):
        text = yamlio.dump({**dotted.merge(whole, wanted), "encryption_key": ""})
        write_text(text, folder / "experiment.yaml")
    say(f"wrote {near(folder)}/experiment.yaml")
