"""Means over positions, written as the pooling that ONNX Runtime has in integers."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from amc.export.graph import LAYER_NOTE

_KEEPS_RANK = {
    *("Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "BatchNormalization"),
    *("Pad", "Slice"),
}
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
