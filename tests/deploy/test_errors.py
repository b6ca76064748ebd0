"""What goes wrong for users of export, gen_trt_engine, and of evaluate and inference on exported files.

One row for each: the command as a user calls it, its exit code, and what it prints: one paragraph, with the rule or the
value and the fix. status.json ends with FAILURE, and beside the spec that was asked for no other file is left. 2: a
mistake of the user; 1: the machine lacks something.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from deploy import sidecar, trt
from deploy.export import export_onnx
from hpo.cli import main
from model.checkpoint import sha256
from model.spec import Source


class User:
    """Somebody with a detector, its ONNX file and an engine of it in a folder, a spec file and a terminal."""

    def __init__(self, folder: Path, checkpoint: Path, onnx: Path, pictures: Source) -> None:
        self.folder, self.checkpoint, self.pictures = folder, checkpoint, pictures
        self.onnx = folder / "files" / "model.onnx"
        self.onnx.parent.mkdir()
        shutil.copy(onnx, self.onnx)
        shutil.copy(sidecar.path_of(onnx), sidecar.path_of(self.onnx))
        self.results = folder / "results"

    def engine(self, **said: Any) -> Path:
        """Nothing that TensorRT could load: all these errors come before."""
        library = next((name for name in trt.NAMES if isinstance(trt._imported(name), trt.Library)), "tensorrt_rtx")
        found = trt._imported(library)
        path = self.folder / "files" / "model.engine"
        path.write_bytes(b"plan")
        described = sidecar.EngineSidecar(
            format_version=sidecar.FORMAT_VERSION,
            engine_sha256=sha256(path),
            onnx=self.onnx.name,
            onnx_sha256=sha256(self.onnx),
            library=library,
            library_version=found.version if isinstance(found, trt.Library) else "1.0",
            precision="FP32",
            tensors={"FLOAT": 9},
            layers={"quantize": 0, "dequantize": 0, "half": 0},
            inspected=None,
            tf32=False,
            shapes={name: (batch, 3, 64, 64) for name, batch in (("min", 1), ("opt", 2), ("max", 4))},
            workspace_mb=64,
            target="a GPU",
            compared="not compared",
            model=json.loads(sidecar.path_of(self.onnx).read_text()),
        )
        sidecar.path_of(path).write_text(json.dumps(dataclasses.asdict(dataclasses.replace(described, **said))))
        return path

    def spec(self) -> Path:
        data = {"image_dir": self.pictures.image_dir, "json_file": self.pictures.json_file}
        path = self.folder / "spec.yaml"
        path.write_text(yaml.safe_dump({"dataset": {"test_data_sources": data}, "results_dir": str(self.results)}))
        return path

    def export(self, *words: str) -> list[str]:
        return [
            "export",
            f"export.checkpoint={self.checkpoint}",
            "export.input_width=64",
            "export.input_height=64",
            *words,
        ]

    def build(self, *words: str, onnx: Path | None = None) -> list[str]:
        engine = self.folder / "built" / "model.engine"
        files = (f"onnx_file={onnx or self.onnx}", f"trt_engine={engine}")
        return ["gen_trt_engine", *(f"gen_trt_engine.{word}" for word in (*files, *words))]

    def evaluate(self, file: Path, *words: str) -> list[str]:
        return ["evaluate", f"evaluate.checkpoint={file}", *words]


class Row(NamedTuple):
    words: str
    """A pattern of what is printed."""
    command: Callable[[User], list[str]]
    code: int = 2
    cause: str | None = None
    """Its class; None: whatever it is."""


ROWS: dict[str, Row] = {}


def row(name: str, words: str, code: int = 2, cause: str | None = None) -> Callable[..., None]:
    def add(command: Callable[[User], list[str]]) -> None:
        assert name not in ROWS
        ROWS[name] = Row(words, command, code, cause)

    return add


CALIBRATION = "tensorrt.calibration"
INT8 = ("tensorrt.data_type=INT8", f"{CALIBRATION}.cal_batches=2")

# --- export ---

row("the target exists", r"`export.onnx_file` must not exist yet.*export.overwrite=true")(
    lambda user: user.export(f"export.onnx_file={user.onnx}")
)
row("no checkpoint", "`export.checkpoint` must name a file, but is unset")(
    lambda user: ["export", f"export.onnx_file={user.folder}/new.onnx"]
)
row("no such checkpoint", "no file.*nowhere.pth", cause="run")(
    lambda user: ["export", "export.checkpoint=nowhere.pth", f"export.onnx_file={user.folder}/new.onnx"]
)
row("an encrypted target", r"must end in .onnx, but is `.*etlt`")(
    lambda user: user.export(f"export.onnx_file={user.folder}/new.etlt")
)
row("an opset that there is not", "`export.opset_version` must be 16 to 20, but is 9")(
    lambda user: user.export(f"export.onnx_file={user.folder}/new.onnx", "export.opset_version=9")
)

# --- gen_trt_engine ---

row("no ONNX file named", "`gen_trt_engine.onnx_file` must name a file, but is unset")(
    lambda user: ["gen_trt_engine", f"gen_trt_engine.trt_engine={user.folder}/new.engine"]
)
row("no such ONNX file", "an ONNX file must exist, but there is no file `.*absent.onnx`")(
    lambda user: user.build(onnx=user.folder / "absent.onnx")
)
row(
    "an engine in the ONNX file's place", r"`gen_trt_engine.trt_engine` must end in one of .engine, .* but is `.*onnx`"
)(lambda user: user.build(f"trt_engine={user.onnx}"))
row("a precision that there is not", "gen_trt_engine.tensorrt.data_type.*FP8")(
    lambda user: user.build("tensorrt.data_type=FP8")
)
row("batches out of order", "they are 3, 1 and 1; put them in order")(
    lambda user: user.build("tensorrt.min_batch_size=3")
)
row("a batch that the graph does not have", r"`gen_trt_engine.batch_size` must be .* but is 5 and .* has an open one")(
    lambda user: user.build("batch_size=5")
)
row("no room to build", "workspace_size=0 MB")(lambda user: user.build("tensorrt.workspace_size=0"))
row("another number of classes", r"`dataset.num_classes` must be that of the ONNX file, but is 9 and .* has 4")(
    lambda user: [*user.build(), "dataset.num_classes=9"]
)
row("another architecture", r"`model.num_queries` must be that of the ONNX file, but is 300 and .* has 100")(
    lambda user: [*user.build(), "model.num_queries=300"]
)
row("another input size", r"`export.input_width` must be that of the ONNX file, but is 640 and .* has 64")(
    lambda user: [*user.build(), "export.input_width=640"]
)
row("a timing cache that is a folder", "`gen_trt_engine.timing_cache` must name a file")(
    lambda user: user.build(f"timing_cache={user.folder}")
)
row("INT8 without images", f"`gen_trt_engine.{CALIBRATION}.cal_image_dir` must name folders of images")(
    lambda user: user.build(*INT8)
)
row("exceptions from nothing", "layers_precision` can only be honoured where an FP32 file is converted")(
    lambda user: user.build("tensorrt.layers_precision=['a:fp16']")
)


@row(
    "a plugin that there is not",
    r"able to parse .*plugin.onnx`.* Export it again with export\.attention=gather, .*has\.$",
)
def _(user: User) -> list[str]:
    onnx = user.folder / "files" / "plugin.onnx"
    export_onnx(user.checkpoint, onnx, height=64, width=64, attention="plugin")
    return user.build(onnx=onnx)


@row("a truncated ONNX file", r"able to parse .*cut.onnx` has 1 problems.*Export it again")
def _(user: User) -> list[str]:
    cut = user.folder / "files" / "cut.onnx"
    cut.write_bytes(user.onnx.read_bytes()[:100_000])
    return user.build(onnx=cut)


@row("an ONNX file of the same name", "must describe `model.onnx`, but was written for another file of that name")
def _(user: User) -> list[str]:
    user.onnx.write_bytes(user.onnx.read_bytes() + b"\0")
    return user.build()


@row(
    "a folder of images that is not there", "cal_image_dir` must name folders of images, but `.*absent` does not exist"
)
def _(user: User) -> list[str]:
    return user.build(*INT8, f"{CALIBRATION}.cal_image_dir=[{user.folder}/absent]")


@row("an empty folder of images", "cal_image_dir` must name folders of images, but `.*files` holds none")
def _(user: User) -> list[str]:
    return user.build(*INT8, f"{CALIBRATION}.cal_image_dir=[{user.folder}/files]")


@row("too few images", r"cal_batch_size \* cal_batches images, but there are 7 and 1 \* 50 = 50")
def _(user: User) -> list[str]:
    images = f"{CALIBRATION}.cal_image_dir=[{user.pictures.image_dir}]"
    return user.build(*INT8, images, f"{CALIBRATION}.cal_batches=50")


@row(
    "another number of classes for INT8", r"`dataset.num_classes` must be that of the ONNX file, but is 9 and .* has 4"
)
def _(user: User) -> list[str]:
    return [*user.build(*INT8, f"{CALIBRATION}.cal_image_dir=[{user.pictures.image_dir}]"), "dataset.num_classes=9"]


@row("a stale calibration cache", "cal_cache_file|calibration cache", cause="run")
def _(user: User) -> list[str]:
    cache = user.folder / "files" / "cache.json"
    said = {"model_sha256": "0", "data_sha256": "0", "images": 2, "method": "minmax"}
    cache.write_text(json.dumps({"format_version": 1, **said, "ranges": {}}))
    images = f"{CALIBRATION}.cal_image_dir=[{user.pictures.image_dir}]"
    return user.build(*INT8, images, f"{CALIBRATION}.cal_cache_file={cache}")


@row("no TensorRT", r"pip install 'ddetr-automl\[trt-rtx\]'", code=1, cause="install")
def _(user: User) -> list[str]:
    return user.build()


# --- evaluate and inference ---

row("no such engine", "an engine must exist, but there is no file `.*absent.engine`")(
    lambda user: user.evaluate(user.folder / "absent.engine")
)
row("no such file by TAO's key", "an engine must exist, but there is no file `.*absent.engine`")(
    lambda user: ["evaluate", f"evaluate.trt_engine={user.folder}/absent.engine"]
)
row("a file of no kind", r"`evaluate.checkpoint` must end in one of .pth, .* but is .*model.uff")(
    lambda user: user.evaluate(user.folder / "model.uff")
)
row("a batch outside the profile", r"`evaluate.batch_size` must lie in the engine's profile, but is 9 and .* 1 to 4")(
    lambda user: user.evaluate(user.engine(), "evaluate.batch_size=9")
)
row(
    "inference with a batch outside", r"`inference.batch_size` must lie in the engine's profile, but is 9 and .* 1 to 4"
)(lambda user: ["inference", f"inference.trt_engine={user.engine()}", "inference.batch_size=9"])
row(
    "an engine of another TensorRT", r"built by tensorrt\S* 0\.1 and \S+ is installed; build it again", cause="install"
)(lambda user: user.evaluate(user.engine(library_version="0.1")))
row(
    "an engine of other classes",
    "`dataset.num_classes` must be .* the spec says 9 and .*model.engine says 4",
    cause="run",
)(lambda user: user.evaluate(user.engine(), "dataset.num_classes=9"))
row("an engine of another size", "`evaluate.input_height` must be that of the file, but is 96 and .* takes 64")(
    lambda user: user.evaluate(user.engine(), "evaluate.input_height=96", "evaluate.input_width=96")
)
row("an ONNX file of other classes", "`dataset.num_classes` must be .* says 9 and .*model.onnx says 4", cause="run")(
    lambda user: user.evaluate(user.onnx, "dataset.num_classes=9")
)
row("an ONNX file of another size", "`evaluate.input_height` must be that of the file, but is 96 and .* takes 64")(
    lambda user: user.evaluate(user.onnx, "evaluate.input_height=96", "evaluate.input_width=96")
)


@row("an engine without its description", r"model.engine` must come with `model.engine.json`")
def _(user: User) -> list[str]:
    engine = user.engine()
    sidecar.path_of(engine).unlink()
    return user.evaluate(engine)


@row("a cut engine", "must describe `model.engine`, but was written for another file")
def _(user: User) -> list[str]:
    engine = user.engine()
    engine.write_bytes(b"pl")
    return user.evaluate(engine)


@row("an engine that knows no classes", "must know its classes and preprocessing")
def _(user: User) -> list[str]:
    return user.evaluate(user.engine(model=None))


@row("a cut ONNX file", "cannot read `.*model.onnx`.*export it again")
def _(user: User) -> list[str]:
    user.onnx.write_bytes(user.onnx.read_bytes()[:100_000])
    said = json.loads(sidecar.path_of(user.onnx).read_text())
    sidecar.path_of(user.onnx).write_text(json.dumps({**said, "onnx_sha256": sha256(user.onnx)}))
    return user.evaluate(user.onnx)


@row("no GPU", "a GPU is needed to run `.*model.engine`, but PyTorch .* finds none here", code=1, cause="run")
def _(user: User) -> list[str]:
    return user.evaluate(user.engine())


NEEDS_TENSORRT = {
    "another number of classes for INT8", "a plugin that there is not",
    "a batch that the graph does not have", "no room to build", "another number of classes", "another architecture",
    "another input size", "a truncated ONNX file", "INT8 without images", "a folder of images that is not there",
    "an empty folder of images", "too few images", "a stale calibration cache", "no GPU",
    "an engine of another TensorRT", "exceptions from nothing", "an ONNX file of the same name", "no such ONNX file",
}  # fmt: skip
"""Without one, its absence is told first."""


@pytest.mark.parametrize("name", sorted(ROWS))
def test_one_clear_error_and_nothing_left(
    name: str,
    checkpoint: Path,
    onnx: Path,
    pictures: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "no TensorRT":
        monkeypatch.setattr(trt, "import_module", without_tensorrt)
    elif name in NEEDS_TENSORRT and not any(isinstance(trt._imported(each), trt.Library) for each in trt.NAMES):
        pytest.skip("neither tensorrt nor tensorrt_rtx can be imported")
    if name == "a plugin that there is not" and trt.load().name != "tensorrt_rtx":
        pytest.skip("this TensorRT has the plugin")
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    user = User(tmp_path, checkpoint, onnx, pictures)
    action, *words = ROWS[name].command(user)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()

    code = main([action, "-e", str(user.spec()), *words])

    printed = capsys.readouterr().err
    found = re.findall(r"^error \((\w+)\): (.*)$", printed, re.MULTILINE)
    assert len(found) == 1, printed
    (cause, text) = found[0]
    assert re.search(ROWS[name].words, text), text
    assert code == ROWS[name].code
    assert ROWS[name].cause in (None, cause)
    assert "Traceback" not in printed
    statuses = list(user.results.rglob("status.json"))
    told = {path.with_name(name) for path in statuses for name in ("status.json", "experiment.yaml")}
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path not in told}
    assert left.keys() - {user.spec()} == before.keys()
    assert all(left[path] == content for path, content in before.items())
    assert not (tmp_path / "built").exists()
    for path in statuses:
        last = json.loads(path.read_text().splitlines()[-1])
        assert last["status"] == "FAILURE"
        assert text in last["message"]
    reads_the_spec = name == "a precision that there is not"  # which is refused before there is a folder
    assert action == "export" or reads_the_spec or len(statuses) == 1


def without_tensorrt(name: str) -> ModuleType:
    if name in trt.NAMES:
        raise ImportError(f"No module named '{name}'")
    return import_module(name)
