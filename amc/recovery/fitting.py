"""Sums over rows that a layer is fitted to, and which of several weights other images confirm.

The images of every batch are cut into two halves. A weight that is fitted to one half is judged on
the other, by sums alone: ``E (y - V x)^2`` follows from ``E[x x^T]``, ``E[x y^T]`` and ``E[y^2]``.
How strongly a fit is pulled to the weight that a layer has, and whether it is taken at all, follows
from that error: where rows are few beside columns, or alike, the pull is strong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from amc.recovery.least_squares import cholesky
from amc.recovery.products import cross_moments, second_moments

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean input energy, towards the weight the layer has
HALVES = 2


@dataclass(frozen=True)
class _Centre:
    """Means that rows are counted from: (groups, columns) and (groups, outputs / groups)."""

    x: Tensor
    y: Tensor


class Sums:
    """Means over rows of inputs x, outputs y and their products, in float64.

    Rows count from a constant near their mean: a covariance that is small beside the squared
    mean keeps its digits, though the products are made in float32.
    """

    def __init__(
        self, inputs: list[Tensor], outputs: Sequence[Tensor], images: Sequence[int]
    ) -> None:
        """
        Args:
            inputs: A batch each, (groups, rows, columns), an image's rows side by side. Taken
                over: shifted one by one, for all of them twice would be much memory.
            outputs: A batch each, (groups, rows, outputs / groups).
            images: Of each batch.
        """
        self._x_shift = inputs[0].mean(1, keepdim=True)
        self._y_shift = outputs[0].mean(1, keepdim=True)
        for batch, x in enumerate(inputs):
            inputs[batch] = x - self._x_shift
        self._inputs = inputs
        pairs = zip(inputs, images, strict=True)
        self._cuts = [x.shape[1] // n * (n // 2) if n > 1 else x.shape[1] // 2 for x, n in pairs]
        self._gram = self._sum(second_moments, inputs)
        self._x = self._sum(lambda x: x.sum(1), inputs)
        self.rows = [self._rows(half) for half in range(HALVES)]
        self.aim_at(outputs)

    def aim_at(self, outputs: Sequence[Tensor]) -> None:
        """Take these for y, one for each batch; the inputs stay."""
        shifted = [y - self._y_shift for y in outputs]
        self._cross = self._sum(cross_moments, self._inputs, shifted)
        self._y = self._sum(lambda y: y.sum(1), shifted)
        self._squares = self._sum(lambda y: y.square().sum(1), shifted)

    def _rows(self, half: int) -> int:
        pairs = zip(self._inputs, self._cuts, strict=True)
        return sum(cut if half == 0 else x.shape[1] - cut for x, cut in pairs)

    def _sum(self, of: Callable[..., Tensor], *batches: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the rows of each half, float64."""

        def parts(half: int) -> Iterable[Tensor]:
            for *rows, cut in zip(*batches, self._cuts, strict=True):
                span = slice(cut) if half == 0 else slice(cut, None)
                yield of(*(part[:, span] for part in rows)).double()

        return [reduce(operator.add, parts(half)) for half in range(HALVES)]

    def _mean(self, sums: Sequence[Tensor], half: int | None) -> Tensor:
        if half is None:
            return reduce(operator.add, sums) / sum(self.rows)
        return sums[half] / max(self.rows[half], 1)

    def _centre(self, half: int | None) -> _Centre:
        return _Centre(self._mean(self._x, half), self._mean(self._y, half))

    def _origin(self) -> _Centre:
        return _Centre(-self._x_shift.squeeze(1).double(), -self._y_shift.squeeze(1).double())

    def gram(self, centred: bool, half: int | None = None) -> Tensor:
        """E[x x^T], (groups, columns, columns); about the mean if ``centred``."""
        return self._about(self._centre(half) if centred else self._origin(), half)[0]

    def cross(self, centred: bool, half: int | None = None) -> Tensor:
        """E[x y^T], (groups, columns, outputs / groups)."""
        return self._about(self._centre(half) if centred else self._origin(), half)[1]

    def _about(self, centre: _Centre, half: int | None) -> tuple[Tensor, Tensor]:
        mean = self._centre(half)
        off_x, off_y = mean.x - centre.x, mean.y - centre.y
        gram = self._mean(self._gram, half) - _outer(mean.x, mean.x) + _outer(off_x, off_x)
        cross = self._mean(self._cross, half) - _outer(mean.x, mean.y) + _outer(off_x, off_y)
        return gram, cross

    def errors_of(self, weights: Sequence[Tensor], centred: bool, fitted: int) -> Tensor:
        """Squared errors on the half that the weights were not ``fitted`` to.

        Args:
            weights: (groups, outputs / groups, columns) each; right on average, if ``centred``,
                on the half that they were fitted to.

        Returns:
            Shape (weights, groups, outputs / groups).
        """
        half = 1 - fitted
        centre = self._centre(fitted) if centred else self._origin()
        gram, cross = self._about(centre, half)
        mean_y = self._mean(self._y, half)
        squares = self._mean(self._squares, half) - mean_y.square()
        squares = squares + (mean_y - centre.y).square()
        found = [
            squares + ((weight @ gram - 2 * cross.transpose(1, 2)) * weight).sum(2)
            for weight in weights
        ]
        return torch.stack(found)

    def means(self) -> tuple[Tensor, Tensor]:
        """E[x] (groups, columns), E[y] (groups, outputs / groups)."""
        mean = self._centre(None)
        return mean.x + self._x_shift.squeeze(1), mean.y + self._y_shift.squeeze(1)

    def outputs(self, weight: Tensor) -> list[Tensor]:
        """What a layer of this weight gives, right on average; a batch each, as y.

        Args:
            weight: (groups, outputs / groups, columns), float64.
        """
        centre = self._centre(None)
        mean = (centre.y - (weight @ centre.x.unsqueeze(2)).squeeze(2)).float().unsqueeze(1)
        mean, weight = mean + self._y_shift, weight.transpose(1, 2).float()
        return [x @ weight + mean for x in self._inputs]


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(2) * y.unsqueeze(1)


