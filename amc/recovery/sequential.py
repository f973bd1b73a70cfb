"""Repairing a smaller network layer by layer, each to what it really receives.

The original and the smaller network run side by side on the calibration images, operator by
operator. At each layer, moments are taken of the input that the *smaller* network's layer receives
(after everything repaired before it) and of the output that the *original*'s layer gives; their
least-squares solution is the new weight. Where the layer's (normalised) output is added to a
stream, the target is the original sum minus the smaller network's own stream: each block repairs
what earlier blocks broke.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from amc.compress.quantization import (
    QuantizedConv2d,
    QuantizedLinear,
    quantize_weight,
    weight_scale,
)
from amc.compress.removal import KeepMask
from amc.graph.graph import NetworkGraph
from amc.progress import progress_bar
from amc.recovery.least_squares import cholesky
from amc.recovery.moments import BATCH, columns_of, input_rows, positions_of
from amc.strategy import FLOAT_BITS

RIDGE = 1e-3  # of the mean input energy, towards the weight the layer has
MAX_COLUMNS = 2304  # wider layers keep the weight they have
MEMORY_BYTES = 2 * 2**30  # of activations held at a time; fewer images where they are larger
SMALLEST_FACTOR = 1e-3  # a channel that BN scales by less cannot repair anything

_ADDITIONS = (operator.add, operator.iadd, torch.add)

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class _Stream:
    """A layer whose normalised output is added to something that is computed before it."""

    add: fx.Node
    other: fx.Node


@dataclass(frozen=True)
class _Sums:
    """Sums of x x^T, x y^T, x and y over so many rows."""

    gram: Tensor
    cross: Tensor
    x: Tensor
    y: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Sums:
        """Of x (groups, rows, columns) and y (groups, rows, outputs / groups)."""
        columns = x.transpose(1, 2)
        return cls(columns @ x, columns @ y, x.sum(1), y.sum(1), x.shape[1])

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.x + other.x,
            self.y + other.y,
            self.rows + other.rows,
        )

    def moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        """E[x x^T] (groups, columns, columns), E[x y^T] (groups, columns, outputs / groups)."""
        gram, cross = self.gram / self.rows, self.cross / self.rows
        if not centred:
            return gram, cross
        x, y = self.means()
        return gram - x.unsqueeze(2) * x.unsqueeze(1), cross - x.unsqueeze(2) * y.unsqueeze(1)

    def means(self) -> tuple[Tensor, Tensor]:
        """E[x] (groups, columns), E[y] (groups, outputs / groups)."""
        return self.x / self.rows, self.y / self.rows


def repair_sequentially(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    images: Tensor,
    seed: int = 0,
    max_columns: int = MAX_COLUMNS,
) -> None:
    """Refit every layer of ``smaller`` in place, in execution order.

    Depthwise layers, layers that are called more than once, and layers of more than
    ``max_columns`` inputs (times kernel area) keep the weights that they have.

    Args:
        smaller: The network with channels removed (and layers quantized).
        keep: The units that it kept.
        images: Normalised calibration images, (n, channels, height, width).
    """
    nodes = list(graph.plan.module.graph.nodes)
    with torch.no_grad(), progress_bar("repairing", len(graph.plan.layers)) as bar:
        images = images[: _affordable(graph, smaller, keep, images)]
        run = _SideBySide(graph, smaller, keep, images, seed, max_columns)
        for node in nodes:
            if node.op == "call_module" and node.target in graph.plan.layers:
                run.refit(node)
                bar.advance(note=str(node.target))
            run.advance(node)


def _affordable(
    graph: NetworkGraph, smaller: fx.GraphModule, keep: KeepMask, images: Tensor
) -> int:
    """How many images' activations fit into memory, one batch at least."""
    run = _SideBySide(graph, smaller, keep, images[:1], 0, 0)
    largest = 1
    for node in graph.plan.module.graph.nodes:
        run.advance(node)
        largest = max(largest, run.held_bytes())
    return max(BATCH, MEMORY_BYTES // largest)


class _SideBySide:
    """Values of both networks at every live node, batch by batch."""

    def __init__(
        self,
        graph: NetworkGraph,
        smaller: fx.GraphModule,
        keep: KeepMask,
        images: Tensor,
        seed: int,
        max_columns: int,
    ) -> None:
        self._graph, self._keep, self._seed = graph, keep, seed
        self._max_columns = max_columns
        self._networks = graph.plan.module, smaller
        self._batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        # node -> for (original, smaller): its value on every batch
        self._values: dict[fx.Node, tuple[list[object], list[object]]] = {}
        nodes = list(graph.plan.module.graph.nodes)
        self._left = {node: len(node.users) for node in nodes}
        self._order = {node: place for place, node in enumerate(nodes)}
        self._calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}
        self._streams = _find_streams(graph, self._norms)

    def held_bytes(self) -> int:
        """Size of all values that are held."""
        return sum(
            value.nbytes
            for sides in self._values.values()
            for side in sides
            for value in side
            if isinstance(value, Tensor)
        )

    def advance(self, node: fx.Node) -> None:
        """Compute a node's values in both networks; forget what nothing needs any more."""
        if node.op == "output":
            return
        batches = range(len(self._batches))
        self._values[node] = (
            [self._run(node, 0, batch) for batch in batches],
            [self._run(node, 1, batch) for batch in batches],
        )
        for used in node.all_input_nodes:
            self._left[used] -= 1
            if self._left[used] == 0:
                self._values.pop(used, None)

    def _run(self, node: fx.Node, side: int, batch: int) -> object:
        network = self._networks[side]
        if node.op == "placeholder":
            return self._batches[batch]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(network)

        def value_of(argument: Any) -> Any:
            is_node = isinstance(argument, fx.Node)
            return self._values[argument][side][batch] if is_node else argument

        args, kwargs = map_aggregate((node.args, node.kwargs), value_of)
        if node.op == "call_module":
            return network.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    # -- one layer ----------------------------------------------------------------------------

    def refit(self, node: fx.Node) -> None:
        """Write the least-squares solution into the smaller network's layer."""
        original, layer = (network.get_submodule(str(node.target)) for network in self._networks)
        assert isinstance(original, Layer)
        assert isinstance(layer, Layer)
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        repeated = self._calls[str(node.target)] > 1
        if depthwise or repeated or columns_of(layer) > self._max_columns:
            return
        norm = self._norm_after(node)
        sums = self._sums(node, layer, original, norm)
        centred = layer.bias is not None or norm is not None
        gram, cross = sums.moments(centred)
        _change_weight(layer, gram, cross)
        if centred:
            _set_mean(layer, norm, *sums.means())

    def _norm_after(self, node: fx.Node) -> Norm | None:
        path = self._norms.get(str(node.target))
        norm = None if path is None else self._networks[1].get_submodule(path)
        return norm if isinstance(norm, Norm) else None

    def _sums(self, node: fx.Node, layer: Layer, original: Layer, norm: Norm | None) -> _Sums:
        """Of what the smaller network's layer receives (x), and should give (y)."""
        source = node.all_input_nodes[0]
        units = self._graph.plan.layers[str(node.target)].outputs
        outputs = torch.from_numpy(np.flatnonzero(self._keep[units]))
        stream = self._usable_stream(node, norm)
        generator = torch.Generator().manual_seed(self._seed)
        total: _Sums | None = None
        for batch in range(len(self._batches)):
            received = self._values[source][1][batch]
            assert isinstance(received, Tensor)
            if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
                received = layer._quantized_input(received)
            target = original(self._values[source][0][batch])
            target = self._target(target, outputs, stream, norm, batch)
            state = generator.get_state()
            x = input_rows(layer, received, generator).double()
            generator.set_state(state)  # the same positions
            sums = _Sums.of(x, _output_rows(layer, target, generator).double())
            total = sums if total is None else total + sums
        assert total is not None
        return total

    # -- targets ------------------------------------------------------------------------------

    def _usable_stream(self, node: fx.Node, norm: Norm | None) -> _Stream | None:
        stream = self._streams.get(str(node.target))
        if stream is None or self._order[stream.other] > self._order[node]:
            return None
        if norm is not None and float(_factor(norm).abs().min()) < SMALLEST_FACTOR:
            return None
        return stream

    def _target(
        self, full: Tensor, outputs: Tensor, stream: _Stream | None, norm: Norm | None, batch: int
    ) -> Tensor:
        """What the layer should give: (n, kept outputs, height, width) or (n, kept outputs).

        Args:
            full: What the original's layer gives.
        """
        dim = 1 if full.dim() == 4 else full.dim() - 1
        target = full.index_select(dim, outputs)
        if stream is None:
            return target
        theirs, ours = (values[batch] for values in self._values[stream.other])
        assert isinstance(theirs, Tensor)
        assert isinstance(ours, Tensor)
        if theirs.shape != full.shape:
            return target  # added by broadcasting: not a stream of the same channels
        difference = theirs.index_select(dim, outputs) - ours
        if norm is not None:  # it scales what the layer gives: undo that for the correction
            shape = [1] * full.dim()
            shape[dim] = -1
            difference = difference / _factor(norm).view(shape)
        return target + difference


