"""What must start fast: reading a spec and deriving a space loads no training, tuning or tracking library."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "mlflow", "optuna", "numpy", "pytorch_lightning", "tensorrt", "onnx")


@pytest.mark.parametrize(
    "modules", ["schemas, search_spaces", "search_spaces.derive", "hpo.spec, hpo.policy", "hpo.cli"]
)
def test_imports_stay_light(modules: str) -> None:
    code = f"import sys; import {modules}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
