"""Who reads and who makes a tensor of a written graph, and which of them bear rounded values.

Three kinds of nodes lie between layers without being one. A *join* (an addition of two branches, a
concatenation) may be computed in integers. A *copy* gives values of its input on, a *pool* their
means: rounded or not is the same to them, what counts is who reads their output. Everything else
(a sigmoid, the network's scores, an input grid of fewer than 8 bits) takes float values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

import onnx
from onnx import numpy_helper

from amc.export.graph import LAYER_NOTE, outputs

_COPIES = {
    *("Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"),
    *("MaxPool", "Split", "Gather", "DepthToSpace", "SpaceToDepth"),
}
_ACTIVATIONS = {"Relu", "Clip"}
_POOLS = {"GlobalAveragePool", "AveragePool"}


class Flow:
    """The tensors of a graph as `amc.export.graph.fill_layers` leaves it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.inputs = [value.name for value in graph.input]
        self.outputs = outputs(graph)
        self.made_by = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._bears: dict[str, bool] = {}

    # -- kinds of nodes ------------------------------------------------------------------

    def is_join(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds or concatenates what was computed."""
        return node.op_type in {"Add", "Concat"} and not any(map(self._is_constant, node.input))

    def is_copy(self, node: onnx.NodeProto) -> bool:
        """Whether all values of a node's output are values of its first input, or 0."""
        if node.op_type == "Pad":  # what it pads with is 0 unless a third input says otherwise
            return len(node.input) < 3 or not node.input[2] or self._is_zero(node.input[2])
        return node.op_type in _COPIES

    def is_pool(self, node: onnx.NodeProto) -> bool:
        """Whether a node gives means of its input."""
        return node.op_type in _POOLS

    def is_integer_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a layer whose inputs and weights are both quantized."""
        is_layer = node.doc_string.startswith(LAYER_NOTE) and node.op_type in {"Conv", "Gemm"}
        return is_layer and all(self._is_dequantized(name) for name in node.input[:2])

    def _passes(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether what a node gives are values of the tensor, rectified or not, or their means."""
        is_own = node.op_type == "Clip" and node.name.endswith("/clip")  # of fewer than 8 bits
        passes = self.is_copy(node) or (node.op_type in _ACTIVATIONS | _POOLS and not is_own)
        return passes and node.input[0] == name  # a Reshape reads a shape too

    def _is_constant(self, name: str) -> bool:
        maker = self.made_by.get(name)
        return name in self._constants or (maker is not None and maker.op_type == "Constant")

    def _is_zero(self, name: str) -> bool:
        tensor, maker = self._constants.get(name), self.made_by.get(name)
        if maker is not None and maker.op_type == "Constant":
            tensor = next((given.t for given in maker.attribute if given.name == "value"), None)
        return tensor is not None and not numpy_helper.to_array(tensor).any()

    def _is_dequantized(self, name: str) -> bool:
        return name in self.made_by and self.made_by[name].op_type == "DequantizeLinear"

    # -- tensors -------------------------------------------------------------------------

    def settled(self, name: str) -> str:
        """The tensor itself, or the ReLU of it if nothing else reads it."""
        readers = self.readers[name]
        if len(readers) != 1 or name in self.outputs or readers[0].op_type not in _ACTIVATIONS:
            return name
        return str(readers[0].output[0]) if self._passes(readers[0], name) else name

    def bears_rounding(self, name: str) -> bool:
        """Whether 8-bit layers and joins alone read a tensor, be it through copies and means."""
        if name not in self._bears:
            readers = self.readers[name]
            self._bears[name] = (
                bool(readers)
                and name not in self.outputs
                and all(self._may_round(reader, name) for reader in readers)
            )
        return self._bears[name]

    def _may_round(self, reader: onnx.NodeProto, name: str) -> bool:
        is_join = self.is_join(reader)
        if self._passes(reader, name) or (is_join and reader.op_type == "Concat"):
            return all(map(self.bears_rounding, reader.output))
        return is_join or reader.op_type in {"QuantizeLinear", "Shape"}

    def keeps_relu_apart(self, name: str, zero_point: str) -> bool:
        """Whether rounding cannot take the place of the ReLU that gives a tensor.

        It can where the least integer of the grid is 0: then it cuts off what the ReLU does.
        """
        is_rectified = name in self.made_by and self.made_by[name].op_type in _ACTIVATIONS
        return is_rectified and bool(numpy_helper.to_array(self._constants[zero_point]) != 0)

    def quantizers(self, name: str) -> list[onnx.NodeProto]:
        """The 8-bit input grids of the layers that read a tensor directly."""
        return [node for node in self.readers[name] if node.op_type == "QuantizeLinear"]

    def is_wanted(self, name: str, joins: Collection[str]) -> bool:
        """Whether an 8-bit layer or one of the joins reads a tensor, be it through copies."""
        return bool(self.quantizers(name)) or any(
            output in joins or (self._passes(node, name) and self.is_wanted(output, joins))
            for node in self.readers[name]
            for output in node.output
        )

    def origins(self, name: str) -> Iterator[str]:
        """A tensor and those that it is a copy or a ReLU of, back to what was computed."""
        yield name
        maker = self.made_by.get(name)
        if (
            maker is not None
            and maker.op_type not in _POOLS
            and self._passes(maker, maker.input[0])
        ):
            yield from self.origins(maker.input[0])
