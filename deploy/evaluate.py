"""Score an exported file with `model`'s own post-processing and metric. Knows which size and which batches the file
takes; no metric of its own, so that a number here differs from PyTorch's only by what the file computes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deploy import sidecar
from deploy.latency import of_graph
from deploy.runtime import GraphPredictor, OnnxPredictor, graph_detector, graph_input, open_graph
from model.adopt import RESUMABLE, adopt
from model.batch import ImageBatch
from model.data.coco import CocoIndex
from model.data.datamodule import CocoDataModule
from model.errors import SpecError
from model.evaluate import Detector, Opened, Split, evaluate_detector, open_checkpoint, record
from model.latency import Latency
from model.metrics import CocoEvaluator, CocoResult
from model.spec import ENGINES, ExperimentSpec
from model.status import StatusLog

Action = Literal["evaluate", "inference"]

EXPORTED = (".onnx", *ENGINES)


class Exported(NamedTuple):
    """An ONNX file or an engine, ready to run."""

    path: Path
    graph: GraphPredictor
    spec: ExperimentSpec
    """The file's own, with the user's keys over it."""
    classes: Mapping[int, str]
    """Category id to name."""

    def detector(self) -> Detector:
        return graph_detector(self.graph, self.spec)

    def score(self, *, split: Split = "test", cpus: int = 1) -> tuple[CocoResult, CocoEvaluator]:
        """Every image is resized to the graph's size and counts, whatever is left for the last batch."""
        return score(self.detector(), self.spec, self.graph.size, split=split, cpus=cpus)

    def latency(self, *, split: Split = "test") -> Latency:
        """At `evaluate.latency_batch_sizes`, on the first images that are scored, as the graph sees them then. ONNX
        Runtime runs the file as it does by itself: a lowered graph in its own kernels, where scoring computes what the
        file says."""
        graph = self.graph
        if isinstance(graph, OnnxPredictor):
            graph = OnnxPredictor(self.path, threads=graph.threads or None, exact=False)
        images = next(iter(images_of(self.spec, graph.size, split=split, cpus=1)[1]))
        return of_graph(graph, graph_input(graph, images, self.spec), self.spec.evaluate.latency_batch_sizes)


def open_exported(path: Path, given: Mapping[str, Any], action: Action, *, threads: int | None = None) -> Exported:
    """`path` under `given`, the user's nested spec. What spec and file contradict each other in is refused before the
    file is loaded. threads: of ONNX Runtime."""
    batches: tuple[int, int] | None = None
    if path.suffix in ENGINES:
        engine = sidecar.require_engine(path)
        described, batches = sidecar.engine_model(path, engine), engine.batch_range
    else:
        described = sidecar.require_onnx(path)
    _check_size(path, described.size, given, action)
    itself = described.as_checkpoint(path)
    spec = _batched(_sized(adopt(itself, given), described.size, action), path, batches, action)
    ids = getattr(spec, action).gpu_ids
    graph = open_graph(path, gpu_id=ids[0] if ids else 0, threads=threads)
    return Exported(path, graph, spec, itself.classes)


def open_file(path: Path, given: Mapping[str, Any], *, threads: int | None = None) -> Exported | Opened:
    """A checkpoint, an ONNX file or an engine, to be evaluated under `given`, the user's nested spec. NoGpuError for an
    engine without a GPU. threads: of ONNX Runtime."""
    if path.suffix not in EXPORTED:
        return open_checkpoint(path, given)
    return open_exported(path, given, "evaluate", threads=threads)


def evaluate_file(
    path: Path, given: Mapping[str, Any], *, split: Split = "test", cpus: int = 1, threads: int | None = None
) -> tuple[CocoResult, CocoEvaluator]:
    """The score of a checkpoint, an ONNX file or an engine on a split of the data that `given` names."""
    return open_file(path, given, threads=threads).score(split=split, cpus=cpus)


class Evaluated(NamedTuple):
    result: CocoResult
    latency: Latency | None
    """None where `evaluate.latency_batch_sizes` is empty."""


