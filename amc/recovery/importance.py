"""Which channels of a group go first: structured Optimal Brain Surgeon on the readers' moments.

For a reader with weight W and input moments G, let P = (G + ridge I)^-1. Dropping the columns j of
one channel and refitting all others raises the squared error of its output by
``tr(W_j (P_jj)^-1 W_j^T)`` and leaves, with the Schur complement,

    W <- W - W_j (P_jj)^-1 P_j       P <- P - P_j^T (P_jj)^-1 P_j

(Hassibi & Stork 1993 for single weights; Frantar et al. 2022 for groups of them). Each output's
error counts by its sensitivity (`amc.recovery.sensitivity`), so a channel that several layers read
costs the sum over all of them, in nats. The order in which a group's channels go, and the error
along it, are found once and looked up for every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.graph.graph import NetworkGraph
from amc.layers import Layer, is_depthwise, kind_of, layer_at
from amc.recovery.channel_scores import SCORES, Known
from amc.recovery.least_squares import RIDGE, cholesky
from amc.recovery.moments import CalibrationStatistics, Moments, by_channel
from amc.utils.progress import progress_bar

MAX_STEPS = 128  # larger groups lose several channels at a step
COMPACT = 0.25  # of a reader's columns are gone before it stops holding them
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RemovalPath:
    """The way from a whole channel group down to one channel.

    Attributes:
        order: Positions within the group, least important first, shape (size,). Keeping k
            channels means keeping the last k.
        errors: Estimated divergence, in nats, with k channels kept at index k, shape
            (size + 1,); index 0, keeping none, is infinite: what that does where a residual block
            goes is measured (`amc.problem.candidate.Compressor.errors`).
    """

    order: Order
    errors: npt.NDArray[np.float64]


class _Reader:
    """One layer that reads the group: its inverse moments and its current weight."""

    def __init__(self, inverse: Tensor, weight: Tensor, columns: Tensor) -> None:
        """
        Args:
            inverse: (groups, columns, columns). Taken over.
            weight: (groups, outputs, columns), rows times the root of their sensitivity.
            columns: Columns of each member of the group, (members, width).
        """
        self._inverse, self._columns = inverse, columns
        # What is asked for is whole columns of the weight: they lie side by side so.
        self._weight = weight.transpose(1, 2).contiguous()
        self._left = torch.ones(inverse.shape[1], dtype=torch.bool)

    def costs(self, alive: Tensor) -> Tensor:
        """Error of dropping each living member, in nats, shape (alive,)."""
        columns = self._columns[alive]  # (alive, width)
        block = self._inverse[:, columns[:, :, None], columns[:, None, :]]  # (g, alive, w, w)
        weight = self._weight[:, columns]  # (g, alive, w, outputs)
        # tr(W_j^T W_j (P_jj)^-1): as many right sides as columns, not as outputs.
        solved = torch.linalg.solve(block, weight @ weight.transpose(2, 3))
        costs: Tensor = torch.diagonal(solved, dim1=2, dim2=3).sum((0, 2))
        return costs

    def drop(self, members: Tensor) -> None:
        columns = self._columns[members].flatten()
        block = self._inverse[:, columns][:, :, columns]
        rows = self._inverse[:, columns]  # (g, w, columns)
        solved = torch.linalg.solve(block, rows)
        self._weight.baddbmm_(solved.transpose(1, 2), self._weight[:, columns], alpha=-1)
        self._inverse.baddbmm_(rows.transpose(1, 2), solved, alpha=-1)
        self._left[columns] = False
        if float(self._left.double().mean()) <= 1 - COMPACT:
            self._compact()

    def _compact(self) -> None:
        """Hold what is left alone: an update costs the square of the columns that are held."""
        left = self._left.nonzero().squeeze(1)
        self._inverse = self._inverse[:, left][:, :, left]
        self._weight = self._weight[:, left]
        self._columns = (self._left.cumsum(0) - 1)[self._columns]
        self._left = torch.ones(len(left), dtype=torch.bool)


def removal_paths(
    graph: NetworkGraph,
    statistics: CalibrationStatistics,
    sensitivities: Mapping[str, Tensor],
    importance: str = "surgeon",
    pulls: Callable[[], Mapping[str, Tensor]] = dict,
) -> dict[int, RemovalPath]:
    """For every free group, the order in which its channels go and the error along it.

    Args:
        sensitivities: Layer path -> nats for each unit of squared error, shape (outputs,).
        importance: "surgeon"; or "magnitude": by the energy of the weights that read a channel,
            inputs taken as independent, as for readers without moments; or one of `SCORES`, the
            errors along it as by "magnitude".
        pulls: As of `amc.recovery.channel_scores.Known`.

    Returns:
        Group index -> path.

    Raises:
        CalibrationError: The moments are not finite.
    """
    paths = {}
    # Of Taylor alone, and once for all groups.
    known = Known(graph, statistics, sensitivities, cache(pulls))
    moments = statistics.moments if importance == "surgeon" else {}
    with progress_bar("ranking channels", len(graph.free_groups)) as bar:
        for group in graph.free_groups:
            loose = _loose_costs(graph, statistics.values, moments, sensitivities, group.index)
            if importance in SCORES:
                members = np.flatnonzero(graph.plan.unit_group == group.index)
                paths[group.index] = _scored_path(SCORES[importance](known, members), loose)
            else:
                readers = _readers(graph, moments, sensitivities, group.index)
                paths[group.index] = _surgeon_path(readers, loose)
            bar.advance(note=group.name)
    return paths


def _scored_path(scores: Tensor, loose: Tensor) -> RemovalPath:
    """The least score first; what that costs as `_loose_costs` has it."""
    order = scores.argsort(stable=True)
    gone = loose[order].cumsum(0).numpy()
    errors = np.concatenate([[np.inf], gone[:-1][::-1], [0.0]])
    return RemovalPath(order.numpy(), errors)


def _surgeon_path(readers: list[_Reader], loose: Tensor) -> RemovalPath:
    """
    Args:
        loose: Cost of each member that no reader knows of, shape (size,).
    """
    size = len(loose)
    alive = torch.arange(size)
    order: list[int] = []
    errors = np.zeros(size + 1)
    at_once = max(1, size // MAX_STEPS)
    while len(alive) > 1:
        costs = sum((reader.costs(alive) for reader in readers), loose[alive])
        count = min(at_once, len(alive) - 1)
        chosen = torch.argsort(costs, stable=True)[:count]
        members = alive[chosen]
        for reader in readers:
            reader.drop(members)
        left = len(alive) - 1 - np.arange(count)
        errors[left] = errors[len(alive)] + np.cumsum(costs[chosen].numpy())
        order += members.tolist()
        alive = alive[torch.isin(alive, members, invert=True)]
    errors[0] = np.inf
    return RemovalPath(np.array(order + alive.tolist(), np.int64), errors)


def _readers(
    graph: NetworkGraph,
    known: Mapping[str, Moments],
    sensitivities: Mapping[str, Tensor],
    group: int,
) -> list[_Reader]:
    members = np.flatnonzero(graph.plan.unit_group == group)
    readers = []
    for path, units in graph.plan.layers.items():
        moments = known.get(path)
        if moments is None or not np.isin(units.inputs, members).any():
            continue
        layer = layer_at(graph.plan.module, path)
        columns = column_units(layer, units.inputs)[:: moments.places]
        rows = layer.weight.double().flatten(1) * sensitivities[path].sqrt()[:, None]
        weight = by_channel(rows, len(moments.mean), moments.places)
        gram = moments.system(centred=absorbs_shift(graph, path)).double()
        inverse = torch.cholesky_inverse(cholesky(gram, RIDGE, f"the inputs of layer {path!r}"))
        where = np.stack([np.flatnonzero(columns == unit) for unit in members])
        readers.append(_Reader(inverse, weight, torch.from_numpy(where)))
    return readers


def column_units(layer: Layer, inputs: npt.NDArray[np.int64]) -> Order:
    """The unit of every column of a layer's unfolded weight (of its first group), (columns,)."""
    return np.repeat(inputs[: layer.weight.shape[1]], math.prod(layer.weight.shape[2:]))


