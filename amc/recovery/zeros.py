"""Single weights set to zero with the least error of a layer's output.

For a row w of the weight and second moments G of its inputs, the squared error of the output of
another row v is ``(v - w) H (v - w)^T`` with ``H = G + ridge I``. Which weights go, and what the
others are then, are two questions:

- Optimal Brain Surgeon (Hassibi & Stork 1993) asks what one weight alone costs once all others
  have made up for it, ``w_j^2 / [H^-1]_jj``, and takes the least. Of weights that could have stood
  in for one another it takes both.
- The alternating direction method of multipliers asks for all at once (Boža 2024; ALPS, Meng et al.
  2024): in turn the v of least error that is pulled to what has the zeros, and the zeros of what
  that and all earlier turns come to. It depends on how strong the pull is; a few are tried, and
  the zeros of least error are taken, OBS's among them.
- The others are then solved for, as OBS does with every weight that it takes: the v of least error
  among those that have the zeros, by conjugate gradients for all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from amc.compress.forms import least
from amc.decisions.forms import Zeros
from amc.recovery.least_squares import cholesky

RIDGE = 1e-3  # of the mean input energy
PULLS = (0.1, 0.3, 1.0)  # of an input's energy, tried for a kept strategy
QUICK_PULLS = (0.3,)
QUICK_PRODUCTS = 5e8  # outputs * columns^2 of a layer: where more, OBS alone is quick
TURNS = 20  # of the alternating method; more change little
GRADUAL = 0.75  # of the turns, until all zeros are asked for
STEPS = 50  # of conjugate gradients at most
CLOSE = 1e-6  # of the first residual's square: where they end


def set_zeros(
    weight: Tensor,
    gram: Tensor | None,
    zeros: Zeros,
    *,
    places: int = 1,
    importance: Tensor | None = None,
    quick: bool = False,
) -> Tensor:
    """A weight with a share of it zero, the others refitted.

    A weight of which that share is zero already is given back as it is.

    Args:
        weight: (groups, outputs / groups, columns).
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns); None: the
            smallest go, and the others stay as they are.
        places: Of a kernel: so many columns in turn belong to an input.
        importance: Of each output's squared error, (groups, outputs / groups).
        quick: Fewer ways to choose the zeros are tried.

    Returns:
        Of the shape and type of ``weight``.

    Raises:
        CalibrationError: The moments are not finite.
    """
    smallest = least(weight.square(), zeros, places)
    if gram is None or not zeros.by_error or not bool(weight[smallest].any()):
        return weight.masked_fill(smallest, 0.0)
    system, inverse = _systems(gram)
    rows = weight.double()
    counts = rows.new_ones(rows.shape[:2]) if importance is None else importance.double()
    pulls: Sequence[float] = PULLS
    if quick:
        pulls = QUICK_PULLS if rows.numel() * rows.shape[2] <= QUICK_PRODUCTS else ()
    best, lowest = rows, torch.full_like(counts, torch.inf)
    for gone in _ways(rows, system, inverse, counts, zeros, places, pulls):
        found = without(rows, system, gone)
        lost = found - rows
        errors = ((lost @ system) * lost).sum(2) * counts
        # Where every row has its own number of zeros, every row takes its best.
        better = errors < lowest if zeros.group else (errors.sum() < lowest.sum()).expand_as(errors)
        best = torch.where(better.unsqueeze(2), found, best)
        lowest = torch.where(better, errors, lowest)
    return best.to(weight.dtype)


def _systems(gram: Tensor) -> tuple[Tensor, Tensor]:
    """H and its inverse, float64."""
    what = f"the {gram.shape[1]} inputs of a layer whose weights are set to zero"
    factor = cholesky(gram.double(), RIDGE, what)
    return factor @ factor.transpose(1, 2), torch.cholesky_inverse(factor)


def _ways(
    rows: Tensor,
    system: Tensor,
    inverse: Tensor,
    counts: Tensor,
    zeros: Zeros,
    places: int,
    pulls: Sequence[float],
) -> Iterator[Tensor]:
    """Which weights may go: OBS's choice, and those of the alternating method; bool, as rows."""
    alone = rows.square() / torch.diagonal(inverse, dim1=1, dim2=2).unsqueeze(1)
    yield least(counts.unsqueeze(2) * alone, zeros, places)
    # In units in which every input has the same energy, and every output's error counts the same.
    scale = torch.diagonal(system, dim1=1, dim2=2).sqrt()  # (groups, columns)
    correlation = system / (scale.unsqueeze(2) * scale.unsqueeze(1))
    wanted = rows * scale.unsqueeze(1) * counts.sqrt().unsqueeze(2)
    given, eye = wanted @ correlation, torch.eye(rows.shape[2], dtype=torch.float64)
    for pull in pulls:
        pulled = torch.cholesky_inverse(torch.linalg.cholesky(correlation + pull * eye))
        now, owed = wanted, torch.zeros_like(wanted)
        gone = torch.zeros_like(wanted, dtype=torch.bool)
        for turn in range(1, TURNS + 1):
            gone = least((now + owed).square(), zeros, places, turn / (GRADUAL * TURNS))
            held = (now + owed).masked_fill(gone, 0.0)
            owed = owed + now - held
            now = (given + pull * (held - owed)) @ pulled
        yield gone


def without(rows: Tensor, system: Tensor, gone: Tensor) -> Tensor:
    """The rows of least error that are zero where they are said to be (conjugate gradients).

    Args:
        rows: (groups, outputs / groups, columns), float64.
        system: H, (groups, columns, columns).
        gone: Of the shape of ``rows``, bool.
    """
    energy = torch.diagonal(system, dim1=1, dim2=2).unsqueeze(1)
    found = rows.masked_fill(gone, 0.0)
    left = ((rows - found) @ system).masked_fill(gone, 0.0)
    scaled = left / energy
    way, size = scaled, (left * scaled).sum(2, keepdim=True)
    enough = CLOSE * size
    for _ in range(STEPS):
        if bool((size <= enough).all()):
            break
        moved = (way @ system).masked_fill(gone, 0.0)
        step = size / (way * moved).sum(2, keepdim=True).clamp_min(1e-300)
        found, left = found + step * way, left - step * moved
        scaled = left / energy
        after = (left * scaled).sum(2, keepdim=True)
        way, size = scaled + after / size.clamp_min(1e-300) * way, after
    return found
