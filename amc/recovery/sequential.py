"""Repairing a smaller network layer by layer, each to what it really receives.

At each layer, moments are taken of the input that the *smaller* network's layer receives (after
everything repaired before it) and of the output that the *original*'s layer gives; their
least-squares solution is the new weight, rounded with error feedback where bits are few. Where the
layer's (normalised) output is added to a stream, the target is the original sum minus the smaller
network's own stream: each block repairs what earlier blocks broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

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
from amc.recovery.moments import POSITIONS_PER_IMAGE, columns_of, input_rows
from amc.recovery.products import cross_moments, second_moments
from amc.recovery.reference import (
    SMALLEST_FACTOR,
    Execution,
    Layer,
    Norm,
    Reference,
    Target,
    gather_reference,
    output_rows,
)
from amc.recovery.rounding import round_with_feedback
from amc.strategy import FLOAT_BITS

RIDGE = 1e-3  # of the mean input energy, towards the weight the layer has
MAX_COLUMNS = 2304  # wider layers keep the weight they have


class _Sums:
    """Sums over rows of inputs x and outputs y, in float64.

    Rows count from a constant near their mean: a covariance that is small beside the squared
    mean keeps its digits, though the products are made in float32.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        """
        Args:
            x: First rows, (groups, rows, columns).
            y: First rows, (groups, rows, outputs / groups).
        """
        self._x_shift, self._y_shift = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        self._gram = self._cross = self._x = self._y = torch.zeros((), dtype=torch.float64)
        self._rows = 0
        self.add(x, y)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count further rows."""
        x, y = x - self._x_shift, y - self._y_shift
        self._gram = self._gram + second_moments(x).double()
        self._cross = self._cross + cross_moments(x, y).double()
        self._x, self._y = self._x + x.sum(1).double(), self._y + y.sum(1).double()
        self._rows += x.shape[1]

    def moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        """E[x x^T] (groups, columns, columns), E[x y^T] (groups, columns, outputs / groups)."""
        x, y = self._x / self._rows, self._y / self._rows
        gram = self._gram / self._rows - x.unsqueeze(2) * x.unsqueeze(1)
        cross = self._cross / self._rows - x.unsqueeze(2) * y.unsqueeze(1)
        if not centred:
            x, y = self.means()
            gram = gram + x.unsqueeze(2) * x.unsqueeze(1)
            cross = cross + x.unsqueeze(2) * y.unsqueeze(1)
        return gram, cross

    def means(self) -> tuple[Tensor, Tensor]:
        """E[x] (groups, columns), E[y] (groups, outputs / groups)."""
        return (
            self._x / self._rows + self._x_shift.squeeze(1),
            self._y / self._rows + self._y_shift.squeeze(1),
        )


def repair_sequentially(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    images: Tensor,
    seed: int = 0,
    max_columns: int = MAX_COLUMNS,
    positions: int = POSITIONS_PER_IMAGE,
    stream_correction: bool = True,
) -> None:
    """Refit every layer of ``smaller`` in place, in execution order.

    Layers that are called more than once, and layers of more than ``max_columns`` inputs (times
    kernel area) keep the weights that they have.

    Args:
        smaller: The network with channels removed (and layers quantized).
        keep: The units that it kept.
        images: Normalised calibration images, (n, channels, height, width).
        positions: Output positions of each image that the moments are taken over.
        stream_correction: Aim at the original sum of a residual addition, not at the layer's
            own original output.
    """
    with progress_bar("repairing", 2 * len(graph.plan.layers)) as bar:

        def done(path: str) -> None:
            bar.advance(note=path)

        reference = gather_reference(
            graph,
            images,
            positions=positions,
            seed=seed,
            stream_correction=stream_correction,
            on_layer=done,
        )
        refit_layers(graph, smaller, keep, reference, max_columns=max_columns, on_layer=done)


def refit_layers(
    graph: NetworkGraph,
    smaller: fx.GraphModule,
    keep: KeepMask,
    reference: Reference,
    *,
    max_columns: int = MAX_COLUMNS,
    ridge: float = RIDGE,
    feedback: bool = True,
    on_layer: Callable[[str], None] = lambda _: None,
) -> None:
    """As `repair_sequentially`, with what the original gives already known.

    Args:
        ridge: Pull towards the weights that the layers have, in mean input energies.
        feedback: Round weights with error feedback; else to the nearest, which is faster.
        on_layer: Called with the path of each layer that is done.
    """
    repair = _Repair(graph, smaller, keep, reference, max_columns, ridge, feedback)
    left = set(graph.plan.layers)
    with torch.no_grad():
        for node in repair.run.nodes:
            if node.op == "call_module" and node.target in left:
                repair.refit(node)
                left.remove(str(node.target))
                on_layer(str(node.target))
            repair.run.advance(node)


class _Repair:
    """The smaller network on the calibration images, repaired on the way."""

    def __init__(
        self,
        graph: NetworkGraph,
        smaller: fx.GraphModule,
        keep: KeepMask,
        reference: Reference,
        max_columns: int,
        ridge: float,
        feedback: bool,
    ) -> None:
        self._graph, self._smaller, self._keep = graph, smaller, keep
        self._reference, self._max_columns = reference, max_columns
        self._ridge, self._feedback = ridge, feedback
        self.run = Execution(smaller, reference.batches)
        calls = (str(node.target) for node in self.run.nodes if node.op == "call_module")
        self._calls = Counter(calls)
        self._norms = {layer: norm for norm, layer in graph.plan.folds.items()}
        self._stream_nodes = _same_nodes(graph, smaller, reference)

    def refit(self, node: fx.Node) -> None:
        """Write the least-squares solution into the smaller network's layer."""
        path = str(node.target)
        layer = self._smaller.get_submodule(path)
        assert isinstance(layer, Layer)
        if self._calls[path] > 1 or columns_of(layer) > self._max_columns:
            return
        norm = self._norm_after(path)
        sums = self._sums(node, layer, norm)
        centred = layer.bias is not None or norm is not None
        gram, cross = sums.moments(centred)
        _change_weight(layer, gram, cross, self._ridge, self._feedback)
        if centred:
            self._set_mean(path, layer, norm, *sums.means())

    def _set_mean(
        self, path: str, layer: Layer, norm: Norm | None, x_mean: Tensor, y_mean: Tensor
    ) -> None:
        """Make the layer's output right on average, by its bias or by the mean that follows it."""
        weight = layer.weight.double().reshape(len(x_mean), -1, x_mean.shape[1])
        lacks = y_mean - (weight @ x_mean.unsqueeze(2)).squeeze(2)  # (groups, outputs / groups)
        lacks = lacks.flatten().to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias.data = lacks
        elif norm is not None and norm.running_mean is not None:
            # From the original's mean: the smaller network's may have been shifted already.
            original = self._graph.plan.module.get_submodule(self._norms[path])
            assert isinstance(original, Norm)
            assert original.running_mean is not None
            kept = self._keep[self._graph.plan.layers[path].outputs]
            norm.running_mean.data = original.running_mean[torch.from_numpy(kept)] - lacks

    def _norm_after(self, path: str) -> Norm | None:
        norm = self._norms.get(path)
        module = None if norm is None else self._smaller.get_submodule(norm)
        return module if isinstance(module, Norm) else None

    def _sums(self, node: fx.Node, layer: Layer, norm: Norm | None) -> _Sums:
        """Of what the smaller network's layer receives (x), and should give (y)."""
        path, reference = str(node.target), self._reference
        units = self._graph.plan.layers[path].outputs
        outputs = torch.from_numpy(np.flatnonzero(self._keep[units]))
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        total: _Sums | None = None
        for batch, received in enumerate(self.run.values(node.all_input_nodes[0])):
            assert isinstance(received, Tensor)
            if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
                received = layer._quantized_input(received)
            generator = reference.generator(batch)
            x = input_rows(layer, received, generator, reference.positions)
            target = reference.targets[path][batch]
            y = self._target(path, layer, target, outputs, norm, batch)
            y = y.reshape(len(y), groups, -1).transpose(0, 1)  # (groups, rows, outputs / groups)
            if total is None:
                total = _Sums(x, y)
            else:
                total.add(x, y)
        assert total is not None
        return total

    def _target(
        self,
        path: str,
        layer: Layer,
        target: Target,
        outputs: Tensor,
        norm: Norm | None,
        batch: int,
    ) -> Tensor:
        """What the layer should give, shape (rows, kept outputs)."""
        wanted = target.output.index_select(1, outputs)
        factor = None if norm is None else _factor(norm)
        if target.stream is None or path not in self._stream_nodes:
            return wanted
        if factor is not None and float(factor.abs().min()) < SMALLEST_FACTOR:
            return wanted
        ours = self.run.values(self._stream_nodes[path])[batch]
        assert isinstance(ours, Tensor)
        generator = self._reference.generator(batch)
        ours = output_rows(layer, ours, generator, self._reference.positions)
        difference = target.stream.index_select(1, outputs) - ours
        # BN scales what the layer gives: undo that for the correction.
        return wanted + (difference if factor is None else difference / factor)


