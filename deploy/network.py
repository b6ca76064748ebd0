"""ONNX -> the network that TensorRT parses, and what that says of itself: shapes, precision. Knows the parser and the
network's tensors; builds nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deploy import plugin, trt
from deploy.sidecar import OnnxSidecar
from model.adopt import contradictions

Shape = tuple[int, int, int, int]

COPYING = frozenset((
    "CONSTANT", "CAST", "IDENTITY", "SHAPE", "SHUFFLE", "SQUEEZE", "UNSQUEEZE", "CONCATENATION", "SLICE", "GATHER",
    "SELECT", "QUANTIZE", "DEQUANTIZE",
))  # fmt: skip
"""Layers that move values or change their type: one of FP16 does not make an FP16 network."""


class Contents(NamedTuple):
    """What a network holds, as the library has it."""

    tensors: dict[str, int]
    """Type to the number of tensors between the layers."""
    layers: dict[str, int]
    """`quantize`, `dequantize`: layers that do it; `half`: layers that compute in HALF."""

    @property
    def precision(self) -> str:
        """What the network computes in: FP32, FP16, INT8; or the name of a type that no build here asks for."""
        foreign = sorted(set(self.tensors) - {"FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL"})
        if foreign:
            return foreign[0]
        if self.layers["quantize"] or self.tensors.get("INT8"):
            return "INT8"
        return "FP16" if self.layers["half"] else "FP32"


def create(api: Any, builder: Any) -> Any:
    """An empty network whose types are those of the graph. Newer versions know nothing else, and deprecate the flag
    that older ones need for it."""
    typed = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if typed is None else 1 << int(typed))


def parse(api: Any, network: Any, log: Any, onnx: Path) -> Any:
    """Fills `network` from `onnx`. Returns the parser, which must live as long as the network. Every complaint is in
    one ValueError."""
    parser = api.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(onnx))
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    if not parsed or problems:
        said = list(dict.fromkeys(problem.desc() for problem in problems))
        # It names a plugin that it does not have by the operator of the node alone.
        lacks = any(problem.node_operator() == plugin.OP for problem in problems)
        instead = " with export.attention=gather, whose operators every TensorRT has" if lacks else ""
        raise ValueError(
            f"TensorRT must be able to parse the ONNX file, but `{onnx}` has {len(problems)} problems: "
            f"{trt.joined(said)} Export it again{instead}."
        )
    # An empty or cut-off file can parse "well" into a network of nothing.
    if network.num_inputs != 1 or network.num_outputs == 0:
        raise ValueError(
            f"an ONNX detector must have one input and outputs, but `{onnx}` has {network.num_inputs} and "
            f"{network.num_outputs}; export it again."
        )
    return parser


def contents(network: Any) -> Contents:
    tensors: Counter[str] = Counter()
    layers = Counter(quantize=0, dequantize=0, half=0)
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        types = [layer.get_output(output).dtype.name for output in range(layer.num_outputs)]
        tensors.update(types)
        name = layer.type.name
        layers["quantize"] += name == "QUANTIZE"
        layers["dequantize"] += name == "DEQUANTIZE"
        layers["half"] += "HALF" in types and name not in COPYING
    return Contents(dict(sorted(tensors.items())), dict(layers))


def check_precision(found: Contents, precision: str, onnx: Path) -> None:
    """Raises ValueError unless the network computes in what was asked for."""
    if found.precision == precision:
        return
    types = ", ".join(f"{number} {name}" for name, number in found.tensors.items())
    raise ValueError(
        f"an engine's precision is that of its graph, but `gen_trt_engine.tensorrt.data_type` is {precision} and "
        f"`{onnx}` computes in {found.precision} (tensors: {types}); set data_type={found.precision}, or name an FP32 "
        "file with its description, which is then converted."
    )


def shapes(network: Any, batches: tuple[int, int, int], batch_size: int, onnx: Path) -> tuple[Shape, Shape, Shape]:
    """The input's min, opt and max shape. A graph of fixed batch keeps its own, which `batch_size` must be, or -1."""
    shape = tuple(network.get_input(0).shape)
    if len(shape) != 4 or min(shape[1:]) < 1:
        raise ValueError(
            f"the input of an ONNX detector must be [B, 3, H, W] with only B open, but `{onnx}` has "
            f"{list(shape)} (-1: open); export it again."
        )
    fixed, channels, height, width = shape
    if batch_size != -1 and fixed != batch_size:
        raise ValueError(
            f"`gen_trt_engine.batch_size` must be the batch size of the ONNX file, or -1, but is {batch_size} and "
            f"`{onnx}` has {'an open one' if fixed == -1 else fixed}; change one of them."
        )
    low, usual, high = batches if fixed == -1 else (fixed,) * 3
    return (low, channels, height, width), (usual, channels, height, width), (high, channels, height, width)


def check_described(network: Any, described: OnnxSidecar | None, given: Mapping[str, Any], onnx: Path) -> None:
    """Raises ValueError where the graph is not what its sidecar says, or not what `given`, the user's spec, says."""
    for name, theirs, own in _differences(network, described, given):
        raise ValueError(
            f"`{name}` must be that of the ONNX file, but is {theirs} and `{onnx}` has {own}; correct it, or bring the "
            "file that belongs to this spec."
        )


def _differences(
    network: Any, described: OnnxSidecar | None, given: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    size = tuple(network.get_input(0).shape)[2:]
    logits = [network.get_output(place) for place in range(network.num_outputs)]
    classes = next((tuple(each.shape)[-1] for each in logits if each.name == "pred_logits"), None)
    if described is not None:
        yield from _unequal("input size (height, width) in its description", described.size, size)
        yield from _unequal("num_classes in its description", described.num_classes, classes)
    dataset = {"num_classes": classes if described is None else described.num_classes}
    if dataset["num_classes"] is not None:
        section = {} if described is None else described.model
        wanted = {"dataset": given.get("dataset"), "model": given.get("model") if section else None}
        yield from contradictions(wanted, {"model": section, "dataset": dataset})
    for place, name in enumerate(("input_height", "input_width")):
        stated = (given.get("export") or {}).get(name)
        if stated is not None:
            yield from _unequal(f"export.{name}", int(stated), size[place])


def _unequal(name: str, theirs: object, own: object) -> Iterator[tuple[str, object, object]]:
    if own not in (None, -1) and theirs != own:
        yield name, theirs, own
