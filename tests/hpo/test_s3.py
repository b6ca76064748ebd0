"""The actions, the doctor and a search on data in S3, the connection broken in mid-download."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deploy.calibration import from_folders
from deploy.calibration import from_spec as calibration
from hpo.cli import direct
from model.data import remote
from model.data.digits import make_digits
from model.spec import ExperimentSpec
from tests.store import Store, Wire, wire_to


@pytest.fixture
def wire(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("DDETR_CACHE", str(tmp_path / "cache"))
    with wire_to(s3) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


@pytest.fixture
def spec(digits: Path, digits_spec: dict[str, Any], s3: Store, tmp_path: Path) -> Path:
    """The digits spec with all its data in S3."""
    s3.put_folder("digits", "", digits)

    def source(split: str) -> dict[str, str]:
        return {"image_dir": f"s3://digits/{split}/images.tar.gz", "json_file": f"s3://digits/{split}/annotations.json"}

    digits_spec["dataset"] |= {
        "train_data_sources": [source("train")],
        "val_data_sources": [source("val")],
        "test_data_sources": source("test"),
        "infer_data_sources": {
            "image_dir": ["s3://digits/test/images.tar.gz"], "classmap": "s3://digits/test/label_map.txt"
        },
        "quant_calibration_data_sources": source("val"),
    }  # fmt: skip
    digits_spec["train"] |= {"num_epochs": 1}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(digits_spec))
    return path


def images_of(uri: str, s3: Store) -> int:
    """How often its download was begun."""
    return s3.gets(f"s3://digits/{uri}/images.tar.gz").count(None)


def test_direct_actions(spec: Path, wire: Wire, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results"
    monkeypatch.setattr(remote, "CHUNK", 1000)
    wire.cuts = [12_000]
    assert direct(["train", "-e", str(spec), f"results_dir={out}"]) == 0
    _, gone_on = s3.gets("s3://digits/train/images.tar.gz")
    assert gone_on is not None
    assert (images_of("train", s3), images_of("val", s3), images_of("test", s3)) == (1, 1, 0)
    checkpoint = out / "train" / "dd_model_latest.pth"
    words = ["-e", str(spec), f"results_dir={out}"]
    assert direct(["evaluate", *words, f"evaluate.checkpoint={checkpoint}"]) == 0
    assert 0 <= json.loads((out / "evaluate" / "metrics.json").read_text())["mAP50"] <= 1
    wanted = f"inference.checkpoint={checkpoint}"
    assert direct(["inference", *words, wanted, "inference.conf_threshold=0"]) == 0
    labels = sorted((out / "inference" / "labels").glob("*.txt"))
    truth = json.loads(next((tmp_path / "cache" / "s3").rglob("test/annotations.json")).read_text())
    assert len(labels) == len(truth["images"])
    assert images_of("test", s3) == 1
    before = len(s3.asked)
    onnx = f"export.onnx_file={tmp_path}/model.onnx"
    size = ("export.input_height=64", "export.input_width=64")
    assert direct(["export", *words, f"export.checkpoint={checkpoint}", onnx, *size]) == 0
    assert len(s3.asked) == before, "an export reads no data"


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_each_action_goes_on_where_the_line_broke(
    spec: Path, wire: Wire, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with nothing in its cache, and the line cut once in the archive that it reads first."""
    for package in ("torchao", "tensorrt_rtx"):
        pytest.importorskip(package)
    make_digits(tmp_path / "larger", size=48, images=96, seed=3)
    s3.put_folder("digits", "", tmp_path / "larger")
    monkeypatch.setattr(remote, "CHUNK", 1000)
    out = tmp_path / "results"
    checkpoint, onnx = out / "train" / "dd_model_latest.pth", tmp_path / "model.onnx"

    def run(action: str, *words: str, broken: str | None = None) -> None:
        monkeypatch.setenv("DDETR_CACHE", str(tmp_path / f"cache-{len(list(tmp_path.glob('cache-*')))}"))
        monkeypatch.setattr(remote, "_known", {})
        s3.asked.clear()
        if broken is not None:
            wire.cuts = [(tmp_path / "larger" / broken / "images.tar.gz").stat().st_size // 2]
        assert direct([action, "-e", str(spec), f"results_dir={out}", *words]) == 0
        assert wire.cuts == []
        if broken is None:
            assert s3.asked == []
        else:
            whole, rest = s3.gets(f"s3://digits/{broken}/images.tar.gz")
            assert whole is None
            assert rest is not None

    run("train", broken="train")
    run("evaluate", f"evaluate.checkpoint={checkpoint}", broken="test")
    run("inference", f"inference.checkpoint={checkpoint}", broken="test")
    absent = "dataset.train_data_sources.0.image_dir=s3://nowhere/images.tar.gz"
    size = ("export.input_height=64", "export.input_width=64")
    run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={onnx}", *size, absent)
    run("quantize", f"quantize.model_path={checkpoint}", f"quantize.results_dir={out}/weights", broken="test")
    graph = ("quantize.mode=static_ptq", f"quantize.model_path={onnx}", f"quantize.results_dir={out}/graph")
    run("quantize", *graph, broken="val")
    calibration = "gen_trt_engine.tensorrt.calibration"
    run(
        "gen_trt_engine",
        f"gen_trt_engine.onnx_file={onnx}",
        f"gen_trt_engine.trt_engine={tmp_path}/model.engine",
        "gen_trt_engine.tensorrt.data_type=INT8",
        f'{calibration}.cal_image_dir=["s3://digits/val/images.tar.gz"]',
        f"{calibration}.cal_batch_size=4",
        f"{calibration}.cal_batches=2",
        broken="val",
    )
    assert (tmp_path / "model.engine").stat().st_size > 0
    for kind in ("weights", "graph"):
        report = json.loads((out / kind / "quantize.json").read_text())
        assert set(report["test_mAP50"]) == {"before", "after"}
    for action in ("train", "evaluate", "inference", "export", "weights", "graph", "gen_trt_engine"):
        ended = json.loads((out / action / "status.json").read_text().splitlines()[-1])
        assert ended["status"] == "SUCCESS", action


def test_calibration_images(spec: Path, wire: Wire, s3: Store) -> None:
    described: Any = SimpleNamespace(input={"batch": -1})
    given = ExperimentSpec.from_dict(yaml.safe_load(spec.read_text()))
    found = calibration(given, described, most=4)
    assert found.count > 1
    folder = from_folders(["s3://digits/val/images.tar.gz"], batch_size=1, batches=2, described=described)
    assert folder.count == 2
    assert set(folder.paths) <= set(found.paths)


def test_errors_are_one_line(spec: Path, wire: Wire, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    absent = "dataset.test_data_sources.json_file=s3://digits/absent.json"
    words = ["-e", str(spec), f"results_dir={tmp_path}", absent, f"evaluate.checkpoint={tmp_path}/x.pth"]
    assert direct(["train", *words, "dataset.train_data_sources.0.json_file=s3://digits/absent.json"]) != 0
    said = capfd.readouterr().err
    assert "error (data): `s3://digits/absent.json` must name an object or a folder of some" in said
    assert "Traceback" not in said


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's own files; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        yield Path(name)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_doctor_and_search(spec: Path, wire: Wire, s3: Store, tmp_path: Path, ray_folder: Path) -> None:
    """In processes of their own, as a user starts them: whoever needs the data first downloads it for all."""
    home = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(ray_folder)}

    def run(*words: str) -> str:
        program = f"import sys; from hpo.cli import main; sys.exit(main({list(words)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    make_digits(tmp_path / "larger", size=96, images=96, seed=3)
    s3.put_folder("digits", "", tmp_path / "larger")
    wire.cuts = [200_000]
    root = f"results_dir={tmp_path}/runs"
    assert "0 problems" in run("doctor", "-e", str(spec), root)
    run("train", "-e", str(spec), root, "automl.trials=2", "automl.concurrent=2", "--yes")
    assert wire.cuts == []
    assert [images_of(split, s3) for split in ("train", "val", "test")] == [1, 1, 1]
    assert len(s3.gets("s3://digits/train/images.tar.gz")) == 2
    (run_dir,) = (path.parent for path in (tmp_path / "runs").glob("*/handoff.json"))
    datasets = json.loads((run_dir / "datasets.json").read_text())
    assert [one["source"] for one in datasets] == [
        f"s3://digits/{s}/annotations.json" for s in ("train", "val", "test")
    ]
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert list(ray_folder.rglob("*.log"))
    for path in (*tmp_path.rglob("*"), *ray_folder.rglob("*")):
        assert not path.is_file() or secret not in path.read_bytes(), path
