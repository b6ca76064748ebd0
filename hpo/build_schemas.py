"""Writes `schemas/*.schema.json`, the templates and the manifest from the spec classes: `make schemas`.

The only place that brings `schemas.build` and the classes of `model` and `deploy` together.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.spec import ExportSpec, GenTrtEngineSpec, QuantizeSpec
from model.metrics import VAL_MAP50
from model.spec import ExperimentSpec, InferSource, Source
from schemas.build import build_schema, to_json, to_template
from schemas.fields import field

ACTIONS = ("train", "evaluate", "inference", "export", "gen_trt_engine", "quantize")
NETWORK = {"model": "deformable-detr", "network_arch": "deformable_detr", "schema_version": 1}
SHARED = ("dataset", "encryption_key", "model", "model_name", "quantize", "results_dir", "train", "wandb")
"""Sections of every action's schema; evaluate, inference, export and gen_trt_engine add their own."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The top-level keys that ExperimentSpec passes over."""

    export: ExportSpec = field(ExportSpec, title="Export", doc="Writes the network as ONNX.")
    gen_trt_engine: GenTrtEngineSpec = field(
        GenTrtEngineSpec,
        title="Engine",
        doc="Builds a TensorRT engine from ONNX.",
        popular=("batch_size", "gpu_id", "tensorrt"),
    )
    quantize: QuantizeSpec = field(
        QuantizeSpec,
        title="Quantisation",
        doc="Lowers the precision of a trained model.",
        extra={"required": ["model_path", "results_dir"]},
    )


def build() -> dict[str, str]:
    """File name -> text of everything that `make schemas` writes."""
    texts: dict[str, str] = {}
    for action in ACTIONS:
        document = build_schema(
            (ExperimentSpec, Deployment),
            sorted({*SHARED, action}),
            records=(Source, InferSource),
            origin={**NETWORK, "action": action, "source": "ddetr-automl"},
        )
        texts[schema_name(action)] = to_json(document)
        texts[template_name(action)] = to_template(document, f"Every key of `{action}` with its default.")
    metric = {"name": VAL_MAP50.name, "goal": VAL_MAP50.goal}
    texts["manifest.json"] = to_json(manifest(metric))
    return texts


def manifest(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **NETWORK,
        "automl_enabled": True,
        "metric": dict(metric),
        "dataset_type": "object_detection",
        "formats": ["coco", "coco_raw"],
        "actions": {action: {"schema": schema_name(action), "template": template_name(action)} for action in ACTIONS},
    }


def schema_name(action: str) -> str:
    return f"{action}.schema.json"


def template_name(action: str) -> str:
    return f"spec_template_{action}.yaml"


def main(folder: Path) -> None:
    for name, text in build().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "schemas")
