"""Weights of few values, changed one column after the other to the values of least output error.

What error feedback gives (`amc.recovery.feedback`) is one pass: a column is not looked at again
once those after it have their values. Here every column in turn is, with all others as they are
(QuantEase, Behdin et al. 2023, Algorithm 1): of a row w, on its values q, the output's squared
error ``(q - w) H (q - w)^T`` is least in q_j at ``q_j + [(w - q) H]_j / H_jj``, and of the values
that a weight may have the nearest to that is the best. No step makes the error larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.recovery.feedback import BLOCK, Nearest
from amc.recovery.least_squares import cholesky

RIDGE = 1e-3  # of the mean input energy
SWEEPS = 2  # over the columns at most; more change little


def system_of(gram: Tensor, what: str) -> Tensor:
    """H of second moments (or a covariance), (groups, columns, columns), float64.

    Args:
        what: The inputs whose moments these are, for the error.

    Raises:
        CalibrationError: The moments are not finite.
    """
    factor = cholesky(gram.double(), RIDGE, what)
    return factor @ factor.transpose(1, 2)


def errors_of(found: Tensor, rows: Tensor, system: Tensor) -> Tensor:
    """Squared error of every output, (groups, outputs / groups)."""
    lost = found - rows
    return ((lost @ system) * lost).sum(2)


def descend(
    found: Tensor,
    rows: Tensor,
    system: Tensor,
    nearest: Nearest,
    kept: Tensor | None = None,
) -> Tensor:
    """Weights on their values, of no more output error than they have.

    Args:
        found: On their values, (groups, outputs / groups, columns), float64.
        rows: The weight that they stand for, as ``found``.
        system: H, (groups, columns, columns).
        nearest: What a weight becomes: of the values it may have the nearest.
        kept: Of the shape of ``rows``, bool: the others stay zero; None: all may change.

    Returns:
        Of the shape of ``found``.
    """
    found = found.clone()
    left = (rows - found) @ system
    energy = torch.diagonal(system, dim1=1, dim2=2)
    for _ in range(SWEEPS):
        before = found.clone()
        for start in range(0, rows.shape[2], BLOCK):
            block = slice(start, start + BLOCK)
            own, ours = system[:, block, block], found[:, :, block]
            old, gap = ours.clone(), left[:, :, block].clone()
            for column in range(ours.shape[2]):
                now = ours[:, :, column]
                better = nearest(now + gap[:, :, column] / energy[:, None, start + column])
                if kept is not None:
                    better = better.masked_fill(~kept[:, :, start + column], 0.0)
                gap -= (better - now).unsqueeze(2) * own[:, column].unsqueeze(1)
                ours[:, :, column] = better
            left -= (ours - old) @ system[:, block]
        if torch.equal(before, found):
            break
    return found
