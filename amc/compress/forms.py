"""Weights brought into forms (`amc.decisions.forms`) where nothing is known of their inputs.

The smallest become zero, and the others take the nearest of a few values. With moments of inputs
`amc.recovery.rounding.in_form` does better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amc.decisions.forms import Form, Zeros, forms_of, hold

PASSES = 50  # of k-means at most


def give_form(layer: nn.Module, form: Form) -> None:
    """Have a layer's weight keep to a form, and bring it into all that it keeps to.

    A weight that is in them is left as it is.
    """
    hold(layer, form)
    weight, has_zeros = layer.weight, False
    assert isinstance(weight, Tensor)
    for held in forms_of(layer):
        if isinstance(held, Zeros):
            weight.data, has_zeros = without_smallest(weight.data, held), True
        else:
            weight.data = of_few_values(weight.data, held.count, has_zeros=has_zeros)


def without_smallest(weight: Tensor, zeros: Zeros) -> Tensor:
    """A layer's weight with the smallest of its numbers at zero; shape (outputs, inputs, ...)."""
    return weight.masked_fill(smallest(weight, zeros), 0.0)


def smallest(weight: Tensor, zeros: Zeros) -> Tensor:
    """Which numbers of a layer's weight those are; bool, of its shape."""
    rows = weight.reshape(1, len(weight), -1)
    return least(rows.square(), zeros, weight[0, 0].numel()).view_as(weight)


def least(costs: Tensor, zeros: Zeros, places: int, done: float = 1.0) -> Tensor:
    """Which weights are zero, those of the least cost; bool, of the shape of ``costs``.

    Args:
        costs: (groups, outputs / groups, columns).
        places: Of a kernel: so many columns in turn belong to an input.
        done: How far the zeros are asked for: the share that stays falls evenly in its logarithm
            until 1. Of weights in turn all zeros are asked for at once.
    """
    if not zeros.group:
        share = 1 - (1 - zeros.fraction) ** min(done, 1.0)
        gone = torch.zeros(costs.numel(), dtype=torch.bool)
        gone[costs.flatten().argsort(stable=True)[: round(share * costs.numel())]] = True
        return gone.view(costs.shape)
    columns, group = costs.shape[2], zeros.group
    order = torch.arange(columns).view(-1, places).T.flatten()  # inputs of a place, then places
    blocks = -(-columns // group)
    room = blocks * group - columns
    padded = nn.functional.pad(costs[:, :, order], (0, room), value=math.inf)
    padded = padded.view(*costs.shape[:2], blocks, group)
    ranks = padded.argsort(dim=3, stable=True).argsort(dim=3)
    counts = torch.full((blocks, 1), _count(zeros.fraction, group))
    counts[-1] = _count(zeros.fraction, group - room)
    gone = torch.empty_like(costs, dtype=torch.bool)
    gone[:, :, order] = (ranks < counts).flatten(2)[:, :, :columns]
    return gone


def _count(fraction: float, size: int) -> int:
    """How many of so many weights in turn are zero; 0.5 of 4 are 2, though floats may say 1.99."""
    return math.floor(fraction * size + 1e-9)


def of_few_values(weight: Tensor, count: int, *, has_zeros: bool = False) -> Tensor:
    """A weight, each number at the nearest of so many values; as it is if it has no more.

    Args:
        has_zeros: Whether what is zero stays zero.
    """
    free = weight != 0 if has_zeros else torch.ones_like(weight, dtype=torch.bool)
    if len(torch.unique(weight)) <= count or not bool(free.any()):
        return weight
    numbers, most = weight[free].double(), count - int(has_zeros)
    found = torch.zeros_like(weight)
    found[free] = nearest(numbers, k_means(numbers, torch.ones_like(numbers), most)).to(weight)
    return found


def k_means(numbers: Tensor, mass: Tensor, count: int) -> Tensor:
    """Means of at most so many clusters of numbers (Lloyd 1982), sorted, float64.

    They start once evenly spaced from the smallest to the largest number, once with as many
    numbers for each; the better end is taken.

    Args:
        numbers: (n,).
        mass: What each counts, (n,), not negative.
    """
    numbers, order = numbers.double().sort(stable=True)
    mass = mass.double()[order]
    mass = mass.clamp_min(1e-12 * float(mass.max()) or 1.0)
    sums = torch.stack([mass, mass * numbers, mass * numbers.square()]).cumsum(1)
    sums = nn.functional.pad(sums, (1, 0))
    spaced = torch.linspace(float(numbers[0]), float(numbers[-1]), count, dtype=torch.float64)
    places = (torch.arange(count) * 2 + 1) * len(numbers) // (2 * count)
    best, lowest = spaced, math.inf
    for start in (spaced, numbers[places]):
        means, error = _lloyd(numbers, sums, start)
        if error < lowest:
            best, lowest = means, error
    return best


def _lloyd(numbers: Tensor, sums: Tensor, means: Tensor) -> tuple[Tensor, float]:
    """Where means that start so end, and the squared error that is left.

    Args:
        numbers: Sorted.
        sums: Of mass, mass * number and mass * number^2 before each place, (3, n + 1).
    """
    for _ in range(PASSES):
        cuts = torch.searchsorted(numbers, (means[1:] + means[:-1]) / 2)
        cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([len(numbers)])])
        mass, first, second = sums[:, cuts[1:]] - sums[:, cuts[:-1]]
        moved = torch.where(mass > 0, first / mass.clamp_min(1e-300), means).sort().values
        if torch.equal(moved, means):
            break
        means = moved
    error = second - 2 * means * first + means.square() * mass
    return torch.unique(means), float(error.sum())


def nearest(numbers: Tensor, values: Tensor) -> Tensor:
    """Each number's nearest value; of two equally near the smaller.

    Args:
        values: Sorted, (count,).
    """
    return values[torch.bucketize(numbers, (values[1:] + values[:-1]) / 2)]