def _same_nodes(
    graph: NetworkGraph, smaller: fx.GraphModule, reference: Reference
) -> dict[str, fx.Node]:
    """The streams' nodes in the smaller network's own graph."""
    pairs = zip(graph.plan.module.graph.nodes, smaller.graph.nodes, strict=True)
    ours = {node.name: other for node, other in pairs}
    return {path: ours[stream.other.name] for path, stream in reference.streams.items()}


def _factor(norm: Norm) -> Tensor:
    """What a batch normalisation multiplies its channels by, in evaluation."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return factor * norm.weight if norm.affine else factor


def _change_weight(layer: Layer, gram: Tensor, cross: Tensor, ridge: float, feedback: bool) -> None:
    """Write the weight V that minimises E ||y - V x||^2 + ridge ||V - weight||^2."""
    now = layer.weight.double().reshape(len(gram), -1, gram.shape[1])
    right = cross - gram @ now.transpose(1, 2)
    change = torch.cholesky_solve(right, cholesky(gram, ridge)).transpose(1, 2)
    weight = (now + change).reshape(layer.weight.shape).to(layer.weight.dtype)
    if isinstance(layer, (QuantizedConv2d, QuantizedLinear)) and layer.bits.weight != FLOAT_BITS:
        layer.weight_scale = weight_scale(weight, layer.bits.weight)
        grid = layer.weight_scale, layer.bits.weight
        weight = (
            round_with_feedback(weight, gram, *grid) if feedback else quantize_weight(weight, *grid)
        )
    layer.weight.data = weight
