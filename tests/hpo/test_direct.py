"""`deformable_detr` on specs as TAO's users have them: the templates as they stand, all actions in a row, and a
status.json that ends whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.cli import direct, main
from hpo.spec import read_request
from model.spec import DEPLOY_SECTIONS, ExperimentSpec
from schemas import dotted

TABLE: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "schemas" / "tao_fields.yaml").read_text()
)
ACTIONS = ("train", "evaluate", "inference", "export", "gen_trt_engine", "quantize")
OF_ALL = ("train", "quantize")


def template(action: str) -> dict[str, Any]:
    """TAO's `spec_template_<action>.yaml`: every key of its table with TAO's own default."""
    nested: dict[str, Any] = {}
    for name, row in TABLE.items():
        section = name.split(".")[0]
        if row["type"] != "collection" and (section == action or section not in ACTIONS or section in OF_ALL):
            nested = dotted.put(nested, name, row.get("default", "???" if row.get("mandatory") else None))
    return nested


def filled(action: str, digits: Path) -> dict[str, Any]:
    """With data paths and the class count filled in, and nothing else."""
    spec = dotted.put(template(action), "dataset.num_classes", 3)

    def source(split: str) -> dict[str, str]:
        return {"image_dir": f"{digits}/{split}/images.tar.gz", "json_file": f"{digits}/{split}/annotations.json"}

    for split in ("train", "val"):
        spec = dotted.put(spec, f"dataset.{split}_data_sources", [source(split)])
    spec = dotted.put(spec, "dataset.test_data_sources", source("test"))
    return dotted.put(spec, "dataset.infer_data_sources.image_dir", [source("test")["image_dir"]])


@pytest.fixture
def written(digits: Path, tmp_path: Path, own_cache: None) -> dict[str, Path]:
    paths = {action: tmp_path / f"{action}.yaml" for action in ACTIONS}
    for action, path in paths.items():
        path.write_text(yaml.safe_dump(filled(action, digits)))
    return paths


@pytest.mark.parametrize("action", ACTIONS)
def test_a_template_passes_and_builds_its_model(written: dict[str, Path], action: str) -> None:
    import torch

    from model.network.detr import build, check_spec

    request = read_request(written[action], action=action, automl=False, data=action == "train")
    assert request.spec.problems() == []
    defaults = ExperimentSpec().to_dict()["model"]
    assert request.spec.to_dict()["model"] == defaults, "TAO's network is our default"
    check_spec(request.spec.model, 3)
    with torch.device("meta"):  # every module and weight of ResNet-50, none of the memory
        model = build(request.spec.model, request.spec.dataset.num_classes, pretrained=False)
    assert model.class_embed[0].out_features == 3
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(41e6, rel=0.1)


def common(digits: Path, out: Path) -> list[str]:
    """One list for all actions: a small network, small pictures, one epoch, and where each finds the one before."""
    network = {
        "backbone": "resnet_tiny", "num_queries": 100, "num_select": 50, "num_feature_levels": 2,
        "return_interm_indices": "[2,3]", "hidden_dim": 32, "nheads": 2, "enc_layers": 1, "dec_layers": 2,
        "dim_feedforward": 32,
    }  # fmt: skip
    sizes = {
        "scales": "[48]", "random_resize_max_size": 48, "test_random_resize": 48, "fixed_random_crop": "null",
        "train_random_resize": "[48]", "train_random_crop_min": 32, "train_random_crop_max": 48,
        "fixed_padding": "false",
    }  # fmt: skip
    return [
        f"results_dir={out}",
        *(f"model.{name}={value}" for name, value in network.items()),
        *(f"dataset.augmentation.{name}={value}" for name, value in sizes.items()),
        "dataset.batch_size=8", "dataset.workers=1", "dataset.eval_class_ids=null",
        "train.num_epochs=1", "train.optim.lr=1e-3", "train.activation_checkpoint=false",
        f"evaluate.checkpoint={out}/train/model_epoch_000_step_00003.pth",
        f"inference.checkpoint={out}/train/model_epoch_000_step_00003.pth",
        "inference.input_width=48", "inference.input_height=48",
        f"export.checkpoint={out}/train/dd_model_latest.pth", f"export.onnx_file={out}/export/model.onnx",
        "export.input_width=64", "export.input_height=64",
        f"gen_trt_engine.onnx_file={out}/export/model.onnx", f"gen_trt_engine.trt_engine={out}/model.engine",
        f"quantize.model_path={out}/train/model_best.pth",
    ]  # fmt: skip


def ended(folder: Path) -> dict[str, Any]:
    """The last line of status.json."""
    found = json.loads((folder / "status.json").read_text().splitlines()[-1])
    assert isinstance(found, dict)
    return found


def opened_for_writing(folder: Path) -> set[Path]:
    """The files below `folder` that Python opens to write from now on, under the name at that time."""
    found: set[Path] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path) and set(arguments[1] or "") & set("wax+"):
            path = Path(arguments[0]).absolute()
            if folder in path.parents:
                found.add(path)

    sys.addaudithook(hook)
    return found


@pytest.mark.slow
def test_all_actions_in_a_row_with_one_list_of_overrides(
    written: dict[str, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "results"
    written_under = opened_for_writing(out)
    for action in ("train", "evaluate", "inference", "export", "gen_trt_engine", "quantize"):
        assert direct([action, "-e", str(written[action]), *common(digits, out)]) == 0, capsys.readouterr().err
        assert ended(out / action)["status"] == "SUCCESS"
        kept = yaml.safe_load((out / action / "experiment.yaml").read_text())
        assert kept["model"]["hidden_dim"] == 32
        assert kept["results_dir"] == str(out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names >= {
        "train/model_epoch_000_step_00003.pth", "train/dd_model_latest.pth", "evaluate/metrics.json",
        "evaluate/predictions.json", "evaluate/per_class.csv", "export/model.onnx", "model.engine",
        "quantize/quantized_model_torchao.pth",
    }  # fmt: skip
    assert len([name for name in names if name.startswith("inference/labels/")]) > 3
    assert {path.name for path in written_under if path.name[0] != "."} == {"status.json"}, "beside, then renamed"
    assert len(written_under) > 20


WRONG = ("model.nheads=5", "model.enc_layers=3", "model.num_select=900", "model.return_interm_indices=[7]",
         "train.validation_interval=50")  # fmt: skip


def test_rules_of_the_network_count_only_where_it_is_built(
    written: dict[str, Path], digits: Path, tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    words = [*common(digits, out), *WRONG, "dataset.num_classes=4", "evaluate.latency_batch_sizes=[]"]
    assert direct(["evaluate", "-e", str(written["evaluate"]), *words, f"evaluate.checkpoint={tiny_onnx}"]) == 0
    onnx = f"gen_trt_engine.onnx_file={tmp_path}/gone.onnx"
    assert direct(["gen_trt_engine", "-e", str(written["gen_trt_engine"]), *words, onnx]) != 0
    assert "`model." not in capsys.readouterr().err
    assert direct(["train", "-e", str(written["train"]), *words]) == 2
    assert "`model.hidden_dim` must be a multiple of `model.nheads`" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_training_template_as_it_stands_takes_a_step(digits: Path, tmp_path: Path, own_cache: None) -> None:
    """ResNet-50, six and six layers, crops of 1024 pixels, on data with the class 1 that TAO's template scores."""
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        text = (digits / split / "annotations.json").read_text()
        content = json.loads(text, object_hook=lambda row: {**row, "category_id": 1} if "bbox" in row else row)
        content["categories"] = [{"id": 1, "name": "digit"}]
        (tmp_path / split / "annotations.json").write_text(json.dumps(content))
        (tmp_path / split / "images.tar.gz").symlink_to(digits / split / "images.tar.gz")
    spec = dotted.put(filled("train", tmp_path), "dataset.num_classes", 2)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(spec))
    words = [f"results_dir={tmp_path}/results", "dataset.batch_size=1", "train.is_dry_run=true"]
    assert direct(["train", "-e", f"{tmp_path}/train.yaml", *words]) == 0
    out = tmp_path / "results" / "train"
    assert ended(out)["status"] == "SUCCESS"
    assert (out / "model_epoch_000_step_00001.pth").is_file()


