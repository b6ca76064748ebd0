"""What the README names exists: every module with a purpose, every file, command and flag."""

import re
import shlex
from pathlib import Path

import pytest

from hpo.cli import ARGUMENTS, DDETR, DIRECT

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("schemas", "search_spaces", "model", "model/network", "model/data", "deploy", "hpo", "hpo/reporting")


def test_the_tree_gives_every_module_one_purpose() -> None:
    tree = README.split("## The tree")[1]
    found: dict[str, list[str]] = {}
    for line in tree.splitlines():
        if heading := re.match(r"(\S+)/ +\S", line):
            folder = heading[1]
        elif row := re.match(r"  (\w+\.py) +\S", line):
            found.setdefault(folder, []).append(row[1])
    there = {
        package: sorted(path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
        for package in PACKAGES
    }
    assert found == there


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("ddetr ", "deformable_detr "))]


@pytest.mark.parametrize("line", _commands())
def test_commands_and_flags_are_ours(line: str) -> None:
    program, name, *words = shlex.split(line)
    command = (DDETR if program == "ddetr" else DIRECT)[name]
    flags = {flag for argument in command.arguments for flag in ARGUMENTS[argument][0]}
    assert {word for word in words if word.startswith("-")} <= flags


def test_pictures_and_files_are_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:experiments|schemas|tests|hpo|model|deploy)/[\w/.-]+)`", README):
        assert (ROOT / name).exists(), name