class Solver:
    """Gives the weight V that minimises E ||y - V x||^2 + ridge ||V - now||^2."""

    def __init__(self, now: Tensor, gram: Tensor, ridge: float, what: str) -> None:
        """
        Args:
            now: The layer's weight, (groups, outputs / groups, columns), float64.
            gram: E[x x^T], (groups, columns, columns).
            ridge: In mean input energies.
            what: The inputs whose moments these are, for the error.
        """
        self._now = now
        self._given = gram @ now.transpose(1, 2)
        self._factor = cholesky(gram, ridge, what)

    def __call__(self, cross: Tensor) -> Tensor:
        """Shape as the layer's weight, from E[x y^T]."""
        change = torch.cholesky_solve(cross - self._given, self._factor)
        return self._now + change.transpose(1, 2)


def rescaled(now: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """The layer's weight with the best factor for each output, as BN recalibration gives one."""
    energy = ((now @ gram) * now).sum(2)
    factor = (now * cross.transpose(1, 2)).sum(2) / energy.clamp_min(1e-12)
    return now * torch.where(energy > 1e-12, factor, 1.0).unsqueeze(2)


@dataclass(frozen=True)
class Choice:
    """What other images confirmed of a layer's fits.

    Attributes:
        ridge: The best pull towards the weight that the layer has.
        refit: Outputs that the refit at this ridge serves better than what they have, and than
            `rescaled`; bool, (groups, outputs / groups).
        rescale: Outputs that a new factor serves best.
    """

    ridge: float
    refit: Tensor
    rescale: Tensor


def choose(
    sums: Sums,
    now: Tensor,
    centred: bool,
    importance: Tensor,
    rounded: Callable[[Tensor], Tensor],
    what: str,
    ridges: Sequence[float] = RIDGES,
) -> Choice:
    """Fit to each half of the images, judge on the other.

    Args:
        now: The layer's weight, (groups, outputs / groups, columns), float64.
        importance: Of each output's squared error, (groups, outputs / groups).
        rounded: Weights as the layer will hold them.
    """
    errors: Tensor | float = 0.0
    for half in range(HALVES):
        gram, cross = sums.gram(centred, half), sums.cross(centred, half)
        fits = [rounded(now), rounded(rescaled(now, gram, cross))]
        fits += [rounded(Solver(now, gram, ridge, what)(cross)) for ridge in ridges]
        errors = errors + sums.errors_of(fits, centred, half)
    assert isinstance(errors, Tensor)
    total = (errors[2:] * importance).sum((1, 2))
    best = int(total.argmin())
    three = torch.stack([errors[0], errors[1], errors[2 + best]]).argmin(0)
    return Choice(ridges[best], three == 2, three == 1)
