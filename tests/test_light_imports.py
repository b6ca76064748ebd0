"""What must start fast: reading a spec and deriving a space loads no training, tuning or tracking library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
HEAVY = ("torch", "ray", "mlflow", "optuna", "numpy", "pytorch_lightning", "tensorrt", "onnx")


@pytest.mark.parametrize(
    "modules", ["schemas, search_spaces", "search_spaces.derive", "hpo.spec, hpo.policy", "hpo.cli"]
)
def test_imports_stay_light(modules: str) -> None:
    code = f"import sys; import {modules}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def loaded_by(tmp_path: Path, names: tuple[str, ...], *words: str) -> set[str]:
    """Which of the modules a whole command loads."""
    code = f"""
import sys
from hpo.cli import main
try:
    main({list(words)!r})
except SystemExit:
    pass
open({str(tmp_path / "found")!r}, "w").write(" ".join(name for name in {names!r} if name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    return set((tmp_path / "found").read_text().split())


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",), ("train", "--help"), ("trian",)])
def test_help_loads_the_parser_alone(tmp_path: Path, words: tuple[str, ...]) -> None:
    ours = ("hpo.spec", "hpo.launch", "hpo.screen", "model.spec", "schemas.packaged", "search_spaces.space")
    assert loaded_by(tmp_path, (*HEAVY, "rich", "jsonschema", "yaml", "shtab", *ours), *words) == set()


@pytest.mark.parametrize(
    "words",
    [
        ("space", "-e", str(QUICKSTART)),
        ("space", "-e", str(QUICKSTART), "--json"),
        ("explain", "lr"),
        ("completion", "bash"),
        ("evaluate",),  # fails for want of a spec, which must not take a library to find out
        ("resume", "nothing"),
        ("train", "-e", "/nowhere.yaml"),
    ],
)
def test_what_needs_no_network_loads_no_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    loaded = loaded_by(tmp_path, HEAVY, *words)
    # The quickstart's data, where it is there, is counted with numpy; the names of schedulers stand beside their rules.
    assert loaded <= ({"numpy"} if words[0] in ("space", "completion") else set())
