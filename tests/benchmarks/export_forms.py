"""The R50 detector at 640 x 640 with 91 classes in every form of attention: written, compared with PyTorch, built.

python tests/benchmarks/export_forms.py --out runs/forms

Weights are fresh and made lively, so that queries differ as after a training. The plugin form is compared with its
plugin's documented meaning in its place. What TensorRT says of a form that it cannot take is printed.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' fixtures
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnx as onnx_format
from conftest import save_checkpoint

from deploy import sidecar, trt
from deploy.engine import build_engine
from deploy.export import export_onnx
from model.network.attention import SAMPLERS
from model.spec import DatasetSpec, ExperimentSpec, ModelSpec

SIDE = 640
TOLD = ("GridSample", "Gather", "MultiscaleDeformableAttnPlugin_TRT")
"""Operators whose number tells a form."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, ONNX files and engines")
    parser.add_argument("--backbone", default="resnet_50")
    parser.add_argument("--forms", nargs="+", choices=tuple(SAMPLERS), default=tuple(SAMPLERS))
    parser.add_argument("--batch", type=int, default=4, help="largest batch of the engines")
    parser.add_argument("--workspace", type=int, default=4096, help="scratch memory of the builder, MB")
    parser.add_argument("--side", type=int, default=SIDE, help="height and width of the input, pixels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    spec = ExperimentSpec(model=ModelSpec(backbone=given.backbone), dataset=DatasetSpec(num_classes=91))
    checkpoint = save_checkpoint(spec, given.out / "fresh.pth")
    rows = []
    for name in given.forms:
        rows.append(form(name, checkpoint, given))
        print(json.dumps(rows[-1]), flush=True)
    print("\n| form | nodes | " + " | ".join(TOLD) + " | MB | export s | logits | boxes | engine MB | build s |")
    print("|---" * (8 + len(TOLD)) + "|")
    for row in rows:
        counts = " | ".join(str(row["operators"][name]) for name in TOLD)
        engine = f"{row['engine_mb']:.1f} | {row['build_s']:.1f}" if "engine_mb" in row else "refused | "
        print(
            f"| {row['form']} | {row['nodes']} | {counts} | {row['mb']:.1f} | {row['export_s']:.1f} | "
            f"{row['logits']:.1e} | {row['boxes']:.1e} | {engine} |"
        )


def form(name: str, checkpoint: Path, given: argparse.Namespace) -> dict[str, Any]:
    onnx = given.out / f"{name}.onnx"
    start = time.perf_counter()
    export_onnx(checkpoint, onnx, height=given.side, width=given.side, attention=name, overwrite=True)
    seconds = time.perf_counter() - start
    operators = Counter(node.op_type for node in onnx_format.load(onnx).graph.node)
    parity = sidecar.require_onnx(onnx).parity
    row: dict[str, Any] = {
        "form": name,
        "nodes": operators.total(),
        "operators": {each: operators[each] for each in TOLD},
        "mb": onnx.stat().st_size / 1e6,
        "export_s": seconds,
        "logits": parity["logits"],
        "boxes": parity["boxes"],
    }
    try:
        report = build_engine(onnx, given.out / f"{name}.engine", max_batch=given.batch, workspace_mb=given.workspace)
    except (ValueError, trt.TensorRTMissing) as error:
        return {**row, "refused": str(error)}
    return {
        **row,
        "engine_mb": report.bytes / 1e6,
        "build_s": report.seconds,
        "library": f"{report.library} {report.version}",
    }


if __name__ == "__main__":
    main()
