"""Everything that reads what others wrote, one function each: a file's bytes in, nothing or a named error out.

    PARSERS[name].read(content, folder)

`folder` is empty and the parser's own: nothing may be written outside of it. A parser may raise what the commands have
an exit code for (`hpo.cli.exit_code`), which is every error that is told in a paragraph and without a traceback.
"""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.mutations import bytes_like, texts_like


class Parser(NamedTuple):
    content: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[bytes, Path], object]


def written(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


SPEC: dict[str, Any] = {
    "results_dir": "runs",
    "model": {
        "backbone": "resnet_tiny",
        "num_queries": 100,
        "num_select": 50,
        "return_interm_indices": [1, 2, 3],
        "num_feature_levels": 3,
    },
    "dataset": {
        "train_data_sources": [{"image_dir": "train", "json_file": "train.json"}],
        "val_data_sources": [{"image_dir": "val", "json_file": "val.json"}],
        "num_classes": 3,
        "augmentation": {"scales": [80, 96], "input_mean": [0.5, 0.4, 0.3]},
    },
    "train": {"num_epochs": 2, "optim": {"lr": 1e-3, "lr_steps": [1]}, "freeze": ["backbone"]},
    "automl": {"trials": 4, "params": ["lr"], "ranges": {"lr": "1e-5:1e-3:log"}, "fix": {"dropout_ratio": 0.1}},
    "deploy": {"precisions": ["FP16"], "max_drop": {"fp16": 0.01}},
    "evaluate": {"checkpoint": "a.pth", "latency_batch_sizes": [1]},
}
COCO: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 8, "height": 6},
        {"id": 2, "file_name": "b.png", "width": 8, "height": 6},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0.5, 1.5, 2.0, 4.0], "area": 8.0, "iscrowd": 1},
    ],
}


