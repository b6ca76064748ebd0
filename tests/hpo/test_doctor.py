"""The doctor on a dataset with deliberate faults: each is found, with its value and its fix, and none hides another."""

import http.server
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo import doctor
from hpo.check_machine import disk, hardware
from hpo.check_services import tracking
from hpo.cli import main
from hpo.review import print_data
from hpo.spec import salvage
from hpo.sweep_spec import SweepSpec
from model.data.audit import audit
from model.data.coco import read_coco
from model.data.datamodule import CocoDataModule
from model.errors import DataError, SpecError
from model.findings import Finding, of_error
from model.spec import ExperimentSpec
from tests.hpo import faulty

# What a fault adds to the findings of the sound dataset: (level, words of what is seen, words of what to change).
ADDED: dict[str, list[tuple[str, str, str]]] = {
    "class count": [
        ("problem", "id 3 (`glove`) and num_classes=3", "set dataset.num_classes=4"),
    ],
    "never annotated": [("warning", "no box is of boot (4)", "take it out of `categories`")],
    "outside": [("warning", "train.json`: 1 of 36 boxes reach over their image", "not corners and not fractions")],
    "zero width": [("warning", "1 of 36 boxes have no width or height", "correct or delete")],
    "unknown image": [("problem", "annotation 13 of image 999", "correct image_id")],
    "unknown category": [("problem", "annotation 11 of image 1, category 77", "add it there")],
    "twice": [("warning", "1 of 19 annotations repeat another of their image, the first: annotation 9999", "delete")],
    "gaps": [("note", "go up to 9, and not all below it are used (1, 2, 4, 5, 7 and 1 more are not)", "nothing, or")],
    "empty val": [("problem", "val.json`: there is no image in `images`", "at least one")],
    "unmarked val": [("problem", "val: no box is usable, so there is nothing to score", "correct json_file")],
    "renamed": [("problem", "category 2 is `waistcoat`, but an earlier file calls it `vest`", "same ids and names")],
    "missing": [("problem", "2 of 12 images are not in the image folder, the first: `train-02.jpg`", "image_dir")],
    "leak": [("warning", "1 of 6 images of val are also in train (the same bytes)", "take them out of val")],
    "truncated": [("warning", "val: 1 of 6 images cannot be decoded (all 6 were tried)", "replace the files")],
}  # fmt: skip
REFUSED = [fault for fault, added in ADDED.items() if added[0][0] == "problem"]
NO_BOXES = ("fewer than", "images make", "images; the metric")
"""Findings about how little there is, which a fault may change in passing."""


def findings(path: Path) -> list[Finding]:
    request = salvage(path)
    found = audit(request.spec, request.spec.dataset.num_classes if request.states_num_classes else None)
    return [one for one in found if one.level != "ok" and not any(words in one.seen for words in NO_BOXES)]


def test_every_fault_is_known() -> None:
    assert ADDED.keys() == faulty.BEFORE.keys() | faulty.AFTER.keys()


def test_a_sound_dataset_has_no_finding_but_its_size(tmp_path: Path) -> None:
    path = faulty.write(tmp_path)
    assert findings(path) == []
    assert all(one.level != "problem" for one in audit(salvage(path).spec, 4))


@pytest.mark.parametrize("fault", ADDED)
def test_a_fault_is_one_finding_with_its_fix(tmp_path: Path, fault: str) -> None:
    found = findings(faulty.write(tmp_path, fault))
    assert [one.level for one in found] == [level for level, _, _ in ADDED[fault]]
    for one, (_, seen, change) in zip(found, ADDED[fault], strict=True):
        assert seen in one.seen
        assert change in one.change


def test_no_fault_hides_another(tmp_path: Path) -> None:
    found = findings(faulty.write(tmp_path, *faulty.TOGETHER))
    assert len(found) == len(faulty.TOGETHER)
    for fault in set(faulty.TOGETHER) - {"class count", "unknown image", "twice"}:
        for _, seen, _ in ADDED[fault]:
            words = seen.partition("`: ")[2] or seen
            assert any(words in one.seen for one in found), fault
    assert any("id 4 (`boot`) and num_classes=4" in one.seen for one in found)


@pytest.mark.parametrize("fault", ["sound", *ADDED])
def test_the_doctor_and_the_training_agree(tmp_path: Path, own_cache: None, fault: str) -> None:
    """What the doctor calls a problem is what training refuses, and nothing else is."""
    path = faulty.write(tmp_path, fault)
    problems = [one for one in findings(path) if one.level == "problem"]
    try:
        data = CocoDataModule(salvage(path).spec, cpus=1)
        data.check_training()
        refused = False
    except DataError:
        refused = True
    assert refused == bool(problems)


