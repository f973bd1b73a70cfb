"""Who reads and who makes a tensor of a written graph, and what of it may be rounded.

Three kinds of nodes lie between layers without being one. A *join* (an addition of two branches, a
concatenation) may be computed in integers. A *copy* gives values of its input on, a *pool* their
means: rounded or not is the same to them, what counts is who reads their output. Everything else
(a sigmoid, the network's scores, an input grid of fewer than 8 bits) takes float values. Told
these, `amc.quantplan.rounding` says which tensors may be rounded, as it does for prices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from amc.export.graph import LAYER_NOTE, outputs
from amc.graph.types import TensorInfo
from amc.quantplan.rounding import Rounding

_COPIES = {
    *("Slice", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"),
    *("MaxPool", "Split", "Gather", "DepthToSpace", "SpaceToDepth"),
}
_ACTIVATIONS = {"Relu", "Clip"}
_POOLS = {"GlobalAveragePool", "AveragePool"}
_JOINS = {"Add": "add", "Concat": "concat"}
_GRIDS = {"QuantizeLinear", "DequantizeLinear"}
# What a layer may be, by index: whether it reads 8-bit values, whether it multiplies integers.
_READS = [(rounds, integer) for rounds in (False, True) for integer in (False, True)]


class Flow:
    """The tensors of a graph as `amc.export.graph.fill_layers` leaves it.

    Attributes:
        joins: The outputs of the joins to compute in integers.
    """

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
        self._tensors: list[TensorInfo] = []
        self._place: dict[str, int] = {}  # of names that are tensors between layers
        self._reads: list[int] = []  # of every call of a layer, an index of `_READS`
        for name in self.inputs:
            self._add([name], "input", [])
        for node in self.nodes:
            self._visit(node)
        self._rounding = Rounding(self._tensors, *map(list, zip(*_READS, strict=True)))
        joins = set(self._rounding.integer_joins(self._reads))
        self.joins = [
            node.output[0]
            for node in self.nodes
            if self._is_join(node) and self._place.get(node.output[0]) in joins
        ]

    # -- the tensors between layers ------------------------------------------------------

    def _visit(self, node: onnx.NodeProto) -> None:
        """Note the tensors that a node gives, or where it is a layer's grid, whose they are."""
        known = [name for name in node.input if name in self._place]
        if node.doc_string.startswith(LAYER_NOTE):
            integer = self.is_integer_layer(node)
            rounds = self._is_dequantized(node.input[0]) and not self._is_clipped(node.input[0])
            self._reads.append(_READS.index((rounds, integer)))
            self._add(node.output, "layer", known, len(self._reads) - 1)
        elif node.op_type == "Shape" or not known:
            return
        elif self._is_own_clip(node) or node.op_type in _GRIDS or self._settles(node):
            self._place[node.output[0]] = self._place[known[0]]
        else:
            self._add_computed(node, known)

    def _add_computed(self, node: onnx.NodeProto, known: list[str]) -> None:
        kind = self._kind(node)
        if kind in _JOINS.values():
            for name in node.input:
                if name not in self._place:  # of parameters alone
                    self._add([name], "input", [])
            known = list(node.input)
        elif kind != "other" and len(known) > 1:  # it reads a shape, say, that was computed
            self._add([], "other", known[1:])
            known = known[:1]
        self._add(node.output, kind, known)

    def _add(
        self, names: Sequence[str], kind: str, sources: Sequence[str], layer: int = -1
    ) -> None:
        places = tuple(self._place[name] for name in sources)
        for name in names or [""]:
            self._place |= {name: len(self._tensors)} if name else {}
            is_output = bool({name, self.settled(name)} & self.outputs)
            self._tensors.append(TensorInfo(kind, places, layer, is_output=is_output))

    def _kind(self, node: onnx.NodeProto) -> str:
        if self._is_join(node):
            return _JOINS[node.op_type]
        if node.input[0] not in self._place or not self._passes(node, node.input[0]):
            return "other"
        return "mean" if self.is_pool(node) else "copy"

    # -- kinds of nodes ------------------------------------------------------------------

    def _is_join(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds or concatenates what was computed."""
        return node.op_type in _JOINS and not any(map(self._is_constant, node.input))

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

    def _is_own_clip(self, node: onnx.NodeProto) -> bool:
        """Whether a node clips to a layer's grid of fewer than 8 bits."""
        return node.op_type == "Clip" and node.name.endswith("/clip")

    def _is_clipped(self, name: str) -> bool:
        """Whether a dequantized tensor is on such a grid."""
        (quantized,) = self.made_by[self.made_by[name].input[0]].input[:1]
        return quantized in self.made_by and self._is_own_clip(self.made_by[quantized])

    def _passes(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether what a node gives are values of the tensor, rectified or not, or their means."""
        passes = self.is_copy(node) or node.op_type in _ACTIVATIONS | _POOLS
        # A Reshape reads a shape too.
        return passes and not self._is_own_clip(node) and node.input[0] == name

    def _settles(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _ACTIVATIONS and self.settled(node.input[0]) == node.output[0]

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
        return name in self._place and self._rounding.bears(self._place[name], self._reads)

    def is_wanted(self, name: str) -> bool:
        """Whether an 8-bit layer or an integer join reads a tensor, be it through copies."""
        return name in self._place and self._rounding.is_wanted(self._place[name], self._reads)

    def keeps_relu_apart(self, name: str, zero_point: str) -> bool:
        """Whether rounding cannot take the place of the ReLU that gives a tensor.

        It can where the least integer of the grid is 0: then it cuts off what the ReLU does.
        """
        is_rectified = name in self.made_by and self.made_by[name].op_type in _ACTIVATIONS
        return is_rectified and bool(numpy_helper.to_array(self._constants[zero_point]) != 0)

    def quantizers(self, name: str) -> list[onnx.NodeProto]:
        """The 8-bit input grids of the layers that read a tensor directly."""
        return [node for node in self.readers[name] if node.op_type == "QuantizeLinear"]
