"""Scores of channels by which the field chooses those that go: the least first.

Each is a function of one channel group; what several layers produce or read is summed over them.
The surgeon (`amc.recovery.importance`) goes by what a refit leaves; these do not know of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.graph.graph import NetworkGraph
from amc.layers import Layer, ProductKind, is_depthwise, kind_of, layer_at
from amc.recovery.moments import CalibrationStatistics, by_channel

PENALTIES = 40  # of a LASSO, from one at which nothing stays down to SMALLEST_PENALTY of it
SMALLEST_PENALTY = 1e-4
STEPS = 50  # of proximal gradients at each


Members = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What scores are made from.

    Attributes:
        sensitivities: Layer path -> nats for each unit of squared error, shape (outputs,).
        pulls: Layer path -> what each of its inputs adds to the loss to first order, of every
            image, (images, inputs) (`amc.recovery.sensitivity.input_pulls`); asked for by Taylor
            alone.
    """

    graph: NetworkGraph
    statistics: CalibrationStatistics
    sensitivities: Mapping[str, Tensor]
    pulls: Callable[[], Mapping[str, Tensor]]


Score = Callable[[Known, Members], Tensor]
"""What is known, the units of a group -> shape (members,), float64."""


def l1(known: Known, members: Members) -> Tensor:
    """Sum of magnitudes of the weights that produce a channel (Li et al. 2017)."""
    return _of_filters(known, members, lambda rows: rows.abs().sum(1))


def l2(known: Known, members: Members) -> Tensor:
    """Root of the sum of squares of the weights that produce a channel."""
    return _of_filters(known, members, lambda rows: rows.norm(dim=1))


def geometric_median(known: Known, members: Members) -> Tensor:
    """Sum of distances to the other filters: what is near to all is replaced (He et al. 2019)."""
    return _of_filters(known, members, lambda rows: torch.cdist(rows, rows).sum(1))


def activation(known: Known, members: Members) -> Tensor:
    """Energy of a channel where it is read, E[x^2] (as Molchanov et al. 2017 compare with)."""
    found = torch.zeros(len(members), dtype=torch.float64)
    for path, _, inputs in _readers(known, members):
        moments = known.statistics.moments.get(path)
        if moments is None:
            continue
        energy = torch.diagonal(moments.gram, dim1=1, dim2=2).double().flatten()
        energy = energy.repeat_interleave(moments.places).view(len(inputs), -1).mean(1)
        found.index_add_(0, *_at(inputs, members, energy))
    return found


def taylor(known: Known, members: Members) -> Tensor:
    """Square of what a channel adds to the loss to first order (Molchanov et al. 2019)."""
    pulls = known.pulls()
    images = len(next(iter(pulls.values())))
    found = torch.zeros(len(members), images, dtype=torch.float64)
    for path, _, inputs in _readers(known, members):
        found.index_add_(0, *_at(inputs, members, pulls[path].T))
    return found.square().mean(1)


def lasso(known: Known, members: Members) -> Tensor:
    """The largest penalty under which a channel still has a part in its readers' outputs.

    Factors b of channels minimise ``E ||Y - sum_c b_c X_c W_c||^2 / 2 + penalty |b|_1`` (He et al.
    2017), from second moments: the quadratic form is ``sum_o s_o W_oc G_cd W_od``.
    """
    system = torch.zeros(len(members), len(members), dtype=torch.float64)
    for path, layer, inputs in _readers(known, members):
        moments = known.statistics.moments.get(path)
        if moments is None:
            continue
        counted = known.sensitivities[path].sqrt()[:, None]
        groups = len(moments.mean)
        rows = by_channel(
            layer.weight.detach().double().flatten(1) * counted, groups, moments.places
        )
        together = (rows.transpose(1, 2) @ rows) * moments.gram.double()
        of = np.repeat(inputs[: layer.weight.shape[1]], _places(layer))[:: moments.places]
        where = torch.from_numpy(np.flatnonzero(np.isin(of, members)))
        place = torch.from_numpy(np.searchsorted(members, of[where.numpy()]))
        chosen = together.sum(0)[where][:, where]
        partly = system.new_zeros(len(members), len(where)).index_add_(0, place, chosen)
        system.T.index_add_(0, place, partly.T)
    return _entering(system)


