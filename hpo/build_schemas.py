"""Writes `schemas/*.schema.json`, the templates and the manifest from the spec classes: `make schemas`.

The only place that brings `schemas.build` and the classes of `model` and `deploy` together.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.spec import DeploySpec, ExportSpec, GenTrtEngineSpec, QuantizeSpec
from model.adopt import ARCHITECTURE
from model.metrics import VAL_MAP50
from model.spec import ENGINES, ExperimentSpec, InferSource, Source
from schemas import dotted
from schemas.build import build_schema, to_json, to_template
from schemas.fields import field
from schemas.structure import MANDATORY

ACTIONS = ("train", "evaluate", "inference", "export", "gen_trt_engine", "quantize")
NETWORK = {"model": "deformable-detr", "network_arch": "deformable_detr", "schema_version": 1}
SHARED = ("dataset", "encryption_key", "model", "model_name", "quantize", "results_dir", "train", "wandb")
"""Sections of every action's schema; evaluate, inference, export and gen_trt_engine add their own."""
DEPLOY: Mapping[str, Mapping[str, Any]] = {
    "gen_trt_engine": {"results_dir": MANDATORY, "gen_trt_engine": None},
    "evaluate": {
        "results_dir": MANDATORY,
        "dataset.batch_size": 1,
        "dataset.test_data_sources.image_dir": MANDATORY,
        "dataset.test_data_sources.json_file": MANDATORY,
        "evaluate": None,
        "evaluate.trt_engine": MANDATORY,
    },
    "inference": {
        "results_dir": MANDATORY,
        "dataset.batch_size": 1,
        "dataset.infer_data_sources.image_dir": MANDATORY,
        "dataset.infer_data_sources.classmap": "",
        "inference": None,
        "inference.trt_engine": MANDATORY,
    },
}
"""Action of a TensorRT engine -> the keys of its template with their values; None takes the section's defaults. What
the file beside an engine says (architecture, classes, preprocessing) is left out: a template with the defaults of
training would contradict it. A batch of 1 lies in every profile that the engine's own defaults build."""

SIZES = (
    "scales", "train_random_resize", "train_random_crop_min", "train_random_crop_max", "random_resize_max_size",
    "test_random_resize", "fixed_padding", "fixed_random_crop", "pad_size_divisor", "input_mean", "input_std",
)  # fmt: skip
"""Keys of `dataset.augmentation` that say how large images are, and in what units."""


def _carried(*names: str) -> list[dict[str, Any]]:
    return [{"key": name, "by": "parent_spec"} for name in names]


def _sources(*splits: str) -> list[dict[str, Any]]:
    return _carried(*(f"dataset.{split}_data_sources" for split in splits))


EVERY = [{"key": "encryption_key", "by": "key"}, {"key": "results_dir", "by": "output_dir"}]
INFERENCE: Mapping[str, list[dict[str, Any]]] = {
    "train": [
        *EVERY,
        {"key": "train.resume_training_checkpoint_path", "by": "resume_model", "files": [".pth"]},
        {"key": "train.pretrained_model_path", "by": "ptm_if_no_resume_model", "files": [".pth"]},
        *_carried(*(f"model.{name}" for name in ARCHITECTURE)),
        *_carried(*(f"dataset.augmentation.{name}" for name in SIZES)),
        *_sources("train", "val", "test"),
    ],
    "evaluate": [
        *EVERY,
        {"key": "evaluate.checkpoint", "by": "parent_model", "files": [".pth", ".onnx"]},
        {"key": "evaluate.trt_engine", "by": "parent_model", "files": list(ENGINES)},
        *_sources("test"),
    ],
    "inference": [
        *EVERY,
        {"key": "inference.checkpoint", "by": "parent_model", "files": [".pth", ".onnx"]},
        {"key": "inference.trt_engine", "by": "parent_model", "files": list(ENGINES)},
        *_sources("infer"),
    ],
    "export": [
        *EVERY,
        {"key": "export.checkpoint", "by": "parent_model", "files": [".pth"]},
        {"key": "export.onnx_file", "by": "create_onnx_file"},
        *_carried("export.input_height", "export.input_width"),
        *_sources("train", "val", "test"),
    ],
    "gen_trt_engine": [
        *EVERY,
        {"key": "gen_trt_engine.onnx_file", "by": "parent_model", "files": [".onnx"]},
        {"key": "gen_trt_engine.trt_engine", "by": "create_engine_file"},
        {
            "key": "gen_trt_engine.tensorrt.calibration.cal_cache_file",
            "by": "create_cal_cache",
            "when": {"gen_trt_engine.tensorrt.data_type": "INT8"},
        },
        *_carried("gen_trt_engine.tensorrt.calibration.cal_image_dir"),
        *_sources("train", "val", "test"),
    ],
    "quantize": [
        *EVERY,
        {
            "key": "quantize.model_path",
            "by": "parent_model",
            "files": [".onnx"],
            "when": {"quantize.mode": "static_ptq"},
        },
        {"key": "quantize.model_path", "by": "parent_model", "files": [".pth"]},
        *_sources("train", "val", "test", "quant_calibration"),
    ],
}
"""Action -> how the keys of its spec follow from an earlier job, in order: `by` is a resolver of hpo.chain, `files` the
suffixes that a key takes, `when` the values of other keys under which a row holds."""


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
    deploy: DeploySpec = field(DeploySpec, title="Handoff", doc="What becomes of the winner of a run.", note="ours")


def build() -> dict[str, str]:
    """File name -> text of everything that `make schemas` writes."""
    texts: dict[str, str] = {}
    for action in ACTIONS:
        document = build_schema(
            (ExperimentSpec, Deployment),
            sorted({*SHARED, action, *(("deploy",) if action == "train" else ())}),
            records=(Source, InferSource),
            origin={**NETWORK, "action": action, "source": "ddetr-automl"},
        )
        texts[schema_name(action)] = to_json(document)
        texts[template_name(action)] = to_template(document, f"Every key of `{action}` with its default.")
        if action in DEPLOY:
            texts[template_name(action, deploy=True)] = to_template(
                {"default": deploy_spec(action, document["default"])},
                f"What `{action}` of a TensorRT engine reads; the rest stands in the file beside its input.",
            )
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
        "deploy": {
            action: {"schema": schema_name(action), "template": template_name(action, deploy=True)} for action in DEPLOY
        },
        "inference": dict(INFERENCE),
    }


def schema_name(action: str) -> str:
    return f"{action}.schema.json"


def template_name(action: str, *, deploy: bool = False) -> str:
    return f"spec_template_{'deploy_' if deploy else ''}{action}.yaml"


def deploy_spec(action: str, default: Mapping[str, Any]) -> dict[str, Any]:
    """The nested spec of an engine's action. default: the whole default spec of the action."""
    spec: dict[str, Any] = {}
    for name, value in DEPLOY[action].items():
        spec = dotted.put(spec, name, dotted.get(default, name) if value is None else value)
    return dotted.drop(spec, f"{action}.checkpoint")  # the engine takes its place


def main(folder: Path) -> None:
    for name, text in build().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "schemas")