def evaluate_action(given: Mapping[str, Any], out: Path, *, cpus: int = 1) -> Evaluated:
    """The `evaluate` action, whatever the file that is named. `out` gets what `model.evaluate.record` writes, and
    latency.json."""
    status = StatusLog(out)
    with status.action("evaluate"):
        path = named_file(given, "evaluate")
        opened = open_file(path, given)
        result, evaluator = opened.score(cpus=cpus)
        record(status, out, result, evaluator)
        if not opened.spec.evaluate.latency_batch_sizes:
            return Evaluated(result, None)
        found = opened.latency()
        found.write(out)
        first = found.rows[0]
        status.write("RUNNING", f"Median latency {first.median_ms:.2f} ms at batch {first.batch}, {found.where()}.")
    return Evaluated(result, found)


def score(
    detect: Detector, spec: ExperimentSpec, size: tuple[int, int], *, split: Split = "test", cpus: int = 1
) -> tuple[CocoResult, CocoEvaluator]:
    """Scores any detector as exported files are scored: images resized to exactly `size` (height, width), unpadded."""
    index, batches = images_of(spec, size, split=split, cpus=cpus)
    return evaluate_detector(detect, batches, index, spec)


def images_of(
    spec: ExperimentSpec, size: tuple[int, int], *, split: Split = "test", cpus: int = 1
) -> tuple[CocoIndex, Iterable[ImageBatch]]:
    """A split's index and its batches, every image once and in order, resized to `size` (height, width)."""
    data = CocoDataModule(spec, cpus=cpus)
    index = data.test_index if split == "test" else data.val_index
    batch = spec.evaluate.batch_size if spec.evaluate.batch_size > 0 else spec.dataset.batch_size
    return index, data.eval_loader(index, batch, size)


def named_file(given: Mapping[str, Any], action: Action) -> Path:
    """What the user wants to run: `<action>.trt_engine`, else `<action>.checkpoint`."""
    section = given.get(action) or {}
    for key, suffixes in (("trt_engine", ENGINES), ("checkpoint", (*RESUMABLE, *EXPORTED))):
        named = section.get(key)
        if named and named != "???":
            if Path(named).suffix not in suffixes:
                raise SpecError([
                    f"`{action}.{key}` must end in one of {', '.join(suffixes)}, but is {named}; name a file that "
                    "`ddetr train`, `ddetr export` or `ddetr gen_trt_engine` wrote."
                ])  # fmt: skip
            return Path(named)
    raise SpecError([f"`{action}.checkpoint` must name a checkpoint, but is unset; set it, or give --from RUN."])


def _check_size(path: Path, size: tuple[int, int], given: Mapping[str, Any], action: Action) -> None:
    for name, own in zip(("input_height", "input_width"), size, strict=True):
        asked = (given.get(action) or {}).get(name)
        if asked is not None and asked != own:
            problem = f"`{action}.{name}` must be that of the file, but is {asked} and `{path}` takes {own}; "
            raise SpecError([problem + "leave it out, or export at the size wanted."])


def _sized(spec: ExperimentSpec, size: tuple[int, int], action: Action) -> ExperimentSpec:
    """Every image exactly as large as the graph wants it, with nothing around it."""
    unpadded = replace(spec.dataset.augmentation, fixed_padding=False, pad_size_divisor=None)
    section = replace(getattr(spec, action), input_height=size[0], input_width=size[1])
    return replace(spec, dataset=replace(spec.dataset, augmentation=unpadded), **{action: section})


def _batched(spec: ExperimentSpec, path: Path, batches: tuple[int, int] | None, action: Action) -> ExperimentSpec:
    """Batches inside an engine's profile: the user's own, or the dataset's as far as it goes."""
    if batches is None:
        return spec
    section, (low, high) = getattr(spec, action), batches
    if section.batch_size > 0 and not low <= section.batch_size <= high:
        raise SpecError([
            f"`{action}.batch_size` must lie in the engine's profile, but is {section.batch_size} and `{path}` takes "
            f"{low} to {high}; change it, or build with another gen_trt_engine.tensorrt.max_batch_size."
        ])  # fmt: skip
    wanted = section.batch_size if section.batch_size > 0 else min(max(spec.dataset.batch_size, low), high)
    return replace(spec, **{action: replace(section, batch_size=wanted)})
