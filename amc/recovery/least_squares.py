"""Refitting a layer to the inputs it has left (channel pruning, He et al. 2017, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from amc.errors import CalibrationError

RIDGE = 1e-4  # of the mean input energy; keeps the system solvable where inputs are redundant
CONSTANT = 1e-9  # mean input energy of what does not vary but by the rounding of sums


def refit_weight(weight: Tensor, gram: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """Refit a weight so that its kept inputs reproduce its original output.

    Minimises ``E ||W x - V x[kept]||^2 + ridge ||V - W[:, kept]||^2`` from second moments
    gathered once. With D = V - W[:, kept], setting the gradient to zero gives
    ``D (G[kept, kept] + ridge I) = W[:, gone] G[gone, kept]``: what the removed inputs
    contributed is shared out among those that look like them.

    Args:
        weight: (groups, outputs, columns).
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
        kept: Indices of the preserved columns, the same in every group, shape (kept,).
        ridge: Relative to the mean of the diagonal of gram[kept, kept].

    Returns:
        Weight of shape (groups, outputs, kept).

    Raises:
        CalibrationError: The moments are not finite.
    """
    gone = torch.ones(weight.shape[2], dtype=torch.bool)
    gone[kept] = False
    system = gram[:, kept][:, :, kept].double()
    right = (weight[:, :, gone].double() @ gram[:, gone][:, :, kept].double()).transpose(1, 2)
    factor = cholesky(system, ridge, f"{len(kept)} of {weight.shape[2]} inputs")
    change = torch.cholesky_solve(right, factor)
    return weight[:, :, kept] + change.transpose(1, 2).to(weight.dtype)


def cholesky(system: Tensor, ridge: float, what: str) -> Tensor:
    """Cholesky factor of ``system + ridge * mean(diagonal) * I``, shape as ``system``.

    Where the mean of the diagonal is next to nothing: of ``system + CONSTANT * I``.

    Args:
        what: The inputs whose moments these are, for the error.

    Raises:
        CalibrationError: There is none.
    """
    energy = torch.diagonal(system, dim1=-2, dim2=-1).mean(-1)
    # Inputs that are all but constant have no covariance but rounding, which may be negative.
    strength = torch.where(energy > CONSTANT, ridge * energy, CONSTANT)
    eye = torch.eye(system.shape[-1], dtype=system.dtype)
    return factor_of(system + strength[..., None, None] * eye, what)


def factor_of(matrix: Tensor, what: str, *, upper: bool = False) -> Tensor:
    """Cholesky factor of a positive definite matrix.

    Args:
        what: As for `cholesky`.

    Raises:
        CalibrationError: It is not positive definite, or not finite.
    """
    try:
        factor: Tensor = torch.linalg.cholesky(matrix, upper=upper)
    except RuntimeError as error:
        raise CalibrationError(
            f"Least squares over {what} has no solution: {error}. The calibration activations are "
            "not finite, or too large for it; check the network's weights and the data's mean/std."
        ) from error
    return factor
