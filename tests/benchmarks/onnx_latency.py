"""What one image costs on the CPU: our ONNX forms in ONNX Runtime, our PyTorch forward, and transformers' of the same
network. ResNet-50, 300 queries, 6 + 6 layers, 91 classes, one set of random weights for all; they take turns, so that
whatever else the machine does falls on each alike.

python tests/benchmarks/onnx_latency.py --size 640 --threads 2 --rounds 15 [--profile]
"""

import argparse
import collections
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnxruntime as ort
import torch
from training_step import Case, peer

from deploy.export import export_onnx
from deploy.parity import photographs
from model.batch import normalise
from model.checkpoint import KEY, PREFIX, describe
from model.foreign import from_hugging_face
from model.network.detr import build
from model.spec import DatasetSpec, ExperimentSpec, ModelSpec

CLASSES = Case(640, 0, backbone=False, tiny=False).classes
FORMS = ("gridsample", "gather")
Run = Callable[[torch.Tensor], Any]


def moved(network: Any) -> Any:
    """transformers' detector, with what a training would have moved away from zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "backbone" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


def checkpoint(network: Any, folder: Path) -> tuple[torch.nn.Module, Path]:
    """The same weights as our detector, and as a file."""
    spec = ExperimentSpec(model=ModelSpec(pretrained_backbone_path="random"), dataset=DatasetSpec(num_classes=CLASSES))
    model = build(spec.model, CLASSES, pretrained=True).eval()
    model.load_state_dict(from_hugging_face(network.state_dict()), strict=True)
    state = {PREFIX + name: value for name, value in model.state_dict().items()}
    names = {number: str(number) for number in range(1, CLASSES)}
    torch.save({"state_dict": state, KEY: describe(spec, names, 1, {})}, folder / "model.pth")
    return model, folder / "model.pth"


def session(onnx: Path, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


def by_operator(onnx: Path, threads: int, pixels: torch.Tensor, folder: Path) -> list[tuple[str, float]]:
    """Milliseconds of a run in each kind of operator, most first."""
    runner, runs = session(onnx, threads, folder / "profile"), 5
    for _ in range(runs):
        runner.run(None, {"inputs": pixels.numpy()})
    total: dict[str, float] = collections.Counter()
    for event in json.loads(Path(runner.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            total[event["args"]["op_name"]] += event["dur"] / 1000 / runs
    return sorted(total.items(), key=lambda one: -one[1])


class Times(NamedTuple):
    """Milliseconds of each run; the CPU's are those of all threads, which another program's load hardly changes."""

    wall: list[float]
    cpu: list[float]


def take_turns(runs: dict[str, Run], pixels: torch.Tensor, rounds: int) -> dict[str, Times]:
    """Two rounds before do not count."""
    taken = {name: Times([], []) for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(pixels)
            if number >= 2:
                taken[name].wall.append(1000 * (time.perf_counter() - wall))
                taken[name].cpu.append(1000 * (time.process_time() - cpu))
    return taken


@torch.inference_mode()
def compare(asked: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(asked.threads)
    network = moved(peer(Case(asked.size, 0, backbone=False, tiny=False)))
    ours, path = checkpoint(network, folder)
    aug = ExperimentSpec().dataset.augmentation
    images, sides = photographs(asked.size, asked.size)[:1], torch.tensor([[asked.size] * 2])
    pixels, _ = normalise(images, sides, aug.input_mean, aug.input_std)
    runs: dict[str, Run] = {
        "transformers PyTorch": lambda image: network(pixel_values=image).logits,
        "our PyTorch": lambda image: ours(image).final.logits,
    }
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    for form, onnx in files.items():
        export_onnx(path, onnx, height=asked.size, width=asked.size, attention=form)
        runner = session(onnx, asked.threads)
        runs[f"our ONNX, {form}"] = lambda image, runner=runner: torch.from_numpy(
            runner.run(["pred_logits"], {"inputs": image.numpy()})[0]
        )
    reference = runs["transformers PyTorch"](pixels)
    print(f"torch {torch.__version__}, transformers {version('transformers')}, onnxruntime {ort.__version__}")
    print(f"{asked.size} x {asked.size}, batch 1, {asked.threads} threads, median of {asked.rounds} (of gridsample's)")
    taken = take_turns(runs, pixels, asked.rounds)
    first = taken["our ONNX, gridsample"]
    for name, run in runs.items():
        told = [
            f"{kind} {statistics.median(mine):8.1f} ms ({statistics.median(mine) / statistics.median(its):5.2f})"
            for kind, mine, its in zip(("wall", "CPU"), taken[name], first, strict=True)
        ]
        apart = float((run(pixels) - reference).abs().max())
        print(f"{name:22s} {'; '.join(told)}; best {min(taken[name].wall):8.1f} ms; logits within {apart:.1e}")
    for form, onnx in files.items() if asked.profile else ():
        print(form, *(f"{name} {spent:.1f}" for name, spent in by_operator(onnx, asked.threads, pixels, folder)[:12]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="milliseconds by operator, of each ONNX form")
    with tempfile.TemporaryDirectory() as folder:
        compare(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
