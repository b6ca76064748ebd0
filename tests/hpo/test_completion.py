"""Completion as a real shell does it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hpo.cli import DDETR, main
from hpo.completion import script


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ddetr.bash"
    path.write_text(script("bash"))
    return path


def complete(bash_script: Path, where: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in ("ddetr", *words))
    code = f"""
source {bash_script}
COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
function=$(complete -p ddetr | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    found = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=where, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stderr == ""
    return {line.rstrip() for line in found.stdout.splitlines() if line.strip()}


def test_commands_and_flags(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "") >= set(DDETR)
    assert complete(bash_script, tmp_path, "ev") == {"evaluate"}
    assert complete(bash_script, tmp_path, "train", "--s") == {"--spec", "--searcher", "--scheduler", "--seed-from"}
    assert complete(bash_script, tmp_path, "resume", "--a") == {"--add-trials"}


def test_choices(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "train", "--tier", "") == {"narrow", "medium", "wide"}
    assert complete(bash_script, tmp_path, "space", "--tier", "w") == {"wide"}
    assert {"auto", "gp", "tpe", "random"} <= complete(bash_script, tmp_path, "train", "--searcher", "")
    assert {"asha", "none"} <= complete(bash_script, tmp_path, "train", "--scheduler", "")
    assert {"bayesian", "hyperband"} <= complete(bash_script, tmp_path, "train", "--algorithm", "")
    assert complete(bash_script, tmp_path, "completion", "") >= {"bash", "zsh"}


def test_specs_and_runs(bash_script: Path, tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "runs" / "quick-1").mkdir(parents=True)
    assert complete(bash_script, tmp_path, "train", "-e", "") == {"one.yaml", "two.yml", "runs/"}
    assert complete(bash_script, tmp_path, "train", "-e", "o") == {"one.yaml"}
    assert complete(bash_script, tmp_path, "evaluate", "--from", "quick") == {"quick-1"}
    assert complete(bash_script, tmp_path, "resume", "q") == {"quick-1"}


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script("bash") + "\n"


def test_zsh_takes_its_script(tmp_path: Path) -> None:
    found = script("zsh")
    assert found.startswith("#compdef ddetr")
    assert "(narrow medium wide)" in found
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    path = tmp_path / "_ddetr"
    path.write_text(found)
    subprocess.run(["zsh", "-f", "-n", str(path)], check=True, timeout=60)
    code = f"autoload -U compinit && compinit -u -d {tmp_path}/dump; source {path}; whence -w _shtab_ddetr"
    said = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip().endswith("function")
