"""labels.txt and nvdsinfer_config.yaml: what DeepStream's nvinfer needs beside an ONNX file. Knows TAO's names and
values for Deformable DETR; knows no network.

nvinfer gives the graph float32 pixels, net-scale-factor x (pixel - offset); TAO's parser reads logits and boxes.
"""

from collections.abc import Mapping
from pathlib import Path

from deploy.graph import Form
from deploy.runtime import OUTPUTS

LABELS = "labels.txt"
CONFIG = "nvdsinfer_config.yaml"


def check(form: Form) -> None:
    """Raises ValueError for a graph that nvinfer cannot feed, or TAO's parser not read."""
    for name, wrong, only in (("input_dtype", form.normalises, "float32"), ("postprocess", form.selects, "false")):
        if wrong:
            raise ValueError(
                f"with `export.serialize_nvdsinfer`, `export.{name}` must be {only}: DeepStream gives normalised float "
                f"pixels and its parser reads logits and boxes; set it to {only}."
            )


def labels(classes: Mapping[int, str], num_classes: int) -> list[str]:
    """The name of each category id, at its place; `background` at 0 where no class is, `unknown` in other gaps."""
    found = [" ".join(classes.get(index, "unknown").split()) for index in range(num_classes)]
    return found if 0 in classes else ["background", *found[1:]]


def config(
    onnx: Path, form: Form, mean: tuple[float, ...], std: tuple[float, ...], num_classes: int, confidence: float
) -> str:
    """The text of the configuration file. Paths in it are relative to its folder."""
    properties = {
        "gpu-id": 0,
        "onnx-file": onnx.name,
        "labelfile-path": LABELS,
        "batch-size": max(form.batch_size, 1),
        "infer-dims": f"3;{form.height};{form.width}",
        "model-color-format": 0,
        "net-scale-factor": f"{scale(std):.10g}",
        "offsets": ";".join(f"{255 * value:.10g}" for value in mean),
        "maintain-aspect-ratio": 0,
        "network-type": 0,
        "network-mode": 0,
        "num-detected-classes": num_classes,
        "cluster-mode": 4,
        "output-blob-names": ";".join(OUTPUTS),
        "parse-bbox-func-name": "NvDsInferParseCustomDDETRTAO",
        "custom-lib-path": "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser_tao.so",
    }
    each_class = {"topk": 20, "pre-cluster-threshold": confidence}
    return "\n".join([
        f"# {remark(std)}",
        "# network-mode 0 is FP32, as the file was compared with PyTorch; 2 is FP16, which nobody has measured.",
        "property:", *(f"  {key}: {value}" for key, value in properties.items()),
        "class-attrs-all:", *(f"  {key}: {value}" for key, value in each_class.items()), "",
    ])  # fmt: skip


def scale(std: tuple[float, ...]) -> float:
    """nvinfer has one factor for all channels: that of the mean of `std`, as TAO writes it."""
    return 1 / (255 * (sum(std) / len(std)))


def remark(std: tuple[float, ...]) -> str:
    """How far nvinfer's normalisation is from the one trained with."""
    off = max(abs(255 * value * scale(std) - 1) for value in std)
    if off < 1e-6:
        return "nvinfer normalises exactly as in training."
    return f"nvinfer has one scale for three channels: values differ from those of training by up to {100 * off:.1f} %."