def picture(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def tarred(names: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(names: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return out.getvalue()


PICTURES = {"images/a.png": picture(), "images/deep/b.jpg": picture("JPEG")}


def read_spec(content: bytes, folder: Path) -> object:
    from hpo.spec import read_request

    return read_request(written(content, folder, "spec.yaml"), [], action="train")


def read_words(content: bytes, folder: Path) -> object:
    """`key=value` as typed."""
    from hpo.spec import read_request

    return read_request(None, content.decode("utf-8", "replace").split("\n"), action="evaluate")


def read_schema(content: bytes, folder: Path) -> object:
    from hpo.show_space import read_schema_file
    from search_spaces.derive import derive
    from search_spaces.lint import lint

    schema = read_schema_file(written(content, folder, "train.schema.json"))
    return lint(schema, derive(schema, {}))


def read_annotations(content: bytes, folder: Path) -> object:
    from model.data.coco import read_coco
    from model.spec import Source

    for name in ("a.png", "b.png"):
        written(picture(), folder, name)
    return read_coco([Source(image_dir=str(folder), json_file=str(written(content, folder, "a.json")))], 3)


def audit_annotations(content: bytes, folder: Path) -> object:
    from model.data.sheets import read_sheets
    from model.spec import Source

    written(picture(), folder, "a.png")
    source = Source(image_dir=str(folder), json_file=str(written(content, folder, "a.json")))
    return read_sheets("train", [source], resize=(64, 64), cell=8)


def read_tar(content: bytes, folder: Path) -> object:
    from model.data.sources import local

    return local(written(content, folder, "images.tar"))


def read_tar_gz(content: bytes, folder: Path) -> object:
    from model.data.sources import local

    return local(written(content, folder, "images.tar.gz"))


def read_zip(content: bytes, folder: Path) -> object:
    from model.data.sources import local

    return local(written(content, folder, "images.zip"))


def read_image(content: bytes, folder: Path) -> object:
    from model.data.transforms import decode

    return decode(written(content, folder, "a.png"))


def read_label_map(content: bytes, folder: Path) -> object:
    from model.infer_sources import class_names
    from model.spec import DatasetSpec, ExperimentSpec, InferSource

    source = InferSource(classmap=str(written(content, folder, "label_map.txt")))
    return class_names(ExperimentSpec(dataset=DatasetSpec(infer_data_sources=source)), {1: "cat"})


def read_checkpoint(content: bytes, folder: Path) -> object:
    from model.checkpoint import read_checkpoint as read

    return read(written(content, folder, "model.pth"))


def read_safetensors(content: bytes, folder: Path) -> object:
    from model.tensorfile import read_raw

    return read_raw(written(content, folder, "model.safetensors"))


def read_onnx_sidecar(content: bytes, folder: Path) -> object:
    from deploy.sidecar import require_onnx

    written(content, folder, "model.onnx.json")
    onnx = require_onnx(written(b"graph", folder, "model.onnx"))
    return onnx.as_checkpoint(folder / "model.onnx")


def read_engine_sidecar(content: bytes, folder: Path) -> object:
    from deploy.sidecar import engine_model, require_engine

    written(content, folder, "model.engine.json")
    engine = written(b"graph", folder, "model.engine")
    return engine_model(engine, require_engine(engine))


def read_handoff(content: bytes, folder: Path) -> object:
    from model.handoff import Handoff

    return Handoff.read(written(content, folder, "handoff.json"))


@cache
def checkpoint() -> bytes:
    """A whole one, of the smallest weights; the network behind it is not built here."""
    import torch

    from model.checkpoint import KEY, describe
    from model.spec import ExperimentSpec

    spec = ExperimentSpec.from_dict({name: SPEC[name] for name in ("model", "dataset")})
    text = describe(spec, {1: "cat", 2: "dog"}, 3, {"val_mAP50": 0.5})
    out = io.BytesIO()
    torch.save({"state_dict": {"model.a.weight": torch.ones(2, 3)}, "epoch": 3, KEY: text}, out)
    return out.getvalue()


@cache
def safetensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a.weight": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)})


@cache
def onnx_sidecar() -> dict[str, Any]:
    import dataclasses
    import hashlib

    from deploy import sidecar
    from model.checkpoint import public_dict
    from model.spec import ExperimentSpec

    spec = ExperimentSpec.from_dict({name: SPEC[name] for name in ("model", "dataset")})
    taken = {"name": "inputs", "layout": "NCHW", "dtype": "float32", "colour": "RGB", "batch": -1, "height": 64}
    taken |= {"width": 64, "resize": sidecar.RESIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    known: dict[str, Any] = {
        "format_version": sidecar.FORMAT_VERSION, "onnx_sha256": hashlib.sha256(b"graph").hexdigest(),
        "checkpoint": "model.pth", "checkpoint_sha256": "0" * 64, "num_classes": 3, "classes": {"1": "cat"},
        "input": taken, "outputs": {"pred_logits": "x", "pred_boxes": "y"}, "model": public_dict(spec)["model"],
        "opset": 17, "attention": "gather", "parity": {"logits": 1e-6}, "lineage": {"epoch": 3, "metrics": {}},
    }  # fmt: skip
    return {
        item.name: known.get(item.name, {})
        for item in dataclasses.fields(sidecar.OnnxSidecar)
        if item.name in known or item.default is dataclasses.MISSING
    }


@cache
def engine_sidecar() -> dict[str, Any]:
    import dataclasses
    import hashlib

    from deploy import sidecar

    filled: dict[str, Any] = {
        "format_version": sidecar.FORMAT_VERSION, "engine_sha256": hashlib.sha256(b"graph").hexdigest(),
        "library": "tensorrt_rtx", "library_version": "1.7", "precision": "FP32", "tf32": False, "workspace_mb": 64,
        "shapes": {name: [1, 3, 64, 64] for name in ("min", "opt", "max")}, "model": onnx_sidecar(),
    }  # fmt: skip
    return {item.name: filled.get(item.name, "x") for item in dataclasses.fields(sidecar.EngineSidecar)}


@cache
def handoff() -> dict[str, Any]:
    return {
        "schema_version": 1, "checkpoint": "trials/3/model_best.pth", "checkpoint_sha256": "0" * 64, "model": {},
        "num_classes": 3, "classes": {"1": "cat"}, "preprocessing": {"mean": [0.5] * 3},
        "metric": {"name": "val_mAP50", "goal": "maximize", "value": 0.5}, "budget": {}, "lineage": {"trial": 3},
    }  # fmt: skip


def schema() -> dict[str, Any]:
    from schemas import packaged

    whole = packaged.document("train")
    return {**whole, "properties": {name: whole["properties"][name] for name in ("train", "results_dir")}}


WORDS = [b"train.num_epochs=3\nmodel.return_interm_indices=[1, 2]\n+train.optim.lr=1e-3", b"a.b={c: [1, 2]}\n=\nx"]

PARSERS: Mapping[str, Parser] = {
    "spec": Parser(lambda: texts_like([SPEC], yaml.safe_dump), read_spec),
    "words": Parser(lambda: bytes_like(WORDS), read_words),
    "schema": Parser(lambda: texts_like([schema()], json.dumps), read_schema),
    "annotations": Parser(lambda: texts_like([COCO], json.dumps), read_annotations),
    "audit": Parser(lambda: texts_like([COCO], json.dumps), audit_annotations),
    "tar": Parser(lambda: bytes_like([tarred(PICTURES)]), read_tar),
    "tar.gz": Parser(lambda: bytes_like([gzip.compress(tarred(PICTURES), mtime=0)]), read_tar_gz),
    "zip": Parser(lambda: bytes_like([zipped(PICTURES)]), read_zip),
    "image": Parser(lambda: bytes_like([picture(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF")]), read_image),
    "label map": Parser(lambda: bytes_like([b"cat\ndog\n", "Schlo\u00df\r\n\n".encode()]), read_label_map),
    "checkpoint": Parser(lambda: bytes_like([checkpoint()]), read_checkpoint),
    "safetensors": Parser(lambda: bytes_like([safetensors()]), read_safetensors),
    "ONNX sidecar": Parser(lambda: texts_like([onnx_sidecar()], json.dumps), read_onnx_sidecar),
    "engine sidecar": Parser(lambda: texts_like([engine_sidecar()], json.dumps), read_engine_sidecar),
    "handoff": Parser(lambda: texts_like([handoff()], json.dumps), read_handoff),
}
