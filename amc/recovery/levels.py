"""Weights of few different values: a codebook for a layer (k-means, Han et al. 2016, section 3).

Three steps, the last two in turn, of which the result of least output error is kept:

1. k-means over the weights (`amc.compress.forms`), each counting by the energy of its input and
   the importance of its output.
2. Every weight takes a value, with error feedback, as rounding to few bits does
   (`amc.recovery.rounding`), and is then changed where another value errs less
   (`amc.recovery.descent`).
3. The values become those of least output error for the weights that share them: with the 0/1
   matrix A_o of which weight of output o has which value c, ``sum_o s_o A_o^T H A_o c =
   sum_o s_o A_o^T H w_o``. What Deep Compression trains its centroids for follows so from moments.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from amc.compress.forms import k_means, nearest
from amc.recovery.descent import descend, errors_of, system_of
from amc.recovery.feedback import with_feedback

TURNS = 3  # of steps 2 and 3
MOST_SUMS = 2e9  # outputs * columns^2: where more, values stay those of k-means


def set_levels(
    weight: Tensor,
    gram: Tensor | None,
    count: int,
    *,
    kept: Tensor | None = None,
    importance: Tensor | None = None,
    quick: bool = False,
) -> Tensor:
    """A weight of at most so many different values.

    A weight that has no more is given back as it is.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns); None: every
            weight takes the nearest value of plain k-means.
        count: At least 2.
        kept: Of the shape of ``weight``, bool: weights that are not stay zero, which is one of the
            values then; None: all.
        importance: Of each output's squared error, (groups, outputs / groups).
        quick: The first step alone.

    Returns:
        Of the shape and type of ``weight``.

    Raises:
        CalibrationError: The moments are not finite.
    """
    rows = weight.double()
    free = torch.ones_like(rows, dtype=torch.bool) if kept is None else kept
    rows = rows.masked_fill(~free, 0.0)
    if len(torch.unique(rows)) <= count or not bool(free.any()):
        return rows.to(weight.dtype)
    most = count if bool(free.all()) else count - 1
    counts = rows.new_ones(rows.shape[:2]) if importance is None else importance.double()
    mass = counts.unsqueeze(2).expand_as(rows)
    if gram is not None:
        mass = mass * torch.diagonal(gram.double(), dim1=1, dim2=2).unsqueeze(1)
    values = k_means(rows[free], mass[free], most)
    found = nearest(rows, values).masked_fill(~free, 0.0)
    if gram is None or quick:
        return found.to(weight.dtype)
    system = system_of(gram, f"the {rows.shape[2]} inputs of a layer with a codebook")
    best, least = found, _error(found, rows, system, counts)
    turns = TURNS if rows.numel() * rows.shape[2] <= MOST_SUMS else 0
    for turn in range(max(turns, 1)):
        to_values = partial(nearest, values=values)
        found = with_feedback(rows, gram, to_values, free)
        found = descend(found, rows, system, to_values, free)
        if turn < turns:
            values, found = _refitted(rows, system, counts, values, found, free)
        error = _error(found, rows, system, counts)
        if error < least:
            best, least = found, error
    return best.to(weight.dtype)


def _error(found: Tensor, rows: Tensor, system: Tensor, counts: Tensor) -> float:
    return float((errors_of(found, rows, system) * counts).sum())


def _refitted(
    rows: Tensor, system: Tensor, counts: Tensor, values: Tensor, found: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """The values of least output error for the weights that share them, and the weight then."""
    size = len(values)
    chosen = torch.searchsorted(values, found.contiguous()).masked_fill(~free, size)
    left, right = values.new_zeros(size + 1, size + 1), values.new_zeros(size + 1)
    wanted = rows @ system
    for group, output in torch.cartesian_prod(*map(torch.arange, rows.shape[:2])).tolist():
        of, counted = chosen[group, output], counts[group, output]
        partly = values.new_zeros(size + 1, rows.shape[2]).index_add_(0, of, system[group])
        left.T.index_add_(0, of, counted * partly.T)
        right.index_add_(0, of, counted * wanted[group, output])
    left, right = left[:size, :size], right[:size]
    ridge = 1e-9 * torch.diagonal(left).mean().clamp_min(1e-300) * torch.eye(size, dtype=left.dtype)
    # Of values that no weight has, or that moments do not tell apart, the ones that they are.
    change = torch.linalg.solve(left + ridge, right - left @ values)
    values = values + change
    found = torch.cat([values, values.new_zeros(1)])[chosen]
    order = values.argsort()
    return values[order], found
