"""A user's own module must not stand in for ours."""

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest

from hpo import guard
from hpo.errors import ShadowedPackageError


def test_this_checkout_is_clean() -> None:
    guard.check()


def test_names_the_intruder(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")

    def find(name: str) -> ModuleSpec | None:
        root = Path(guard.__file__).parent.parent
        return PathFinder.find_spec(name, [str(tmp_path), str(root)])

    with pytest.raises(ShadowedPackageError, match=rf"`model` must come from .*{tmp_path}/model.py"):
        guard.check(find)


def test_missing_package() -> None:
    with pytest.raises(ShadowedPackageError, match="missing"):
        guard.check(lambda name: None)


def test_command_says_so_before_anything(tmp_path: Path) -> None:
    """A folder on PYTHONPATH, as a Ray job's working directory is."""
    (tmp_path / "model.py").write_text("raise RuntimeError('the wrong model')")
    path = os.pathsep.join([str(tmp_path), str(Path(guard.__file__).parent.parent)])
    code = "import sys; from hpo.cli import main; sys.exit(main(['make-data', 'digits', '--out', 'x']))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error (install): the package `model` must come from")
    assert f"finds {tmp_path / 'model.py'}; rename that file" in done.stderr
    assert "Traceback" not in done.stderr