@pytest.mark.parametrize("action", ["evaluate", "inference", "export", "gen_trt_engine", "quantize"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("dataset.batch_size=big",), "SpecError"),
        (("train.num_epoch=3",), "SpecError"),
        (("dataset.batch_size",), "SpecError"),
        ((), None),
    ],
)
def test_status_ends_in_a_failure(
    action: str, words: tuple[str, ...], code: str | None, written: dict[str, Path], tmp_path: Path
) -> None:
    """A spec that is wrong, and where that is sound, files that are not there."""
    files = {
        "evaluate": "evaluate.checkpoint=/gone.pth", "inference": "inference.checkpoint=/gone.pth",
        "export": "export.checkpoint=/gone.pth", "gen_trt_engine": "gen_trt_engine.onnx_file=/gone.onnx",
        "quantize": "quantize.model_path=/gone.pth",
    }  # fmt: skip
    more = ["export.onnx_file=x.onnx", f"gen_trt_engine.trt_engine={tmp_path}/x.engine", f"results_dir={tmp_path}/out"]
    assert direct([action, "-e", str(written[action]), *words, *more, files[action]]) in (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / action / "status.json").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "FAILURE"]
    assert code is None or lines[-1]["error_code"] == code
    assert lines[-1]["error_code"] in lines[-1]["message"]