def _factor(norm: Norm) -> Tensor:
    """What a batch normalisation multiplies its channels by, in evaluation."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return factor * norm.weight if norm.affine else factor


def _change_weight(layer: Layer, gram: Tensor, cross: Tensor) -> None:
    """Write the weight V that minimises E ||y - V x||^2 + ridge ||V - weight||^2."""
    now = layer.weight.double().reshape(len(gram), -1, gram.shape[1])
    right = cross - gram @ now.transpose(1, 2)
    change = torch.cholesky_solve(right, cholesky(gram, RIDGE)).transpose(1, 2)
    weight = (now + change).reshape(layer.weight.shape).to(layer.weight.dtype)
    if isinstance(layer, (QuantizedConv2d, QuantizedLinear)) and layer.bits.weight != FLOAT_BITS:
        layer.weight_scale = weight_scale(weight, layer.bits.weight)
        weight = quantize_weight(weight, layer.weight_scale, layer.bits.weight)
    layer.weight.data = weight


def _set_mean(layer: Layer, norm: Norm | None, x_mean: Tensor, y_mean: Tensor) -> None:
    """Make the layer's output right on average, by its bias or by the mean that follows it."""
    weight = layer.weight.double().reshape(len(x_mean), -1, x_mean.shape[1])
    lacks = y_mean - (weight @ x_mean.unsqueeze(2)).squeeze(2)  # (groups, outputs / groups)
    lacks = lacks.flatten().to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.data = lacks
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.data = norm.running_mean - lacks


