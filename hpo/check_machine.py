"""What the doctor looks at on this machine: GPUs, memory, disks, TensorRT, and a few real steps of training."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.files import existing
from hpo.review import checkpoint_bytes, clock, cpu_cores, size
from hpo.spec import Request
from model.errors import SpecError
from model.findings import Finding, of_error
from model.spec import ExperimentSpec

if TYPE_CHECKING:
    from hpo.sweep_spec import SweepSpec

RECOMMENDED_GPUS = 4
GPU_BYTES = 16 * 10**9
"""Of each: what ResNet-50 at full size and a batch of 4 is comfortable in. A card of 16 GB counts a little less than
16 GiB, and a little more than this."""
BATCH = 4
"""Images of a step that should fit at once."""
LEAST_MEMORY = 4 << 30
"""Of the machine, bytes."""
LEAST_SHARED = 1 << 30
"""Of /dev/shm, through which data workers and Ray hand on their arrays."""
SPARE = 1 << 30
"""Free bytes below which a folder is all but full."""
LONG_DAYS = 1.0
"""Of one training, from which it is worth a word."""


def hardware(spec: ExperimentSpec, sweep: "SweepSpec") -> Iterator[Finding]:
    """GPUs by number and memory, cores, memory, and whether a trial gets what the spec asks for."""
    import torch

    from hpo.cluster import Node, share
    from model import launch

    count = torch.cuda.device_count()
    if not count:
        yield _no_gpu(torch.__version__)
    else:
        yield from _gpus()
    yield from _memory()
    try:
        launch.place(spec.train)
        one = share([Node(id="", name="", cpus=cpu_cores(), gpus=count)], sweep, gpus_wanted=spec.train.num_gpus)
    except ValueError as error:
        for problem in getattr(error, "problems", [str(error)]):
            yield of_error("spec", problem)
        return
    each = f"{one.cpus} CPU core{'s' if one.cpus > 1 else ''}" + (f" and {one.gpus:g} GPU" if one.gpus else "")
    yield Finding("cluster", "ok", f"{cpu_cores()} CPU cores: {one.concurrent} trials at a time, each with {each}")


def _no_gpu(version: str) -> Finding:
    if shutil.which("nvidia-smi"):
        return Finding(
            "cluster", "warning", f"there is a driver for NVIDIA GPUs here, but torch {version} sees no GPU",
            "install a CUDA build of torch that fits the driver (nvidia-smi names its CUDA version), and look at "
            "CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return Finding(
        "cluster", "note", "no GPU (real work needs 1 at least, 4 are recommended, 16 GB each): training runs on the "
        "CPU, just as well and tens of times slower",
        "for ResNet-50 at full size use a machine with GPUs; here keep networks and images small, as "
        "experiments/quickstart.yaml does",
    )  # fmt: skip


def _gpus() -> Iterator[Finding]:
    import torch

    cards = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    names = ", ".join(f"{card.name} ({size(card.total_memory)})" for card in cards)
    number = f"{len(cards)} GPU{'s' if len(cards) > 1 else ''}"
    if len(cards) < RECOMMENDED_GPUS:
        yield Finding(
            "cluster", "note", f"{number}, and {RECOMMENDED_GPUS} are recommended: {names}",
            "nothing, or use more: a search runs a trial on each",
        )  # fmt: skip
    else:
        yield Finding("cluster", "ok", f"{number}: {names}")
    small = [
        f"GPU {place} has {size(card.total_memory)}"
        for place, card in enumerate(cards)
        if card.total_memory < GPU_BYTES
    ]
    if small:
        yield Finding(
            "memory", "warning", f"a GPU should have 16 GB, but {', '.join(small)}",
            "lower dataset.augmentation sizes or train.per_forward, keep train.activation_checkpoint=true, or use "
            "train.precision=bf16",
        )  # fmt: skip


def _memory() -> Iterator[Finding]:
    there = memory_bytes()
    if there is not None and there < LEAST_MEMORY:
        yield Finding(
            "memory", "warning", f"{size(there)} of memory for trials, data workers and Ray together",
            "give the machine or its container 4 GB or more, or set automl.concurrent=1 and dataset.workers=1",
        )  # fmt: skip
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).total if shared.is_dir() else LEAST_SHARED
    if room < LEAST_SHARED:
        yield Finding(
            "memory", "warning", f"/dev/shm holds {size(room)}, through which data workers and Ray hand on arrays: "
            "they die when it is full",
            "start the container with --shm-size=8g, or set dataset.workers=1",
        )  # fmt: skip


def memory_bytes() -> int | None:
    """Of the machine, or of the container around this process (cgroup v2)."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return machine


def tensorrt() -> Iterator[Finding]:
    """Which library would build engines."""
    from deploy.trt import NAMES, TensorRTMissing, load

    try:
        library = load()
    except TensorRTMissing:
        yield Finding(
            "install", "note", f"none of {', '.join(NAMES)} can be imported: a run hands over ONNX and no engine",
            "pip install 'ddetr-automl[trt]' (data-centre GPUs) or 'ddetr-automl[trt-rtx]' (GeForce and RTX GPUs; it "
            "builds without a GPU)",
        )  # fmt: skip
        return
    which = "TensorRT" if library.name == "tensorrt" else "TensorRT-RTX, for GeForce and RTX GPUs only"
    yield Finding("install", "ok", f"{library.name} {library.version} ({which})")


