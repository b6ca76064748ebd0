"""The wheel holds exactly our five packages with their data, and works where the checkout is far away."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIVE = {"hpo", "model", "deploy", "schemas", "search_spaces"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, so that a file forgotten in a commit is missing here too."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_ships_the_five_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == FIVE
    for package in FIVE:
        data = (ROOT / package).rglob("*")
        wanted = {
            p.relative_to(ROOT).as_posix() for p in data if p.suffix in (".json", ".yaml", ".typed", ".py", ".j2")
        }
        assert wanted <= set(names)


def test_the_installed_wheel_finds_its_schemas_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment with the wheel alone; its dependencies are this environment's, put after it on the path."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(paths))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.py").write_text("raise SystemExit('a user file was imported')\n")
    (elsewhere / "spec.yaml").write_text("train:\n  optim:\n    optimizer: SGD\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "bin" / "ddetr", "space", "-e", "spec.yaml"],
        cwd=elsewhere,
        env={**clean, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "train.optim.lr" in done.stdout
    assert "momentum" in done.stdout
    where = "import schemas, hpo; print(schemas.__file__, hpo.__file__)"
    from_wheel = subprocess.run(
        [python, "-P", "-c", where], cwd=elsewhere, env=clean, capture_output=True, text=True, check=True
    )
    assert from_wheel.stdout.count(str(environment)) == 2
