"""Weights that take few values so that the errors cancel (GPTQ, Frantar et al. 2023, Algorithm 1).

A column takes its values, and what that does to the output is made up for by the columns that are
still free, as far as their inputs resemble its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amc.recovery.least_squares import cholesky, factor_of

RIDGE = 1e-2  # of the mean input energy (GPTQ, section 3.3)
BLOCK = 64  # columns rounded before their errors are passed on to all others (GPTQ, section 3.2)

Nearest = Callable[[Tensor], Tensor]
"""Weights of one column, (groups, outputs / groups) -> what they become, a tensor of their own."""


def with_feedback(
    weight: Tensor, gram: Tensor, nearest: Nearest, kept: Tensor | None = None
) -> Tensor:
    """Weights on their values, with the least output error that one pass over the columns gives.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
        nearest: What a weight becomes.
        kept: Of the shape of ``weight``, bool: those that are not become zero; None: all are.

    Returns:
        Of the shape of ``weight``, float64.

    Raises:
        CalibrationError: The moments are not finite.
    """
    columns = gram.shape[1]
    energy = torch.diagonal(gram, dim1=1, dim2=2)
    # The most energetic first: their errors can still be spread over many others.
    order = torch.argsort(energy, dim=1, descending=True, stable=True)
    across = order.unsqueeze(1).expand_as(weight)
    left = weight.double().gather(2, across).clone()
    gone = None if kept is None else ~kept.gather(2, across)
    system = gram.double().gather(1, order.unsqueeze(2).expand(-1, -1, columns))
    system = system.gather(2, order.unsqueeze(1).expand_as(system))
    what = f"the {columns} inputs of a layer whose weights are rounded"
    inverse = torch.cholesky_inverse(cholesky(system, RIDGE, what))
    factor = factor_of(inverse, what, upper=True)  # (groups, columns, columns)
    for start in range(0, columns, BLOCK):
        block = slice(start, min(start + BLOCK, columns))
        without = None if gone is None else gone[:, :, block]
        errors = _round_block(left[:, :, block], factor[:, block, block], nearest, without)
        left[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]
    return left.gather(2, torch.argsort(order, dim=1).unsqueeze(1).expand_as(left))


def _round_block(left: Tensor, factor: Tensor, nearest: Nearest, gone: Tensor | None) -> Tensor:
    """Round a block of columns in place, column by column.

    Args:
        left: (groups, outputs / groups, block).
        factor: (groups, block, block), upper.
        gone: Weights that become zero, as ``left``.

    Returns:
        What each column leaves for later ones to make up for, as ``left``.
    """
    errors = torch.empty_like(left)
    for column in range(left.shape[2]):
        now = left[:, :, column].clone()
        rounded = nearest(now)
        if gone is not None:
            rounded = rounded.masked_fill(gone[:, :, column], 0.0)
        errors[:, :, column] = (now - rounded) / factor[:, column, column].unsqueeze(1)
        row = factor[:, column, column + 1 :].unsqueeze(1)
        left[:, :, column + 1 :] -= errors[:, :, column].unsqueeze(2) * row
        left[:, :, column] = rounded
    return errors
