"""What every single decision costs in divergence, estimated without an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from amc.cost.choices import Choices
from amc.decisions import Decision, value_in
from amc.decisions.forms import Form
from amc.graph.graph import NetworkGraph
from amc.layers import Layer, LinearChange, OutputChange, kind_of, layer_at
from amc.objectives import DEFAULT, Objective
from amc.recovery.importance import RemovalPath, absorbs_shift
from amc.recovery.moments import CalibrationStatistics
from amc.recovery.rounding import in_form
from amc.recovery.sensitivity import divergences

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
        options: For every layer and option, shape (layers, options).
    """

    removal: tuple[FloatArray, ...]
    options: FloatArray

    def total(self, kept: Sequence[int], options: Sequence[int]) -> float:
        """Sum over all groups and layers: exact only as far as errors add."""
        groups = sum(float(curve[count]) for curve, count in zip(self.removal, kept, strict=True))
        return groups + float(self.options[np.arange(len(self.options)), list(options)].sum())


def mean_errors(found: Sequence[LayerErrors]) -> LayerErrors:
    """Of the same decisions, estimated more than once."""
    curves = zip(*(errors.removal for errors in found), strict=True)
    removal = tuple(np.mean(curve, 0) for curve in curves)
    return LayerErrors(removal, np.mean([errors.options for errors in found], 0))


def layer_errors(
    graph: NetworkGraph,
    images: Tensor,
    statistics: CalibrationStatistics,
    paths: Mapping[int, RemovalPath],
    removed: Callable[[int, int], Changes],
    choices: Choices,
    blocks: Mapping[int, float] | None = None,
    objective: Objective = DEFAULT,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> LayerErrors:
    """The errors of all decisions that a walk may take, from one backward pass.

    Args:
        images: Normalised calibration images, (n, channels, height, width).
        paths: Free group index -> its removal path.
        removed: (group index, channels kept) -> what that does to the layers that read it.
        choices: With the options on offer.
        blocks: Free group index -> the divergence without the residual block that goes with it.
        objective: What divergence is.
        sensitivities: Layer path -> nats for each unit of squared error, shape (outputs,), by
            which weights are brought into the forms that decisions ask for.

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
    former = _Former(graph, statistics, sensitivities or {})
    for layer in graph.layers:
        module = layer_at(graph.plan.module, layer.name)
        for decision in choices.decisions:
            values = [value_in(option, decision) for option in choices.options]
            for place, part in enumerate(decision.parts):
                for number in {value[place] for value in values} - {decision.unchanged[place]}:
                    inputs = statistics.values[layer.name]
                    asked = list(decision.unchanged)
                    asked[place] = number
                    formed = former.change(layer.name, decision.form(tuple(asked)))
                    change = formed or _change(decision, module, part, number, inputs)
                    table.add((part, layer.index, number), {layer.name: change})
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
    parts = list(zip(choices.parts, choices.numbers.T.tolist(), strict=True))
    of_options = [
        sum(
            np.array([found.get((part, layer.index, number), 0.0) for number in numbers])
            for part, numbers in parts
        )
        for layer in graph.layers
    ]
    return LayerErrors(tuple(removal), np.array(of_options))


Key = tuple[str, int, float]


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


class _Former:
    """What bringing weights into forms does to the outputs of layers."""

    def __init__(
        self,
        graph: NetworkGraph,
        statistics: CalibrationStatistics,
        sensitivities: Mapping[str, Tensor],
    ) -> None:
        self._graph, self._moments = graph, statistics.moments
        self._sensitivities = sensitivities

    def change(self, path: str, form: Form | None) -> LinearChange | None:
        """Of one layer; None where nothing is asked for, or its inputs' moments are not known."""
        moments = self._moments.get(path)
        if form is None or moments is None or moments.places > 1:
            return None
        layer, centred = layer_at(self._graph.plan.module, path), absorbs_shift(self._graph, path)
        groups = len(moments.mean)
        rows = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1)
        counted = self._sensitivities.get(path)
        importance = None if counted is None else counted.reshape(groups, -1)
        system = moments.system(centred)
        found = in_form(layer, rows, system, importance, forms=(form,), quick=True)
        lost = found - rows
        shift = -(lost @ moments.mean.unsqueeze(2)).flatten() if centred else None
        return LinearChange(lost.reshape(layer.weight.shape), shift)


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


def _change(
    decision: Decision, layer: Layer, part: str, number: float, inputs: Tensor
) -> OutputChange:
    """What a part of a decision does to a layer's output."""
    becomes = decision.change(layer, part, number, inputs)
    if isinstance(becomes, Tensor):
        return kind_of(layer).changed(layer, becomes)

    def change(layer: nn.Module, received: Tensor) -> Tensor:
        return kind_of(layer).moved(layer, received, becomes(received))

    return change