def absorbs_shift(graph: NetworkGraph, path: str) -> bool:
    """Whether a constant shift of the layer's output can be undone (by its bias, or its BN)."""
    layer = graph.plan.module.get_submodule(path)
    return getattr(layer, "bias", None) is not None or path in graph.plan.folds.values()


def _loose_costs(
    graph: NetworkGraph,
    values: Mapping[str, Tensor],
    known: Mapping[str, Moments],
    sensitivities: Mapping[str, Tensor],
    group: int,
) -> Tensor:
    """Error of dropping each member, in nats, at the readers whose moments are not known."""
    members = np.flatnonzero(graph.plan.unit_group == group)
    position = {unit: place for place, unit in enumerate(members.tolist())}
    costs = torch.zeros(len(members), dtype=torch.float64)
    for path, units in graph.plan.layers.items():
        layer = layer_at(graph.plan.module, path)
        if path in known or is_depthwise(layer):
            continue
        columns = column_units(layer, units.inputs)
        reads = np.flatnonzero(np.isin(columns, members))
        per_column = kind_of(layer).column_costs(layer, values[path], sensitivities[path])
        places = torch.tensor([position[unit] for unit in columns[reads].tolist()])
        costs.index_add_(0, places.long(), per_column[torch.from_numpy(reads)])
    return costs
