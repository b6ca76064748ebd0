"""TensorRT's own node for deformable attention: how it is written, and what it means in standard operators.

Knows the node's documentation (NVIDIA/TensorRT, plugin/multiscaleDeformableAttnPlugin, version 2); knows no network.
"""

from typing import Any

import onnx as onnx_format
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import parser

from model.network.attention import WHOLE

OP = "MultiscaleDeformableAttnPlugin_TRT"
DOMAIN = "trt.plugins"
"""Where ONNX Runtime's TensorRT provider looks for plugins. TensorRT's parser finds them by the operator's name."""
VERSION = "2"

# The documentation's letters: N image, S token, M head, D feature of a head, L level, Lq query, P point. C is a corner.
_MEANING = """
<domain: "%(domain)s", opset_import: ["" : %(opset)d]>
%(op)s <plugin_version, plugin_namespace>
  (value, spatial_shapes, level_start_index, sampling_locations, attention_weights) => (output)
{
  zero = Constant <value_float = 0.0> ()
  half = Constant <value_float = 0.5> ()
  one = Constant <value_float = 1.0> ()
  i0 = Constant <value_int = 0> ()
  i1 = Constant <value_int = 1> ()
  i2 = Constant <value_int = 2> ()
  a1 = Constant <value_ints = [1]> ()
  a12 = Constant <value_ints = [1, 2]> ()
  a123 = Constant <value_ints = [1, 2, 3]> ()
  a12345 = Constant <value_ints = [1, 2, 3, 4, 5]> ()
  before_last = Constant <value_ints = [-2]> ()
  last = Constant <value_ints = [-1]> ()
  x_then_y = Constant <value_ints = [1, 0]> ()
  corners_C2 = Constant <value = float[4, 2] {0, 0, 1, 0, 0, 1, 1, 1}> ()

  height_width = Cast <to = 1> (spatial_shapes)
  extent_L2 = Gather <axis = 1> (height_width, x_then_y)
  extent_L12 = Unsqueeze (extent_L2, a1)
  scaled = Mul (sampling_locations, extent_L12)
  place = Sub (scaled, half)
  place_NLqMLP12 = Unsqueeze (place, before_last)
  before = Floor (place_NLqMLP12)
  cell_NLqMLPC2 = Add (before, corners_C2)

  end_L12 = Sub (extent_L12, one)
  end_L112 = Unsqueeze (end_L12, a1)
  not_before = Max (cell_NLqMLPC2, zero)
  clipped = Min (not_before, end_L112)
  is_inside = Equal (clipped, cell_NLqMLPC2)
  inside = Cast <to = 1> (is_inside)
  offset = Sub (place_NLqMLP12, cell_NLqMLPC2)
  distance = Abs (offset)
  nearness = Sub (one, distance)
  share_xy = Mul (nearness, inside)
  share_x = Gather <axis = -1> (share_xy, i0)
  share_y = Gather <axis = -1> (share_xy, i1)
  share_NLqMLPC = Mul (share_x, share_y)

  index_xy = Cast <to = 7> (clipped)
  x = Gather <axis = -1> (index_xy, i0)
  y = Gather <axis = -1> (index_xy, i1)
  sizes = Cast <to = 7> (spatial_shapes)
  width_L = Gather <axis = 1> (sizes, i1)
  width_L11 = Unsqueeze (width_L, a12)
  starts = Cast <to = 7> (level_start_index)
  start_L11 = Unsqueeze (starts, a12)
  y_cells = Mul (y, width_L11)
  in_level = Add (y_cells, x)
  token_NLqMLPC = Add (in_level, start_L11)

  dims = Shape (value)
  N = Gather (dims, i0)
  S = Gather (dims, i1)
  M = Gather (dims, i2)
  D = Shape <start = 3> (value)
  images = Range (i0, N, i1)
  image_N11111 = Unsqueeze (images, a12345)
  heads = Range (i0, M, i1)
  head_M111 = Unsqueeze (heads, a123)
  first = Mul (image_N11111, S)
  row_of_tokens = Add (first, token_NLqMLPC)
  rows_before = Mul (row_of_tokens, M)
  row_NLqMLPC = Add (rows_before, head_M111)

  table_shape = Concat <axis = 0> (last, D)
  table_RD = Reshape (value, table_shape)
  read_NLqMLPCD = Gather (table_RD, row_NLqMLPC)
  first_three = Constant <value_ints = [0, 0, 0, -1]> ()
  read_shape = Concat <axis = 0> (first_three, D)
  read_NLqMXD = Reshape (read_NLqMLPCD, read_shape)
  weight_NLqMLP1 = Unsqueeze (attention_weights, last)
  scale_NLqMLPC = Mul (share_NLqMLPC, weight_NLqMLP1)
  scale_shape = Constant <value_ints = [0, 0, 0, 1, -1]> ()
  scale_NLqM1X = Reshape (scale_NLqMLPC, scale_shape)
  sum_NLqM1D = MatMul (scale_NLqM1X, read_NLqMXD)
  output = Squeeze (sum_NLqM1D, before_last)
}
"""


def meaning(opset: int) -> onnx_format.FunctionProto:
    """The node as a function of standard operators."""
    return parser.parse_function(_MEANING % {"domain": DOMAIN, "op": OP, "opset": opset})


def runnable(onnx: bytes) -> bytes | None:
    """The content of a file with the meaning of its plugin nodes, as ONNX Runtime can take it; None where it holds
    none."""
    if OP.encode() not in onnx:
        return None
    try:
        graph = onnx_format.load_from_string(onnx)
    except DecodeError:  # cut off, which is left to who opens it
        return None
    (opset,) = (each.version for each in graph.opset_import if not each.domain)
    graph.functions.append(meaning(opset))
    content: bytes = graph.SerializeToString()
    return content


def write_as_node(opset: int) -> None:
    """Lets the exporter write the operator of the traced `plugin` form as the one node."""
    torch.onnx.register_custom_op_symbolic(WHOLE, _node, opset)


def _node(g: Any, value: Any, sizes: Any, starts: Any, location: Any, weight: Any) -> Any:
    given = (value, sizes, starts, location, weight)
    node = g.op(f"{DOMAIN}::{OP}", *given, plugin_version_s=VERSION, plugin_namespace_s="")
    (images, _, heads, features), (_, queries, *_) = value.type().varyingSizes(), location.type().varyingSizes()
    node.setType(value.type().with_sizes([images, queries, heads, features]))
    return node
