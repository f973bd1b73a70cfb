"""Which channels of a group go first: structured Optimal Brain Surgeon on the readers' moments.

For a reader with weight W and input moments G, let P = (G + ridge I)^-1. Dropping the columns j of
one channel and refitting all others raises the squared error of its output by
``tr(W_j (P_jj)^-1 W_j^T)`` and leaves, with the Schur complement,

    W <- W - W_j (P_jj)^-1 P_j       P <- P - P_j^T (P_jj)^-1 P_j

(Hassibi & Stork 1993 for single weights; Frantar et al. 2022 for groups of them). A channel that
several layers read costs the sum of their errors, each relative to the energy of its output. The
order in which a group's channels go is found once and looked up for every candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc.graph.graph import NetworkGraph
from amc.graph.signatures import is_depthwise
from amc.progress import progress_bar
from amc.recovery.least_squares import RIDGE, cholesky
from amc.recovery.moments import CalibrationStatistics

MAX_STEPS = 128  # larger groups lose several channels at a step
Order = npt.NDArray[np.int64]


@dataclass
class _Reader:
    """One layer that reads the group: its inverse moments and its current weight."""

    inverse: Tensor  # (groups, columns, columns)
    weight: Tensor  # (groups, outputs, columns)
    columns: Tensor  # (members, width): columns of each member of the group
    energy: float

    def costs(self, alive: Tensor) -> Tensor:
        """Relative error of dropping each living member, shape (alive,)."""
        columns = self.columns[alive]  # (alive, width)
        block = self.inverse[:, columns[:, :, None], columns[:, None, :]]  # (g, alive, w, w)
        weight = self.weight[:, :, columns].transpose(1, 2)  # (g, alive, outputs, w)
        solved = torch.linalg.solve(block, weight.transpose(2, 3))  # (g, alive, w, outputs)
        costs: Tensor = (weight.transpose(2, 3) * solved).sum((0, 2, 3)) / self.energy
        return costs

    def drop(self, members: Tensor) -> None:
        columns = self.columns[members].flatten()
        block = self.inverse[:, columns][:, :, columns]
        rows = self.inverse[:, columns]  # (g, w, columns)
        solved = torch.linalg.solve(block, rows)
        self.weight = self.weight - self.weight[:, :, columns] @ solved
        self.inverse = self.inverse - rows.transpose(1, 2) @ solved


def removal_orders(graph: NetworkGraph, statistics: CalibrationStatistics) -> dict[int, Order]:
    """For every free group, its members in the order in which they are removed.

    Returns:
        Group index -> positions within the group, least important first, shape (size,).
        Keeping k channels means keeping the last k.
    """
    orders = {}
    with progress_bar("ranking channels", len(graph.free_groups)) as bar:
        for group in graph.free_groups:
            readers = _readers(graph, statistics, group.index)
            if readers:
                orders[group.index] = _surgeon_order(readers, group.size)
            else:
                orders[group.index] = _magnitude_order(graph, group.index)
            bar.advance(note=group.name)
    return orders


def _surgeon_order(readers: list[_Reader], size: int) -> Order:
    alive = torch.arange(size)
    order: list[int] = []
    at_once = max(1, size // MAX_STEPS)
    while len(alive) > 1:
        costs = torch.stack([reader.costs(alive) for reader in readers]).sum(0)
        count = min(at_once, len(alive) - 1)
        chosen = torch.argsort(costs, stable=True)[:count]
        members = alive[chosen]
        for reader in readers:
            reader.drop(members)
        order += members.tolist()
        alive = alive[torch.isin(alive, members, invert=True)]
    return np.array(order + alive.tolist(), np.int64)


def _readers(graph: NetworkGraph, statistics: CalibrationStatistics, group: int) -> list[_Reader]:
    members = np.flatnonzero(graph.plan.unit_group == group)
    readers = []
    for path, units in graph.plan.layers.items():
        moments = statistics.moments.get(path)
        if moments is None or not np.isin(units.inputs, members).any():
            continue
        layer = graph.plan.module.get_submodule(path)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        columns = column_units(layer, units.inputs)
        weight = layer.weight.double().reshape(len(moments.mean), -1, len(columns))
        gram = (moments.centred() if absorbs_shift(graph, path) else moments.gram).double()
        inverse = torch.cholesky_inverse(cholesky(gram, RIDGE))
        where = np.stack([np.flatnonzero(columns == unit) for unit in members])
        energy = float(torch.einsum("gij,gjk,gik->", weight, gram, weight))
        readers.append(_Reader(inverse, weight, torch.from_numpy(where), max(energy, 1e-12)))
    return readers


def column_units(layer: nn.Conv2d | nn.Linear, inputs: npt.NDArray[np.int64]) -> Order:
    """The unit of every column of a layer's unfolded weight (of its first group), (columns,)."""
    if isinstance(layer, nn.Linear):
        return inputs
    first_group = inputs[: layer.weight.shape[1]]
    return np.repeat(first_group, layer.kernel_size[0] * layer.kernel_size[1])


def absorbs_shift(graph: NetworkGraph, path: str) -> bool:
    """Whether a constant shift of the layer's output can be undone (by its bias, or its BN)."""
    layer = graph.plan.module.get_submodule(path)
    return getattr(layer, "bias", None) is not None or path in graph.plan.folds.values()


def _magnitude_order(graph: NetworkGraph, group: int) -> Order:
    """By the L1 norm of the weights that read a channel (Li et al. 2017), where no moments are."""
    members = np.flatnonzero(graph.plan.unit_group == group)
    norm = np.zeros(len(members))
    for path, units in graph.plan.layers.items():
        layer = graph.plan.module.get_submodule(path)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if is_depthwise(layer):
            continue
        columns = column_units(layer, units.inputs)
        reads = np.isin(columns, members)
        if reads.any():
            weight = layer.weight.detach().abs().flatten(1).sum(0).numpy()
            weight = weight / max(float(weight.sum()), 1e-12)
            position = {unit: place for place, unit in enumerate(members.tolist())}
            places = [position[unit] for unit in columns[reads].tolist()]
            np.add.at(norm, places, weight[reads])
    return np.argsort(norm, kind="stable")
