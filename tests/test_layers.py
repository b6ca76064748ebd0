"""The layers of the design: imports go down only, and heavy libraries stay in the modules that are meant for them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "search_spaces", "model", "deploy", "hpo")
BELOW = {
    "schemas": set(),
    "search_spaces": {"schemas"},
    "model": {"schemas"},
    "deploy": {"model", "schemas"},
    "hpo": {"search_spaces", "deploy", "model", "schemas"},
}
ONLY_IN = {
    "mlflow": {
        "hpo/mlflow_store.py",
        "hpo/mlflow_values.py",
        "hpo/mlflow_runs.py",
        "hpo/mlflow_models.py",
        "hpo/mlflow_read.py",
        "hpo/tracking.py",
    },
    "tensorrt": {"deploy/trt.py"},
    "tensorrt_rtx": {"deploy/trt.py"},
    # hpo/searchers.py offers a space as Ray's domains; it imports ray inside that one function.
    "ray": {"hpo/cluster.py", "hpo/sweep.py", "hpo/trial.py", "hpo/adapters.py", "hpo/searchers.py"},
    # The searchers are samplers of a study, each family in a module of its own.
    "optuna": {
        "hpo/ledger.py",
        "hpo/searchers.py",
        "hpo/result.py",
        "hpo/proposals.py",
        "hpo/bayes.py",
        "hpo/evolution.py",
        "hpo/reporting/importance.py",
    },
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is) of every import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)} | {id(node) for test in ast.walk(tree) if _type_checking(test)
                                               for node in ast.walk(test)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").split(".")[0], id(node) not in late


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = BELOW[package] | {package}
    name = path.relative_to(ROOT).as_posix()
    for imported, at_once in imports(path):
        if imported in PACKAGES:
            assert imported in allowed, f"{name} imports {imported}, which lies above it"
        if imported == "deploy" and package == "hpo" and name != "hpo/build_schemas.py" and path.name != "spec.py":
            assert not at_once, f"{name} imports deploy outside a function"
        assert imported != "lightning", f"{name} imports lightning; import pytorch_lightning"
        assert name in ONLY_IN.get(imported, {name}), f"{name} imports {imported}"


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_nothing_imports_the_experiments() -> None:
    assert not list((ROOT / "experiments").rglob("*.py"))
