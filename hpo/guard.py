"""Is `model` ours? Compares the five packages with the folder they must come from. Imports none of them.

The names are generic, and a user's own `model.py` on the path would be imported instead, in the worst case in a Ray
worker only. A user's `hpo.py` hides this module itself; the console script and an empty Ray working directory are what
keep such files off the path.
"""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from hpo.errors import ShadowedPackageError

PACKAGES = ("hpo", "model", "deploy", "schemas", "search_spaces")


def check(find: Callable[[str], ModuleSpec | None] = find_spec, home: Path | None = None) -> None:
    """Raises ShadowedPackageError naming the intruder when a package would be imported from elsewhere."""
    root = home or Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        found = find(name)
        origin = found.origin if found is not None else None
        expected = root / name / "__init__.py"
        if origin is None or Path(origin).resolve() != expected:
            where = origin or "missing, or a folder without __init__.py"
            raise ShadowedPackageError(
                f"the package `{name}` must come from {expected.parent}, but Python finds {where}; rename that file or "
                "folder, or run the command from elsewhere and without PYTHONPATH."
            )
