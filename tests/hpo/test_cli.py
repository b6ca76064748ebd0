"""The two commands from outside: exit codes, messages, the chain on real pixels with the smallest detector."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo import runs
from hpo.cli import DDETR, DIRECT, GROUPS, direct, exit_code, main
from hpo.errors import RunError
from hpo.result import Outcome, read_result
from hpo.screen import near
from model.checkpoint import read_checkpoint
from model.errors import DataError, OutOfMemory


@pytest.fixture
def spec_file(digits_spec: dict[str, Any], tmp_path: Path) -> Path:
    digits_spec["train"] = {"num_epochs": 2, "activation_checkpoint": False, "optim": {"lr": 1e-3}}
    digits_spec["export"] = {"input_height": 64, "input_width": 64}
    digits_spec["automl"] = {"trials": 2}
    digits_spec["results_dir"] = str(tmp_path / "results")
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump(digits_spec))
    return path


def only_run(tmp_path: Path) -> Path:
    (run,) = [path for path in (tmp_path / "results").iterdir() if (path / "spec.yaml").exists()]
    return run


def test_the_surface_is_this_one() -> None:
    assert sorted(DDETR) == [
        "compare", "completion", "doctor", "evaluate", "explain", "export", "gen_trt_engine", "inference",
        "make-data", "quantize", "report", "resume", "runs", "skill", "space", "stop", "train",
    ]  # fmt: skip
    assert sorted(DIRECT) == [
        "default_specs", "evaluate", "export", "gen_trt_engine", "inference", "quantize", "train",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_querys=3", "did you mean `model.num_queries`"),
        ("dataset.batch_size=big", "`dataset.batch_size`"),
        ("train.optim.lr=1.0", "at most 0.01"),
        ("dataset.num_classes=2", "num_classes=3 (max id + 1)"),
        ("dataset.batch_size=64", "reduce batch_size or num_gpus"),
        ("model.num_select=300", "must be below `model.num_queries` x `dataset.num_classes`"),
        ("model.return_interm_indices=[1,2,3]", "`model.return_interm_indices` must have"),
        ("dataset.val_data_sources=[]", "a search needs validation data"),
        ("dataset.test_data_sources.json_file=/nowhere.json", "/nowhere.json"),
        ("model.backbone=fan_tiny", "`model.backbone` must be one of"),
        ("model.hidden_dim=30", "`model.hidden_dim`"),
        ("automl_policy=perhaps", "auto, on or off"),
        ("automl.trials=0", "at least 1"),
        ("--searcher=tpee", "`automl.searcher` must be one of"),
        ("--scheduler=ashaa", "`automl.scheduler` must be one of"),
        ("--algorithm=llm", "no language model is asked for values here; use auto. (--algorithm)"),
        ("--trials=0", "`automl.trials` must be at least 1, but is 0. (--trials)"),
        ("--params=lrr", "`automl.params`: unknown parameter `lrr`; did you mean `lr`? (--params)"),
        ("--fix=lr=3", "at most 0.01, but is 3. (--fix lr=3)"),
    ],
)
def test_a_users_mistake_is_a_paragraph_and_exit_2(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert main(["train", "-e", str(spec_file), override]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_overrides_may_stand_anywhere(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "space",
        "train.num_epochs=20",
        "-e",
        str(spec_file),
        "automl.tier=medium",
        "--exclude",
        "lr",
        "model.aux_loss=false",
    ]
    assert main(words) == 0
    assert "searched (medium)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["space", "-e", str(spec_file), "--tear", "wide"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --tear; did you mean --tier?" in capsys.readouterr().err


def test_every_command_is_listed_once_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) >= set(DDETR)
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for title in GROUPS:
        assert f"\n{title}:\n" in shown
    for name, command in DDETR.items():
        assert f"\n  {name:15s} {command.help}\n" in shown
    assert "\n  ddetr make-data digits --out data/digits\n" in shown
    assert max(map(len, shown.splitlines())) <= 120

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().out == shown


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ddetr {version('ddetr-automl')}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "did you mean `train`?"), ("evalute", "did you mean `evaluate`?"), ("xyz", "there are train, resume,")],
)
def test_a_mistyped_command(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([word])
    assert stop.value.code == 2
    assert f"unknown command `{word}`; {hint}" in capsys.readouterr().err


def test_space_and_explain_end_with_the_next_command(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "-e", str(spec_file), "--exclude", "lr"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: ddetr train -e {spec_file} --exclude lr --dry-run"
    assert main(["explain", "lr", "-e", str(spec_file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: ddetr space -e {spec_file}"
    assert main(["space", "-e", str(spec_file), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_exit_codes_of_named_errors() -> None:
    assert exit_code(DataError("x")) == 2
    assert exit_code(RunError("x")) == 2
    assert exit_code(OutOfMemory("x")) == 1
    assert exit_code(OSError("x")) == 1
    assert exit_code(RuntimeError("a fault of ours")) is None
    assert exit_code(ValueError("a library's")) is None  # raised by no module of ours


def test_dry_run_starts_nothing(spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-e", str(spec_file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "train.optim.lr" in shown
    for part in ("images    │    24", "digit (2)", "resources: ", "0: your spec", "one epoch: ", "3 steps of 8 images",
                 "for 2 trials of 2 epochs", "disk: up to", "dry run: nothing was started"):  # fmt: skip
        assert part in shown, part
    assert shown.splitlines()[-1] == f"next: ddetr train -e {spec_file}"
    assert not (tmp_path / "results").exists()


def test_plain_training_has_the_layout_of_a_search(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--request", "plain training please", "train.num_epochs=1"]
    assert main(["train", "-e", str(spec_file), "--json", *words]) == 0
    run = only_run(tmp_path)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {row["event"]: row for row in said}
    assert list(told) == ["review", "run", "started", "measured", "ended", "finished", "handed_over"]
    assert (told["review"]["search"], told["review"]["epochs"]) == (False, 1)
    assert "off" in told["review"]["because"]
    assert told["run"]["folder"] == str(run)
    assert told["measured"]["values"]["val_mAP50"] == told["ended"]["value"] == told["finished"]["value"]
    assert told["finished"]["checkpoint"] == told["handed_over"]["files"]["PyTorch"]
    assert Path(told["handed_over"]["files"]["ONNX FP32"]).is_file()
    there = {path.name for path in run.iterdir()}
    assert {"spec.yaml", "trials", "handoff.json", "model.onnx"} <= there
    assert "study.db" not in there
    handoff = json.loads((run / "handoff.json").read_text())
    assert handoff["checkpoint"] == "trials/0/model_best.pth"
    assert handoff["classes"] == {"2": "digit"}

    from hpo.review import checkpoint_bytes

    best = read_checkpoint(run / "trials" / "0" / "model_best.pth")
    weights = sum(tensor.numel() for tensor in best.state.values())
    there = sum(path.stat().st_size for path in (run / "trials" / "0").glob("*.pth") if not path.is_symlink())
    assert there == pytest.approx(checkpoint_bytes(weights, best.spec, trials=1, concurrent=0), rel=0.15)

    from mlflow import MlflowClient

    from hpo.tracking import tracking_uri

    found = MlflowClient(tracking_uri(run.parent)).search_runs(["1"])
    assert [one.data.tags["trial.status"] for one in found] == ["completed"]
    assert "val_mAP50" in found[0].data.metrics

    assert main(["evaluate", "--from", str(run)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next: ddetr inference --from {run} 'dataset.infer_data_sources.image_dir=[FOLDER]'"
    assert json.loads((run / "evaluate" / "metrics.json").read_text()).keys() >= {"mAP50"}
    assert main(["evaluate", "--from", f"{run}/0", "results_dir=" + str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "evaluate" / "metrics.json").read_text())
    assert again == json.loads((run / "evaluate" / "metrics.json").read_text())


def test_a_search_on_real_pixels(spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trials through real Ray, the handoff, and a resume that has nothing left to do."""
    assert main(["train", "-e", str(spec_file)]) == 0
    shown = capsys.readouterr().out
    assert "test mAP50: default" in shown
    run = only_run(tmp_path)
    assert shown.splitlines()[-1] == f"next: ddetr evaluate --from {near(run)}"
    for noise in ("litlogger", "TPU", "deprecated", "Warning", "many workers", "ray.io", "(raylet"):
        assert noise not in shown
    result = read_result(run)
    assert [trial.outcome for trial in result.trials] == [Outcome.COMPLETED] * 2
    for name in ("spec.yaml", "space.json", "study.db", "handoff.json", "model.onnx", "model.onnx.json"):
        assert (run / name).is_file()

    # Trial 0 is the user's own spec, and trains what `automl_policy=off` trains.
    written = yaml.safe_load((run / "trials" / "0" / "spec.yaml").read_text())
    whole = yaml.safe_load((run / "spec.yaml").read_text())
    assert written == whole
    user = yaml.safe_load(spec_file.read_text())
    other = yaml.safe_load((run / "trials" / "1" / "spec.yaml").read_text())
    for key in ("train_data_sources", "val_data_sources", "test_data_sources", "batch_size", "num_classes"):
        assert written["dataset"][key] == other["dataset"][key] == user["dataset"][key]
    assert read_checkpoint(run / "trials" / "0" / "model_best.pth").spec.train.optim.lr == 1e-3

    before = (run / "study.db").read_bytes()
    assert main(["resume", str(run)]) == 0
    assert len(read_result(run).trials) == 2
    assert (run / "study.db").read_bytes() == before