def discrimination(known: Known, members: Members) -> Tensor:
    """The later a channel is added, the less it scores (Zhuang et al. 2018, Algorithm 2).

    From none on, the channel is added whose weights in its readers have the gradient of largest
    norm: of the squared error of the readers' outputs, each output's weighed by what the loss makes
    of it. The paper adds up this error and the losses of classifiers of its own behind some layers.
    """
    readers = []
    for path, layer, inputs in _readers(known, members):
        moments = known.statistics.moments.get(path)
        if moments is None:
            continue
        counted = known.sensitivities[path].double()[:, None]
        rows = layer.weight.detach().double().flatten(1) * counted
        rows = by_channel(rows, len(moments.mean), moments.places)
        of = np.repeat(inputs[: layer.weight.shape[1]], _places(layer))[:: moments.places]
        place = torch.from_numpy(np.where(np.isin(of, members), np.searchsorted(members, of), -1))
        gram = moments.gram.double()
        readers.append((rows, gram, rows @ gram, place))
    found = torch.zeros(len(members), dtype=torch.float64)
    for score in range(len(members), 0, -1):
        norms = torch.zeros_like(found)
        for _, _, gradient, place in readers:  # of what has not been added yet
            of_members = place >= 0
            squares = gradient.square().sum((0, 1))
            norms.index_add_(0, place[of_members], squares[of_members])
        added = int(torch.where(found == 0, norms, -1.0).argmax())
        found[added] = score
        for weights, moments_of, gradient, place in readers:
            columns = place == added
            gradient -= weights[:, :, columns] @ moments_of[:, columns]
    return found


SCORES: dict[str, Score] = {
    "l1": l1,
    "l2": l2,
    "geometric_median": geometric_median,
    "activation": activation,
    "taylor": taylor,
    "lasso": lasso,
    "discrimination": discrimination,
}
"""By name, beside "surgeon" and "magnitude" (`amc.recovery.importance`)."""


def _of_filters(known: Known, members: Members, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The score of the rows of every layer that produces the group, summed over them."""
    found = torch.zeros(len(members), dtype=torch.float64)
    for path, units in known.graph.plan.layers.items():
        layer = layer_at(known.graph.plan.module, path)
        if np.isin(units.outputs, members).any() and not is_depthwise(layer):
            rows = layer.weight.detach().double().flatten(1)
            found.index_add_(0, *_at(units.outputs, members, score(rows)))
    return found


def _readers(known: Known, members: Members) -> Iterator[tuple[str, Layer, Members]]:
    """Layers of products that read the group, and the unit of each of their inputs."""
    for path, units in known.graph.plan.layers.items():
        layer = layer_at(known.graph.plan.module, path)
        product = isinstance(kind_of(layer), ProductKind) and not is_depthwise(layer)
        if product and np.isin(units.inputs, members).any():
            yield path, layer, units.inputs


def _at(units: Members, members: Members, values: Tensor) -> tuple[Tensor, Tensor]:
    """Positions among the members, and the values, of the units that are members."""
    where = np.flatnonzero(np.isin(units, members))
    places = torch.from_numpy(np.searchsorted(members, units[where]))
    return places, values[torch.from_numpy(where)].double()


def _places(layer: Layer) -> int:
    return math.prod(layer.weight.shape[2:])


def _entering(system: Tensor) -> Tensor:
    """The penalty at which each factor leaves zero on the way down, and a bit for its size then."""
    wanted = system.sum(1)  # of all factors at 1
    step = 1 / float(torch.linalg.matrix_norm(system, 2).clamp_min(1e-300))
    factors = torch.zeros_like(wanted)
    found = torch.zeros_like(wanted)
    largest = float(wanted.abs().max().clamp_min(1e-300))
    for penalty in np.geomspace(largest, SMALLEST_PENALTY * largest, PENALTIES).tolist():
        ahead, speed = factors, 1.0
        for _ in range(STEPS):  # Beck & Teboulle 2009
            moved = ahead - step * (system @ ahead - wanted)
            after = moved.sign() * (moved.abs() - step * penalty).clamp_min(0.0)
            faster = (1 + math.sqrt(1 + 4 * speed**2)) / 2
            ahead, speed = after + (speed - 1) / faster * (after - factors), faster
            factors = after
        entered = (found == 0) & (factors != 0)
        found = torch.where(entered, penalty * (1 + 1e-3 * factors.abs().clamp_max(1.0)), found)
    return found