@pytest.mark.parametrize("fault", REFUSED)
def test_train_says_the_first_of_them_and_where_the_rest_is_found(
    tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    path = faulty.write(tmp_path, fault)
    assert main(["train", "-e", str(path), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error (data): `")
    assert f"next: ddetr doctor -e {path}" in error
    assert "Traceback" not in error
    assert "; " in error  # the fix


def test_the_review_counts_what_can_be_trained_on_and_should_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = salvage(faulty.write(tmp_path, "leak", "twice", "outside", "never annotated")).spec
    print_data({"train": read_coco(spec.dataset.train_data_sources), "val": read_coco(spec.dataset.val_data_sources)})
    said = " ".join(capsys.readouterr().out.split())
    assert "no training box is of boot (4): nothing is learnt of it" in said
    assert (
        "look closer with `ddetr doctor`: 1 of 6 images of val are also in train; 1 boxes of train do not lie in their "
        "image; 1 annotations of val are there twice; train has fewer than 20 boxes of helmet (12), vest (12), "
        "glove (12)"
    ) in said


def rows(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> list[Finding]:
    path = faulty.write(tmp_path)
    file = tmp_path / "train.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return findings(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("images"), "lists are missing, the first: `images`"),
        (lambda data: data["images"][0].update(id="a"), "have an id that is no whole number"),
        (lambda data: data["images"][1].update(id=1), "1 of 12 images have the id of another"),
        (lambda data: data["categories"][0].update(id=-1), "no whole number from 0 on, the first: -1"),
        (lambda data: data["categories"][1].update(id=1), "have the id of another, the first: 1"),
        (lambda data: data["annotations"][0].update(bbox=[1, 2]), "no bbox of four numbers"),
        (lambda data: data["annotations"][0].update(bbox=None, image_id=[], category_id={}), "no bbox of four numbers"),
        (lambda data: data["images"][0].update(width=48, height=64), "all 12 were decoded), the first: "),
        (lambda data: data.update(categories=[]), "there is no category in `categories`"),
        (lambda data: data["annotations"].extend(
            {**data["annotations"][0], "id": n, "bbox": [n % 40, n % 20, 9, 9 + n / 99]} for n in range(120)),
         "an image holds 123 boxes, but `model.num_queries` is 100"),
        (lambda data: [row.update(bbox=[9, 9, 3, 3]) for row in data["annotations"]],
         "36 of 36 boxes are below 16 x 16 pixels"),
    ],
)  # fmt: skip
def test_rows_that_are_wrong(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    assert any(words in one.seen and one.change for one in rows(tmp_path, change))


def test_files_that_cannot_be_read_are_told_together(tmp_path: Path) -> None:
    path = faulty.write(tmp_path)
    (tmp_path / "train.json").write_text("{")
    spec = yaml.safe_load(path.read_text())
    spec["dataset"]["val_data_sources"][0]["image_dir"] = str(tmp_path / "gone")
    path.write_text(yaml.safe_dump(spec))
    told = [f"{one.seen} -> {one.change}" for one in findings(path)]
    assert any("train.json` must be a COCO JSON file, but cannot be read" in one for one in told)
    assert any(f"`{tmp_path}/gone` does not exist -> correct the path" in one for one in told)


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray and without steps of training."""
    kept = {name: look for name, look in doctor.CHECKS.items() if name in ("spec", "tracking", "disk", "data")}
    monkeypatch.setattr(doctor, "CHECKS", kept)


def test_a_sound_spec_is_told_what_to_type_next(
    tmp_path: Path, few_checks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty.write(tmp_path)
    assert main(["doctor", "-e", str(path), "train.num_epochs=3"]) == 0
    shown = capsys.readouterr().out
    assert "0 problems, 1 warning, " in shown
    assert f"next: ddetr train -e {path} train.num_epochs=3 --dry-run" in shown
    assert not (tmp_path / "runs").exists()


def test_a_wrong_spec_stops_no_other_check(
    tmp_path: Path, few_checks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty.write(tmp_path, "missing")
    words = ["doctor", "-e", str(path), "model.num_querys=3", "train.optim.lr=5", "--json"]
    assert main(words) == 2
    said = capsys.readouterr()
    document = json.loads(said.out)
    problems = [row for row in document["findings"] if row["level"] == "problem"]
    assert [(row["check"], row["class"]) for row in problems] == [("spec", "spec")] * 2 + [("data", "data")]
    assert "unknown key `model.num_querys`" in problems[0]["seen"]
    assert "did you mean `model.num_queries`" in problems[0]["change"]
    assert "on the command line" in problems[1]["seen"]
    assert {row["check"] for row in document["findings"]} == {"spec", "tracking", "disk", "data"}
    assert all(row["change"] for row in document["findings"] if row["level"] != "ok")
    assert document["exit_code"] == 2
    assert document["counts"]["problem"] == 3
    assert document["next"].startswith("mend the 3 problems and look again: ddetr doctor -e")


def test_a_problem_of_the_data_alone_is_exit_1(
    tmp_path: Path, few_checks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "-e", str(faulty.write(tmp_path, "missing"))]) == 1
    assert "problem  train: `" in capsys.readouterr().out


def test_a_file_that_cannot_be_used_ends_one_check_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(visit: doctor.Visit) -> Iterator[Finding]:
        yield Finding("data", "ok", "so far so good")
        raise OSError(5, "Input/output error", "/data/1.jpg")

    monkeypatch.setattr(doctor, "CHECKS", {"data": torn, "spec": doctor.CHECKS["spec"]})
    assert main(["doctor", "-e", str(faulty.write(tmp_path))]) == 1
    shown = capsys.readouterr().out
    assert "problem (disk) `/data/1.jpg` cannot be used (Input/output error)" in shown
    assert "gear.yaml can be read" in shown


def test_a_spec_that_is_not_there_leaves_the_machine_to_look_at(
    tmp_path: Path, few_checks: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "-e", "nowhere.yaml"]) == 2
    shown = capsys.readouterr().out
    assert "nowhere.yaml cannot be read: No such file" in shown
    assert "results_dir: " in shown
    assert "not looked at: there is no spec to name any" in shown


def test_a_search_without_validation_data_is_a_problem_of_the_spec(
    tmp_path: Path, few_checks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty.write(tmp_path)
    assert main(["doctor", "-e", str(path), "dataset.val_data_sources=[]"]) == 2
    assert "a search needs validation data" in capsys.readouterr().out
    assert main(["doctor", "-e", str(path), "dataset.val_data_sources=[]", "automl_policy=off"]) == 0


def test_hardware_names_what_a_trial_lacks() -> None:
    spec = ExperimentSpec()
    assert not [one for one in hardware(spec, SweepSpec()) if one.level == "problem"]
    (problem,) = [one for one in hardware(spec, SweepSpec(cpus_per_trial=10_000)) if one.level == "problem"]
    assert (problem.kind, "but is 10000" in problem.seen, problem.change) == ("spec", True, "lower it")


def test_disk_counts_what_the_search_needs(tmp_path: Path, tiny_spec: ExperimentSpec) -> None:
    root = tmp_path / "runs"
    fine = next(iter(disk(tiny_spec, SweepSpec(trials=3), root, network=True)))
    assert fine.level == "ok"
    assert "of checkpoints of 3 trials" in fine.seen
    huge = next(iter(disk(tiny_spec, SweepSpec(trials=10**9), root, network=True)))
    assert (huge.kind, huge.level) == ("disk", "problem")
    assert "set results_dir to another disk" in huge.change
    assert not root.exists()


def test_a_results_folder_below_a_file_cannot_be_written(tmp_path: Path, tiny_spec: ExperimentSpec) -> None:
    (tmp_path / "file").touch()
    found = next(iter(disk(tiny_spec, None, tmp_path / "file" / "runs", network=False)))
    assert (found.level, "cannot be written" in found.seen) == ("problem", True)


def test_the_local_tracking_database(tmp_path: Path) -> None:
    (found,) = tracking(tmp_path)
    assert (found.level, "will be made by the first run" in found.seen) == ("ok", True)
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE x (y)").connection.close()
    (found,) = tracking(tmp_path)
    assert (found.level, "can be read and written" in found.seen) == ("ok", True)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    (found,) = tracking(tmp_path)
    assert (found.kind, found.level) == ("tracking", "warning")
    assert "is not a database" in found.seen


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, str]]]:
    """An MLflow server's answers by path, and its address in MLFLOW_TRACKING_URI."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.get(self.path.partition("?")[0], (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{serving.server_port}")
        yield answers
        serving.shutdown()


def test_a_tracking_server(tmp_path: Path, server: dict[str, tuple[int, str]]) -> None:
    search = "/api/2.0/mlflow/experiments/search"
    server |= {"/version": (200, "3.1.0"), search: (200, '{"experiments": [{}]}')}
    (found,) = tracking(tmp_path)
    assert found.level == "ok"
    server["/version"] = 200, "2.9.2"
    (found,) = tracking(tmp_path)
    assert (found.level, found.change) == ("warning", "bring both to the same major version")
    server["/version"] = 401, ""
    (refused,) = tracking(tmp_path)
    assert (refused.level, "MLFLOW_TRACKING_USERNAME" in refused.change) == ("warning", True)
    server["/version"] = 200, "3.1.0"
    server[search] = 200, "<html>"
    (strange,) = tracking(tmp_path)
    assert (strange.level, "does not answer as it should" in strange.seen) == ("warning", True)
    assert "secret" not in "".join(one.seen + one.change for one in (found, refused, strange))


def test_a_tracking_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (found,) = tracking(tmp_path)
    assert (found.kind, found.level) == ("tracking", "warning")
    assert "training goes on without it" in found.seen


def test_the_fix_is_the_last_clause_of_an_error() -> None:
    assert of_error("data", "`x` must be 1, but is 2; set it.") == Finding(
        "data", "problem", "`x` must be 1, but is 2", "set it"
    )
    assert of_error("spec", SpecError(["`x` must be 1, but is 2."])).change == "correct it as it says"


@pytest.mark.slow
def test_the_whole_doctor(tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps of training, and a Ray of its own with a worker in it."""
    path = faulty.write(tmp_path)
    assert main(["doctor", "-e", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    checks = {row["check"]: row for row in document["findings"]}
    assert list(checks) == list(doctor.CHECKS)
    assert "4 images a step fit on CPU; an epoch takes about" in checks["memory"]["seen"]
    assert "a worker on each finds code and storage" in checks["Ray"]["seen"]
    assert not (tmp_path / "runs").exists()
