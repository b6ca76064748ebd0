"""What a command says of an error: its class, the rule, the value and the fix, in one paragraph; and its exit code."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo import cli, complaints, errors
from hpo.errors import DiskFullError, InUseError, SweepStoppedError, kind_of
from model import errors as model_errors
from model.errors import KINDS, DataError, OutOfMemory, SpecError
from tests.hpo import faulty


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: None) -> Path:
    """A folder with a sound dataset and files that are none of what commands want."""
    monkeypatch.chdir(tmp_path)
    faulty.write(tmp_path)
    (tmp_path / "broken.yaml").write_text("train:\n  num_epochs: [1\n")
    (tmp_path / "text.yaml").write_text("just text\n")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    return tmp_path


SOURCE = "dataset.train_data_sources=[{image_dir: %s, json_file: %s}]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train -e nowhere.yaml", "error (spec): the file nowhere.yaml cannot be read: No such file"),
        ("train -e empty", "error (spec): the file empty cannot be read: Is a directory; correct its path"),
        ("train -e broken.yaml", "error (spec): broken.yaml:3: not readable as YAML: "),
        ("train -e text.yaml", "error (spec): text.yaml: a spec is a group of keys, but this file holds text; write"),
        ("train -e gear.yaml num_epoch=3", "error (spec): unknown key `num_epoch`; did you mean `train.num_epochs`?"),
        ("train -e gear.yaml results_dir=gear.yaml/x", "error (disk): `results_dir` must be a folder that can be made"),
        ("train -e gear.yaml dataset.train_data_sources=[]", "error (data): `dataset.train_data_sources` must name"),
        (("train", "-e", "gear.yaml", SOURCE % ("train", "none.json")), "none.json` does not exist; correct the path"),
        (("train", "-e", "gear.yaml", SOURCE % ("none", "train.json")), "none` does not exist; correct the path"),
        (("train", "-e", "gear.yaml", SOURCE % ("train", "gear.yaml")), "gear.yaml` must be a COCO JSON file, but"),
        (("train", "-e", "gear.yaml", SOURCE % ("train", "list.json")), "must hold a JSON object, but holds a list; "),
        ("train -e gear.yaml train.pretrained_model_path=x.pth", "error (spec): `train.pretrained_model_path` must"),
        ("resume empty", "error (run): `ddetr resume` takes a search, but "),
        ("resume nothing", "error (run): RUN must be a run's folder or its id, but `nothing` is neither ("),
        ("stop nothing", "error (run): RUN must be a run's folder or its id"),
        ("evaluate --from nothing", "error (run): RUN must be a run's folder or its id"),
        ("export --from empty", "error (run): the parent must hold a file for `export.checkpoint` (.pth), but empty "),
        ("train", "error (spec): `ddetr train` needs a spec (-e SPEC) or a finished run (--from RUN); give one."),
        ("evaluate", "error (spec): `ddetr evaluate` needs a spec (-e SPEC) or a finished run (--from RUN); give one."),
    ],
)  # fmt: skip
def test_a_trap_of_the_first_hour(
    here: Path, capsys: pytest.CaptureFixture[str], words: str | tuple[str, ...], said: str
) -> None:
    assert cli.main(words.split() if isinstance(words, str) else list(words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error (")
    assert "Traceback" not in error
    assert not (here / "runs").exists()


def test_wrong_usage_has_a_class_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 2
    assert "error (usage): the following arguments are required: -e" in capsys.readouterr().err


def test_every_named_error_carries_a_class() -> None:
    named = [
        cls
        for module in (errors, model_errors)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, BaseException) and cls.__module__ == module.__name__
    ]
    assert len(named) > 12
    assert {kind_of(cls(["x"]) if cls is SpecError else cls("x")) for cls in named} <= KINDS.keys()
    assert all("kind" in vars(cls) or "kind" in vars(cls.__base__) for cls in named)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("x"), "data"), (OutOfMemory("x"), "memory"), (DiskFullError("x"), "disk"), (InUseError("x"), "run"),
        (SweepStoppedError("x"), "run"), (ValueError("x"), "spec"), (PermissionError("x"), "disk"),
        (ConnectionRefusedError("x"), "cluster"), (ModuleNotFoundError("x"), "install"), (KeyError("x"), "internal"),
    ],
)  # fmt: skip
def test_classes(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_problems_of_one_spec_are_told_apart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-e", "gear.yaml", "train.optim.lr=5", "dataset.num_classes=2"]) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("error (spec): `train.optim.lr` must be ")
    assert second.startswith("error (data): `")
    assert "set dataset.num_classes=4" in second


def test_a_program_reads_errors_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["space", "-e", "gear.yaml", "train.optim.lr=5", "model.hidden_dims=3", "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    document = json.loads(said.err)
    assert document["exit_code"] == 2
    assert [row["class"] for row in document["errors"]] == ["spec", "spec"]


def test_debug_adds_the_traceback_and_changes_nothing_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", "nothing", "--debug"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("error (run): ")


@pytest.fixture
def usual_hook() -> Iterator[None]:
    before = sys.excepthook
    yield
    sys.excepthook = before


@pytest.mark.usefixtures("usual_hook")
@pytest.mark.parametrize("words", [["resume", "x"], ["space", "--json"]])
def test_what_nobody_foresaw_keeps_its_traceback_and_says_what_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def fails(arguments: object) -> None:
        {}["missing"]

    monkeypatch.setattr(cli, "_function", lambda name: fails)
    with pytest.raises(KeyError) as raised:
        cli.main(words)
    sys.excepthook(raised.type, raised.value, raised.tb)  # as Python does at its end
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    last = error[error.index("KeyError: 'missing'") + len("KeyError: 'missing'") :].strip()
    if "--json" in words:
        (row,) = json.loads(last)["errors"]
        assert (row["class"], complaints.REPORT in row["text"]) == ("internal", True)
    else:
        assert last == f"error (internal): KeyError: 'missing'\n{complaints.REPORT}"


def test_what_the_system_says_is_given_a_fix() -> None:
    assert complaints.problems(PermissionError(13, "Permission denied", "/data")) == [
        ("disk", "`/data` cannot be used (Permission denied); correct its path, its permissions or its disk.")
    ]
    assert complaints.problems(MemoryError())[0][0] == "memory"
    missing = ModuleNotFoundError("No module named 'boto3'", name="boto3")
    assert cli.exit_code(missing) == 1
    assert "`boto3` is not installed here" in complaints.problems(missing)[0][1]