def disk(spec: ExperimentSpec, sweep: "SweepSpec | None", root: Path, *, network: bool) -> Iterator[Finding]:
    """Whether runs, cache and Ray's own files have folders that can be written and are large enough. network: whether
    the spec is sound enough to count the weights."""
    from model.data.cache import cache_root

    needed = None
    if network:
        trials = sweep.trials if sweep else 1
        needed = checkpoint_bytes(_weights(spec), spec, trials, max(1, (sweep and sweep.concurrent) or 1))
    what = f"checkpoints of {sweep.trials} trials" if sweep else "checkpoints"
    yield from _folder("results_dir", root, needed, what, "set results_dir to another disk")
    yield from _folder(
        "the cache of decoded images",
        cache_root(),
        None,
        "",
        "set DDETR_CACHE to a folder of another disk",
        lenient=True,
    )
    ray = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    yield from _folder("Ray's own files", ray, None, "", "set RAY_TMPDIR to a short path on another disk")


def _weights(spec: ExperimentSpec) -> int:
    import torch

    from model.network.detr import build

    with torch.device("meta"):
        model = build(spec.model, spec.dataset.num_classes, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _folder(
    name: str, folder: Path, needed: int | None, what: str, change: str, *, lenient: bool = False
) -> Iterator[Finding]:
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding(
            "disk", "warning" if lenient else "problem",
            f"{name}: {folder} cannot be written ({error.strerror or error})", change,
        )  # fmt: skip
        return
    usage = shutil.disk_usage(there)
    if needed is not None and needed >= usage.free:
        yield Finding(
            "disk", "problem", f"{name}: up to {size(needed)} of {what} in {folder}, but {size(usage.free)} are free",
            f"free some, {change}, or lower automl.trials or train.keep_checkpoints",
        )  # fmt: skip
    elif usage.free < SPARE:
        yield Finding("disk", "warning", f"{name}: {folder} has {size(usage.free)} free", f"free some, or {change}")
    else:
        need = f", up to {size(needed)} of {what}" if needed is not None else ""
        yield Finding("disk", "ok", f"{name}: {folder} can be written, {size(usage.free)} free{need}")


def memory(request: Request) -> Iterator[Finding]:
    """A few steps of the real training in a process of their own."""
    import torch

    from model import errors
    from model.probe import ProbeError, measure

    spec, gpus = request.spec, torch.cuda.device_count()
    share = min(1.0, request.sweep.gpus_per_trial or 1.0)
    try:
        if not request.states_num_classes:
            request = request.with_data()
            spec = request.spec
        cost = measure(
            spec, cpus=cpu_cores(), gpu_share=share, most=max(BATCH, spec.dataset.batch_size) if gpus else None
        )
    except SpecError as error:
        yield from (of_error("spec", problem) for problem in error.problems)
        return
    except errors.OutOfMemory as error:
        yield of_error("memory", error)
        return
    except ProbeError as error:
        yield Finding(
            "memory", "warning", f"a few steps of training could not be measured: {error}",
            "free the machine of other work, or choose smaller images or a smaller network if it is slow; `ddetr train "
            "--no-automl` with train.num_epochs=1 tells more",
        )  # fmt: skip
        return
    except (errors.DataError, errors.CheckpointError, errors.NonFiniteLoss) as error:
        yield of_error(error.kind, error)
        return
    asked = min(spec.train.per_forward or spec.dataset.batch_size, spec.dataset.batch_size)
    if cost.per_forward < asked:
        yield Finding(
            "memory", "warning", f"{asked} images at once do not fit, {cost.per_forward} do: a step is taken in parts",
            f"nothing, or set train.per_forward={cost.per_forward}, or smaller images",
        )  # fmt: skip
    elif gpus and (cost.most_per_forward or 0) < min(BATCH, spec.dataset.batch_size):
        yield Finding(
            "memory", "warning", f"{BATCH} images at once should fit, but {cost.most_per_forward or 0} do",
            "lower dataset.augmentation sizes, or use train.precision=bf16",
        )  # fmt: skip
    peak = f", at most {size(cost.peak_bytes)} of it in use" if cost.peak_bytes else ""
    fit = f"{asked} images a step fit on {cost.device}{peak}; " if cost.per_forward >= asked else ""
    epoch = cost.epoch_seconds(spec.train.validation_interval)
    whole = spec.train.num_epochs * epoch
    text = f"{fit}an epoch takes about {clock(epoch)}, a training of {spec.train.num_epochs} about {clock(whole)}"
    if whole > LONG_DAYS * 86400:
        yield Finding("memory", "warning", text, "use GPUs, fewer epochs, smaller images or a smaller network")
    else:
        yield Finding("memory", "ok", text)
