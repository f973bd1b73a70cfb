"""What every single decision costs in divergence, estimated without an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.compress.quantization import (
    activation_range,
    quantize_weight,
    round_to_grid,
    weight_scale,
)
from amc.graph.graph import NetworkGraph
from amc.layers import Layer, OutputChange, kind_of, layer_at
from amc.objectives import DEFAULT, Objective
from amc.recovery.importance import RemovalPath
from amc.recovery.moments import CalibrationStatistics
from amc.recovery.sensitivity import divergences
from amc.strategy import FLOAT_BITS, Bits

FloatArray = npt.NDArray[np.float64]
Changes = Mapping[str, OutputChange]
"""Layer path -> what a decision does to the layer's output."""

RATIOS = (0.85, 0.7, 0.5, 0.3, 0.15)  # at which a group's error is estimated; between: the path's
SMALLEST = 1e-9  # nats; an error below it is none


@dataclass(frozen=True)
class LayerErrors:
    """Estimated divergence from the original's outputs, in nats, that decisions cause one by one.

    Attributes:
        removal: For every channel group, the error by the number of channels kept, shape
            (size + 1,): the last is 0, fewer channels never err less; the first is infinite
            unless a residual block may go with the group, and then no other is larger.
        bits: For every layer and bit pair on offer, shape (layers, pairs).
    """

    removal: tuple[FloatArray, ...]
    bits: FloatArray

    def total(self, kept: Sequence[int], pairs: Sequence[int]) -> float:
        """Sum over all groups and layers: exact only as far as errors add."""
        groups = sum(float(curve[count]) for curve, count in zip(self.removal, kept, strict=True))
        return groups + float(self.bits[np.arange(len(self.bits)), list(pairs)].sum())


def mean_errors(found: Sequence[LayerErrors]) -> LayerErrors:
    """Of the same decisions, estimated more than once."""
    curves = zip(*(errors.removal for errors in found), strict=True)
    removal = tuple(np.mean(curve, 0) for curve in curves)
    return LayerErrors(removal, np.mean([errors.bits for errors in found], 0))


def layer_errors(
    graph: NetworkGraph,
    images: Tensor,
    statistics: CalibrationStatistics,
    paths: Mapping[int, RemovalPath],
    removed: Callable[[int, int], Changes],
    pairs: Sequence[Bits],
    blocks: Mapping[int, float] | None = None,
    objective: Objective = DEFAULT,
) -> LayerErrors:
    """The errors of all decisions that a walk may take, from one backward pass.

    Args:
        images: Normalised calibration images, (n, channels, height, width).
        paths: Free group index -> its removal path.
        removed: (group index, channels kept) -> what that does to the layers that read it.
        pairs: Bit-widths on offer.
        blocks: Free group index -> the divergence without the residual block that goes with it.
        objective: What divergence is.

    Raises:
        CalibrationError: Gradients are not finite.
    """
    table = _Table()
    levels = {
        group: sorted({max(1, round(ratio * (len(path.errors) - 1))) for ratio in RATIOS})
        for group, path in paths.items()
    }
    for index, counts in levels.items():
        for count in counts:
            table.add(("removal", index, count), removed(index, count))
    for layer in graph.layers:
        module = layer_at(graph.plan.module, layer.name)
        for width in {pair.weight for pair in pairs} - {FLOAT_BITS}:
            table.add(("weight", layer.index, width), {layer.name: _rounded_weight(module, width)})
        for width in {pair.activation for pair in pairs} - {FLOAT_BITS}:
            change = _rounded_input(statistics.values[layer.name], width)
            table.add(("input", layer.index, width), {layer.name: change})
    found = table.estimate(graph, images, objective)
    removal = []
    for group in graph.groups:
        measured = {k: found["removal", group.index, k] for k in levels.get(group.index, ())}
        whole = np.zeros(group.size + 1)
        path = paths.get(group.index)
        curve = whole if path is None else _curve(path, measured)
        without = (blocks or {}).get(group.index)
        if without is not None:  # keeping some of a branch is no worse than keeping none
            curve[0] = without
            curve = np.minimum(curve, without)
        removal.append(curve)
    bits = [
        [
            found.get(("weight", layer.index, pair.weight), 0.0)
            + found.get(("input", layer.index, pair.activation), 0.0)
            for pair in pairs
        ]
        for layer in graph.layers
    ]
    return LayerErrors(tuple(removal), np.array(bits))


Key = tuple[str, int, int]


class _Table:
    """Changes by name, estimated together."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._changes: dict[str, list[tuple[int, OutputChange]]] = {}

    def add(self, key: Key, changes: Changes) -> None:
        for path, change in changes.items():
            self._changes.setdefault(path, []).append((len(self._keys), change))
        self._keys.append(key)

    def estimate(
        self, graph: NetworkGraph, images: Tensor, objective: Objective
    ) -> dict[Key, float]:
        values = divergences(graph, images, self._changes, len(self._keys), objective=objective)
        return dict(zip(self._keys, values.tolist(), strict=True))


def _curve(path: RemovalPath, measured: Mapping[int, float]) -> FloatArray:
    """Errors by channels kept: the path's own, brought to the level of what was measured.

    The factor between the two is interpolated over the channels kept, as a logarithm.
    """
    counts = sorted(measured)
    factors = [
        np.log((measured[count] + SMALLEST) / (path.errors[count] + SMALLEST)) for count in counts
    ]
    factor = np.exp(np.interp(np.arange(len(path.errors)), counts, factors))
    errors = path.errors * factor
    return np.maximum.accumulate(errors[::-1])[::-1]  # fewer channels never err less


def _rounded_weight(layer: Layer, width: int) -> OutputChange:
    weight = layer.weight.detach()
    rounded = quantize_weight(weight, weight_scale(weight, width), width)
    return kind_of(layer).changed(layer, rounded)


def _rounded_input(values: Tensor, width: int) -> OutputChange:
    scale, zero = map(torch.tensor, activation_range(values, width))

    def change(layer: nn.Module, received: Tensor) -> Tensor:
        rounded = round_to_grid(received, scale, zero, width)
        return kind_of(layer).moved(layer, received, rounded)

    return change
