"""A user's own module must not stand in for ours."""

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