def _output_rows(layer: nn.Module, y: Tensor, generator: torch.Generator) -> Tensor:
    """Outputs at the positions that `input_rows` samples, (groups, rows, outputs / groups)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    assert isinstance(layer, nn.Conv2d)
    flat = y.flatten(2)  # (n, outputs, positions)
    flat = flat[:, :, positions_of(flat.shape[2], generator)]
    grouped = flat.reshape(len(y), layer.groups, -1, flat.shape[2])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def _find_streams(graph: NetworkGraph, norms: Mapping[str, str]) -> dict[str, _Stream]:
    """Layers (with their BN) that feed one addition of two tensors of one shape.

    Args:
        norms: Layer path -> path of the batch normalisation that only it feeds.
    """
    streams: dict[str, _Stream] = {}
    for node in graph.plan.module.graph.nodes:
        if node.op != "call_module" or node.target not in graph.plan.layers:
            continue
        last = next(iter(node.users)) if str(node.target) in norms else node
        if len(last.users) != 1:
            continue
        add = next(iter(last.users))
        others = [other for other in add.all_input_nodes if other is not last]
        plain = add.op == "call_function" and len(add.args) == 2 and not add.kwargs
        if plain and add.target in _ADDITIONS and len(others) == 1:
            streams[str(node.target)] = _Stream(add, others[0])
    return streams