def test_a_spec_that_cannot_be_read_fails_where_the_command_line_says(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("train: [1\n")
    assert direct(["train", "-e", f"{tmp_path}/torn.yaml", f"results_dir={tmp_path}/out"]) == 2
    assert "torn.yaml:2: not readable as YAML" in ended(tmp_path / "out" / "train")["message"]
    assert direct(["export", "-e", f"{tmp_path}/gone.yaml", f"export.results_dir={tmp_path}/there"]) == 2
    assert ended(tmp_path / "there")["error_code"] == "SpecError"


def test_a_signal_ends_status_too(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)

    monkeypatch.setattr("deploy.export.load_model", interrupted)
    (tmp_path / "spec.yaml").write_text(f"results_dir: {tmp_path}\nexport: {{checkpoint: {tiny_checkpoint}}}\n")
    assert direct(["export", "-e", f"{tmp_path}/spec.yaml", f"export.onnx_file={tmp_path}/x.onnx"]) == 130
    assert ended(tmp_path / "export")["error_code"] == "Interrupted"


def test_default_specs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert direct(["default_specs", f"results_dir={tmp_path}/all", "module_name=deformable_detr"]) == 0
    whole = yaml.safe_load((tmp_path / "all" / "experiment.yaml").read_text())
    assert set(whole) >= {*ACTIONS, "model", "dataset", "encryption_key", "results_dir", "wandb"}
    spec = {key: value for key, value in whole.items() if key not in DEPLOY_SECTIONS}
    assert ExperimentSpec.from_dict({**spec, "results_dir": None}) == ExperimentSpec()
    assert ended(tmp_path / "all")["status"] == "SUCCESS"

    (tmp_path / "mine.yaml").write_text("dataset: {num_classes: 7}\nencryption_key: hush\n")
    words = ["-e", f"{tmp_path}/mine.yaml", f"results_dir={tmp_path}/one", "action=export", "export.input_width=96"]
    assert direct(["default_specs", *words]) == 0
    text = (tmp_path / "one" / "experiment.yaml").read_text()
    one = yaml.safe_load(text)
    assert (one["export"]["input_width"], one["dataset"]["num_classes"]) == (96, 7)
    assert "evaluate" not in one
    assert "hush" not in text
    # What it writes is a spec.
    assert read_request(tmp_path / "one" / "experiment.yaml", action="export").spec.dataset.num_classes == 7

    assert direct(["default_specs"]) == 2
    assert "`results_dir` must name the folder" in capsys.readouterr().err
    assert direct(["default_specs", f"results_dir={tmp_path}/no", "module_name=dino", "action=prune", "trian.x=1"]) == 2
    error = capsys.readouterr().err
    for part in ("`module_name` must be deformable_detr, but is dino", "`action` must be one of", "`trian`"):
        assert part in error
    assert ended(tmp_path / "no")["error_code"] == "SpecError"


SECRET = "xyzzy-4711"


def told(folder: Path) -> list[Path]:
    """The files that hold the secret."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_the_key_is_masked_in_the_files_of_an_action(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("encryption_key: xyzzy-4711\n")
    out = tmp_path / "out"
    words = [
        "-e",
        str(spec),
        f"results_dir={out}",
        f"encryption_key={SECRET}",
        f"quantize.model_path={tiny_checkpoint}",
    ]
    assert direct(["export", *words, f"export.checkpoint={tiny_checkpoint}", f"export.onnx_file={out}/x.onnx",
                   "export.input_width=64", "export.input_height=64"]) == 0  # fmt: skip
    assert direct(["evaluate", *words, "evaluate.batch_size=-7"]) == 2
    assert direct(["quantize", *words, "quantize.mode=static_ptq"]) == 2
    assert direct(["inference", *words, f"encryption_key=[{SECRET}]"]) == 2
    assert "`encryption_key` must be text, but is [a secret]" in ended(out / "inference")["message"]
    assert main(["train", *words, f"+encryption_key={SECRET}", "dataset.train_data_sources=[{image_dir: /gone}]"]) == 2
    said = capsys.readouterr()
    assert "next: ddetr doctor" in said.err
    assert SECRET not in said.out + said.err
    assert {path.name for path in out.iterdir()} >= {"export", "evaluate", "quantize", "x.onnx"}
    assert told(out) == []


@pytest.mark.slow
def test_a_chain_of_jobs_and_the_key_is_masked_in_all_of_their_files(
    written: dict[str, Path], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain run, what is made of it by its id, and a training from its winner."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sections = ("evaluate.", "export.", "gen_trt", "quantize.", "inference.")
    words = [word for word in common(digits, tmp_path / "runs") if not word.startswith(sections)]
    sized = ["export.input_width=64", "export.input_height=64"]
    key = f"encryption_key={SECRET}"
    assert main(["train", "-e", str(written["train"]), "--no-automl", *words, *sized, key]) == 0
    (run,) = [path for path in (tmp_path / "runs").iterdir() if (path / "handoff.json").exists()]
    assert main(["export", "--from", run.name, key]) == 0
    exported = json.loads((run / "export" / "model.onnx.json").read_text())
    assert (exported["input"]["width"], exported["lineage"]["epoch"]) == (64, 1)
    assert main(["evaluate", "--from", f"{run.name}/export", key, "evaluate.latency_batch_sizes=[]"]) == 0
    assert (run / "export" / "evaluate" / "metrics.json").is_file()
    assert main(["quantize", "--from", f"{run.name}/0", key]) == 0
    assert (run / "trials" / "0" / "quantize" / "quantized_model_torchao.pth").is_file()

    assert main(["train", "--from", run.name, "--no-automl", key]) == 0
    (second,) = [path for path in (tmp_path / "runs").iterdir() if (path / "handoff.json").exists() and path != run]
    spec = yaml.safe_load((second / "spec.yaml").read_text())
    assert spec["train"]["pretrained_model_path"] == str(run / "trials" / "0" / "model_best.pth")
    assert spec["model"]["hidden_dim"] == 32
    assert second.name.startswith("train-")
    assert told(tmp_path / "runs") == []


def test_the_actions_need_no_search_packages(tiny_onnx: Path, tmp_path: Path) -> None:
    """A wrong spec is told before anything heavy is loaded."""
    code = (
        "import sys; from hpo.cli import direct; "
        f"code = direct(['evaluate', '-e', '{tmp_path}/gone.yaml', 'results_dir={tmp_path}']); "
        "print(code, [name for name in ('mlflow', 'ray', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 []"
