"""Integers between layers: 8-bit grids for what a strategy says nothing about.

A strategy gives bits to what layers read. ONNX Runtime computes a layer in integers only if what it
gives is on a grid too, and so is what a residual network adds. With calibration images, three kinds
of tensors are therefore put on 8-bit grids (uint8, scale, zero point) as well:

1. what a layer with quantized inputs and weights gives (after its ReLU),
2. operands and result of every *join* (addition of branches, concatenation) that is computed in
   integers,
3. copies and means of these: slices, paddings, pools.

Which of them: `amc.quantplan.rounding`.

One tensor has one grid. Where an 8-bit layer reads it, be it through copies, that layer's own input
grid serves all; only the others' grids are calibrated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from amc.export.calibration import calibrate_grids
from amc.export.flow import Flow
from amc.export.graph import precision_words, tidy
from amc.export.layers import Array
from amc.export.pools import write_means_as_pools

_BITS = 8


@dataclass(frozen=True)
class IntegerJoins:
    """What was put on grids.

    Attributes:
        additions, concatenations: How many are computed in integers.
        calibrated: Tensors on grids of their own, that no layer gives.
    """

    additions: int = 0
    concatenations: int = 0
    calibrated: tuple[str, ...] = ()

    @property
    def stored(self) -> list[str]:
        """Names of the calibrated scales and zero points in the file."""
        return _grid_tensors(self.calibrated)


def join_in_integers(model: onnx.ModelProto, images: Tensor) -> IntegerJoins:
    """Put what lies between quantized layers on grids, in place.

    Args:
        model: As `amc.export.graph.fill_layers` leaves it.
        images: Normalised calibration images, (n, channels, height, width).

    Raises:
        CalibrationError: What is to be rounded is not finite on the images.
    """
    write_means_as_pools(model.graph)
    flow = Flow(model.graph)
    plan = _Plan.of(flow)
    for name, (scale, zero_point) in calibrate_grids(model, plan.uncalibrated, images).items():
        arrays: tuple[Array, ...] = np.asarray(scale, np.float32), np.asarray(zero_point, np.uint8)
        for tensor, array in zip(_grid_tensors([name]), arrays, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, tensor))
    _Insertion(model.graph, flow, plan).write()
    tidy(model)
    kinds = [flow.made_by[name].op_type for name in flow.joins]
    return IntegerJoins(kinds.count("Add"), kinds.count("Concat"), tuple(plan.uncalibrated))


# -- which tensors, on which grids -----------------------------------------------------------


@dataclass
class _Plan:
    """Tensors to round, in execution order.

    Attributes:
        grids: Tensor -> the grid that it is on: its scale and zero point in the file.
        uncalibrated: Those of the tensors whose own values decide the grid.
    """

    grids: dict[str, tuple[str, str]] = field(default_factory=dict)
    uncalibrated: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, flow: Flow) -> _Plan:
        plan = cls()
        needed = {flow.settled(name) for name in flow.joins}
        needed |= {name for join in flow.joins for name in flow.made_by[join].input}
        for node in flow.nodes:
            if flow.is_integer_layer(node) and flow.bears_rounding(flow.settled(node.output[0])):
                needed.add(flow.settled(node.output[0]))
        started = [name for name in flow.inputs if name in needed]
        for name in [*started, *(name for node in flow.nodes for name in node.output)]:
            source = plan._rounded_source(flow, name)
            if name in needed or (source and flow.bears_rounding(name) and flow.is_wanted(name)):
                plan._add(flow, name, source)
        return plan

    def _rounded_source(self, flow: Flow, name: str) -> str | None:
        """What the tensor is a copy or a mean of, if that is rounded."""
        maker = flow.made_by.get(name)
        if maker is None or not (flow.is_copy(maker) or flow.is_pool(maker)):
            return None
        return maker.input[0] if maker.input[0] in self.grids else None

    def _add(self, flow: Flow, name: str, source: str | None) -> None:
        grid = _grid_of_readers(flow, name)
        if grid is None and source and flow.is_copy(flow.made_by[name]):
            grid = self.grids[source]
        if grid is None:
            self.uncalibrated.append(name)
            scale, zero_point = _grid_tensors([name])
            grid = scale, zero_point
        self.grids[name] = grid


def _grid_of_readers(flow: Flow, name: str) -> tuple[str, str] | None:
    """The grid of the first layer that reads a tensor, directly or through copies alone."""
    for node in flow.quantizers(name):
        return node.input[1], node.input[2]
    if len(flow.readers[name]) == 1:
        (node,) = flow.readers[name]
        is_concatenation = node.output[0] in flow.joins and node.op_type == "Concat"
        if is_concatenation or (flow.is_copy(node) and node.input[0] == name):
            grid = _grid_of_readers(flow, node.output[0])
            return None if grid and flow.keeps_relu_apart(name, grid[1]) else grid
    return None


def _grid_tensors(names: Iterable[str]) -> list[str]:
    return [f"{name}/{key}" for name in names for key in ("scale", "zero_point")]


# -- the nodes ---------------------------------------------------------------------------------


class _Insertion:
    """QuantizeLinear and DequantizeLinear written behind the tensors of a plan."""

    def __init__(self, graph: onnx.GraphProto, flow: Flow, plan: _Plan) -> None:
        self._graph, self._flow, self._plan = graph, flow, plan
        self._values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._replaced: dict[str, str] = {}  # a layer's own input on its grid -> the shared one
        self._dropped: set[str] = set()  # outputs of nodes that nothing needs any more

    def write(self) -> None:
        for name in self._plan.grids:
            self._connect(name)
        nodes = [pair for name in self._flow.inputs for pair in self._pair(name)]
        for node in self._flow.nodes:
            node.input[:] = [self._replaced.get(name, name) for name in node.input]
            if self._pads_integers(node):
                nodes += self._integer_pad(node)
            elif node.output[0] not in self._dropped:
                nodes += [node, *(pair for name in node.output for pair in self._pair(name))]
        self._graph.ClearField("node")
        self._graph.node.extend(self._read(nodes))

    def _read(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Those of the nodes that the network's outputs depend on."""
        used, kept = set(self._flow.outputs), []
        for node in reversed(nodes):
            if used & set(node.output):
                kept.append(node)
                used.update(node.input)
        return kept[::-1]

    def _connect(self, name: str) -> None:
        """Let the readers of a tensor read it on its grid, once for all."""
        is_for_all = self._flow.bears_rounding(name)
        for reader in self._flow.readers[name]:
            if reader.op_type == "QuantizeLinear" and self._has_grid(reader, name):
                self._dropped.add(reader.output[0])
                for dequantize in self._flow.readers[reader.output[0]]:
                    self._dropped.add(dequantize.output[0])
                    self._replaced[dequantize.output[0]] = f"{name}/rounded"
            elif is_for_all or reader.output[0] in self._flow.joins:
                reader.input[:] = [f"{name}/rounded" if x == name else x for x in reader.input]

    def _has_grid(self, quantize: onnx.NodeProto, name: str) -> bool:
        pairs = zip(quantize.input[1:], self._plan.grids[name], strict=True)
        return all(bool(self._values[one] == self._values[other]) for one, other in pairs)

    def _pair(self, name: str) -> list[onnx.NodeProto]:
        if name not in self._plan.grids:
            return []
        integers, grid = f"{name}/integers", self._plan.grids[name]
        quantize = helper.make_node("QuantizeLinear", [name, *grid], [integers], integers)
        return [quantize, self._dequantize(name)]

    def _dequantize(self, name: str) -> onnx.NodeProto:
        integers, values, grid = f"{name}/integers", f"{name}/rounded", self._plan.grids[name]
        note = precision_words(_BITS, "uint8")
        return helper.make_node(
            "DequantizeLinear", [integers, *grid], [values], values, doc_string=note
        )

    def _pads_integers(self, node: onnx.NodeProto) -> bool:
        """Whether a padding has its input's grid, and nobody who reads it as floats."""
        if node.op_type != "Pad" or node.output[0] not in self._plan.grids:
            return False
        source, name = node.input[0].removesuffix("/rounded"), node.output[0]
        grids = self._plan.grids
        return grids.get(source) == grids[name] and self._flow.bears_rounding(name)

    def _integer_pad(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """ONNX Runtime moves other copies to the integers itself, but pads floats."""
        source, name = node.input[0].removesuffix("/rounded"), node.output[0]
        node.input[:] = [f"{source}/integers", node.input[1], self._plan.grids[name][1]]
        node.output[:] = [f"{name}/integers"]
        return [node, self._dequantize(name)]
