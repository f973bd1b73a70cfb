"""Pools as ONNX Runtime computes them fast: means in integers, maxima of floats in floats."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from amc.export.graph import LAYER_NOTE

_KEEPS_RANK = {
    *("Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "BatchNormalization"),
    *("Pad", "Slice"),
}
# Across which the runtime moves a rounding too.
_SHAPES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"}
_POSITIONS = ({2, 3}, {-2, -1})


def write_means_as_pools(graph: onnx.GraphProto) -> None:
    """Replace every ReduceMean over height and width of a feature map by GlobalAveragePool."""
    made_by = {name: node for node in graph.node for name in node.output}
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {name: node.attribute[0].t for name, node in made_by.items() if _is_constant(node)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        is_mean = node.op_type == "ReduceMean" and _axes(node, values) in _POSITIONS
        if is_mean and _is_feature_map(node.input[0], made_by):
            nodes += _pool(node)
        else:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def keep_maxima_in_floats(graph: onnx.GraphProto) -> None:
    """Put a copy between every maximum of floats and the rounding that alone reads it.

    Of both orders, which give the same, the runtime takes the other: it rounds before the pool, and
    pools integers, channel by channel where no integer convolution gave them. For 64 channels of
    48x48 pixels that takes 1.0 ms, in floats 0.02. It does not move a rounding across the maximum
    of one tensor, which is a copy (0.01 ms).
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kept = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "MaxPool" and node.input[0] not in rounded:
            name = node.output[0]
            if _is_only_rounded(name, readers, kept):
                node.output[0] = f"{name}/floats"
                nodes.append(helper.make_node("Max", node.output[:1], [name], f"{name}/copy"))
    graph.ClearField("node")
    graph.node.extend(nodes)


def _is_only_rounded(name: str, readers: dict[str, list[onnx.NodeProto]], kept: set[str]) -> bool:
    """Whether one rounding alone reads a tensor, be it in another shape."""
    while name not in kept and len(readers.get(name, ())) == 1:
        (reader,) = readers[name]
        if reader.op_type == "QuantizeLinear":
            return True
        if reader.op_type not in _SHAPES or name != reader.input[0]:
            return False
        name = reader.output[0]
    return False


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def _axes(node: onnx.NodeProto, values: dict[str, onnx.TensorProto]) -> set[int]:
    """An attribute before opset 18, an input since."""
    given = [axis for entry in node.attribute if entry.name == "axes" for axis in entry.ints]
    if len(node.input) > 1 and node.input[1] in values:
        given = numpy_helper.to_array(values[node.input[1]]).tolist()
    return set(given)


def _is_feature_map(name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes from a convolution by what leaves (N, channels, height, width)."""
    while name in made_by:
        node = made_by[name]
        if node.op_type == "Conv" and node.doc_string.startswith(LAYER_NOTE):
            return True
        if node.op_type not in _KEEPS_RANK:
            return False
        name = node.input[0]
    return False


def _pool(mean: onnx.NodeProto) -> list[onnx.NodeProto]:
    keeps = [entry.i for entry in mean.attribute if entry.name == "keepdims"]
    if keeps != [0]:
        return [helper.make_node("GlobalAveragePool", mean.input[:1], mean.output, mean.name)]
    pooled = f"{mean.output[0]}/pooled"
    return [
        helper.make_node("GlobalAveragePool", mean.input[:1], [pooled], mean.name),
        helper.make_node("Flatten", [pooled], mean.output, f"{mean.name}/flatten"),
    ]