def test_the_compatible_spelling_writes_where_tao_does(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tao"
    common = ["-e", str(spec_file), f"results_dir={out}"]
    assert direct(["train", *common, "train.num_epochs=1"]) == 0
    assert "automl: passed over" in capsys.readouterr().out
    assert {"experiment.yaml", "status.json", "dd_model_latest.pth"} <= {
        path.name for path in (out / "train").iterdir()
    }
    checkpoint = out / "train" / "model_epoch_000_step_00003.pth"
    assert direct(["evaluate", *common, f"evaluate.checkpoint={checkpoint}"]) == 0
    assert (out / "evaluate" / "status.json").is_file()
    onnx = out / "model.onnx"
    assert direct(["export", *common, f"export.checkpoint={checkpoint}", f"export.onnx_file={onnx}"]) == 0
    assert direct(["evaluate", *common, f"evaluate.checkpoint={onnx}"]) == 0
    pictures = yaml.safe_load(spec_file.read_text())["dataset"]["test_data_sources"]["image_dir"]
    infer = [f"inference.checkpoint={checkpoint}", f"dataset.infer_data_sources.image_dir=[{pictures}]"]
    assert direct(["inference", *common, *infer]) == 0
    assert len(list((out / "inference" / "labels").iterdir())) == len(
        list((out / "inference" / "images_annotated").iterdir())
    )
    capsys.readouterr()
    without = [word for word in common if not word.startswith("results_dir")]
    assert direct(["evaluate", *without, "results_dir=null", f"evaluate.checkpoint={checkpoint}"]) == 2
    assert "a results folder must be set" in capsys.readouterr().err


def test_runs_are_found_by_path_and_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (runs.new_run(tmp_path / "runs", "quick") for _ in range(2))
    for run in (first, second):
        (run / "spec.yaml").touch()
    assert first != second
    assert first.name.startswith("quick-")
    assert runs.find_run(first.name) == runs.find_run(str(first)) == first
    with pytest.raises(RunError, match=f"holds .*{second.name}"):
        runs.find_run("nothing")
    assert runs.stem(first.name) == runs.stem(second.name) == "quick"


def test_a_faulty_request_of_an_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 2
    assert "--from RUN" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2
