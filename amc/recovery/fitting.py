"""Sums over rows that a layer is fitted to, and which of several weights other images confirm.

Of every batch some images are fitted to, and the others judge, by sums alone: ``E (y - V x)^2``
follows from ``E[x x^T]``, ``E[x y^T]`` and ``E[y^2]``. How strongly a fit is pulled to the weight
that a layer has, and whether it is taken at all, follows from that error: where rows are few beside
columns, or alike, the pull is strong. What is chosen is then fitted to all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from amc.recovery.least_squares import cholesky
from amc.recovery.products import cross_moments, second_moments

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean input energy, towards the weight the layer has
NOTHING = 1e-4  # of an output's energy: an error that needs no repair
JUDGES = 4  # one image in so many judges
SAMPLE = 64  # outputs by which a wide layer's ridge is chosen, at least
EVERY = slice(None)
FITTED, JUDGING, ALL = 0, 1, 2
SMALLEST = 1e-18  # products of smaller values are subnormal, which takes a hundred times as long


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
        self,
        inputs: list[Tensor],
        outputs: Sequence[Tensor],
        images: Sequence[int],
        *,
        judging: bool = True,
    ) -> None:
        """
        Args:
            inputs: A batch each, (groups, rows, columns), an image's rows side by side. Taken
                over: shifted one by one, for all of them twice would be much memory.
            outputs: A batch each, (groups, rows, outputs / groups).
            images: Of each batch.
            judging: Whether some images are to judge.
        """
        self._judging = judging
        self._x_shift = inputs[0].mean(1, keepdim=True)
        self._y_shift = outputs[0].mean(1, keepdim=True)
        for batch, x in enumerate(inputs):
            inputs[batch] = hardshrink(x - self._x_shift, SMALLEST)
        self._inputs = inputs
        pairs = zip(inputs, images, strict=True)
        self._cuts = [_cut(x.shape[1], n) if judging else x.shape[1] for x, n in pairs]
        self._gram = self._sum(second_moments, inputs)
        self._x = self._sum(lambda x: x.sum(1), inputs)
        fitted, rows = sum(self._cuts), sum(x.shape[1] for x in inputs)
        self._rows = [fitted, rows - fitted, rows]
        self.aim_at(outputs)

    def aim_at(self, outputs: Sequence[Tensor]) -> None:
        """Take these for y, one for each batch; the inputs stay."""
        shifted = [hardshrink(y - self._y_shift, SMALLEST) for y in outputs]
        self._cross = self._sum(cross_moments, self._inputs, shifted)
        self._y = self._sum(lambda y: y.sum(1), shifted)
        if self._judging:
            self._squares = self._sum(lambda y: y.square().sum(1), shifted)

    def _sum(self, of: Callable[..., Tensor], *batches: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the rows that are fitted to, and over those that judge, float64."""

        def sums(part: int) -> Iterable[Tensor]:
            for *rows, cut in zip(*batches, self._cuts, strict=True):
                span = slice(cut) if part == FITTED else slice(cut, None)
                yield of(*(x[:, span] for x in rows)).double()

        fitted = reduce(operator.add, sums(FITTED))
        judging = reduce(operator.add, sums(JUDGING)) if self._judging else torch.zeros(())
        return [fitted, judging, fitted + judging]

    def _mean(self, sums: Sequence[Tensor], part: int) -> Tensor:
        return sums[part] / max(self._rows[part], 1)

    def _centre(self, part: int) -> _Centre:
        return _Centre(self._mean(self._x, part), self._mean(self._y, part))

    def _from(self, centred: bool, part: int) -> _Centre:
        """Where rows count from: a part's mean, or 0 in what is not shifted."""
        if centred:
            return self._centre(part)
        return _Centre(-self._x_shift.squeeze(1).double(), -self._y_shift.squeeze(1).double())

    def gram(self, centred: bool, part: int = ALL) -> Tensor:
        """E[x x^T], (groups, columns, columns); about the mean if ``centred``."""
        return self._gram_from(self._from(centred, part), part)

    def cross(self, centred: bool, part: int = ALL) -> Tensor:
        """E[x y^T], (groups, columns, outputs / groups)."""
        return self._cross_from(self._from(centred, part), part)

    def _gram_from(self, centre: _Centre, part: int) -> Tensor:
        mean = self._centre(part).x
        off = mean - centre.x
        return self._mean(self._gram, part) - _outer(mean, mean) + _outer(off, off)

    def _cross_from(self, centre: _Centre, part: int) -> Tensor:
        mean = self._centre(part)
        off = _outer(mean.x - centre.x, mean.y - centre.y)
        return self._mean(self._cross, part) - _outer(mean.x, mean.y) + off

    def judged(
        self, weights: Sequence[Tensor], centred: bool, outputs: slice = EVERY
    ) -> tuple[Tensor, Tensor]:
        """Squared errors on the images that are not fitted to, and what outputs of 0 would have.

        Args:
            weights: (groups, outputs / groups, columns) each; if ``centred``, what they give is
                right on average over the images that are fitted to.
            outputs: Of each group, those that the weights give.

        Returns:
            Shapes (weights, groups, outputs / groups) and (groups, outputs / groups).
        """
        centre = self._from(centred, FITTED)
        gram, cross = self._gram_from(centre, JUDGING), self._cross_from(centre, JUDGING)
        mean = self._mean(self._y, JUDGING)
        energy = self._mean(self._squares, JUDGING) - mean.square()
        energy = (energy + (mean - centre.y).square())[:, outputs]
        twice = 2 * cross.transpose(1, 2)[:, outputs]
        found = [energy + ((weight @ gram - twice) * weight).sum(2) for weight in weights]
        return torch.stack(found), energy

    def means(self) -> tuple[Tensor, Tensor]:
        """E[x] (groups, columns), E[y] (groups, outputs / groups), over all images."""
        mean = self._centre(ALL)
        return mean.x + self._x_shift.squeeze(1), mean.y + self._y_shift.squeeze(1)

    def outputs(self, weight: Tensor) -> list[Tensor]:
        """What a layer of this weight gives, right on average; a batch each, as y.

        Args:
            weight: (groups, outputs / groups, columns), float64.
        """
        centre = self._centre(ALL)
        mean = (centre.y - (weight @ centre.x.unsqueeze(2)).squeeze(2)).float().unsqueeze(1)
        mean, weight = mean + self._y_shift, weight.transpose(1, 2).float()
        return [x @ weight + mean for x in self._inputs]


def _cut(rows: int, images: int) -> int:
    """How many rows of a batch are fitted to; of a single image, half of them."""
    if images < 2:
        return rows // 2
    return rows // images * (images - max(images // JUDGES, 1))


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(2) * y.unsqueeze(1)


class Solver:
    """Gives the weight V that minimises E ||y - V x||^2 + ridge ||V - now||^2."""

    def __init__(
        self, now: Tensor, gram: Tensor, ridge: float, what: str, given: Tensor | None = None
    ) -> None:
        """
        Args:
            now: The layer's weight, (groups, outputs / groups, columns), float64.
            gram: E[x x^T], (groups, columns, columns).
            ridge: In mean input energies.
            what: The inputs whose moments these are, for the error.
            given: ``gram now^T``, (groups, columns, outputs / groups), where it is known.
        """
        self._now = now
        self._given = gram @ now.transpose(1, 2) if given is None else given
        self._factor = cholesky(gram, ridge, what)

    def __call__(self, cross: Tensor, outputs: slice = EVERY) -> Tensor:
        """The weights of some outputs, (groups, outputs / groups, columns), from E[x y^T]."""
        lacks = cross[..., outputs] - self._given[..., outputs]
        change = torch.cholesky_solve(lacks, self._factor)
        return self._now[:, outputs] + change.transpose(1, 2)


def rescaled(now: Tensor, given: Tensor, cross: Tensor) -> Tensor:
    """The layer's weight with the best factor for each output, as BN recalibration gives one.

    Args:
        given: ``E[x x^T] now^T``, (groups, columns, outputs / groups).
    """
    energy = (now * given.transpose(1, 2)).sum(2)
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
        needed: Outputs that the weight they have does not give already.
    """

    ridge: float
    refit: Tensor
    rescale: Tensor
    needed: Tensor

    @classmethod
    def unjudged(cls, now: Tensor, ridge: float) -> Choice:
        """Every output is refitted."""
        none = torch.zeros(now.shape[:2], dtype=torch.bool)
        return cls(ridge, ~none, none, none)


def choose(
    sums: Sums,
    now: Tensor,
    centred: bool,
    importance: Tensor,
    rounded: Callable[[Tensor], Tensor],
    what: str,
    ridges: Sequence[float] = RIDGES,
    *,
    alone: bool = True,
) -> Choice:
    """Fit to some of the images, judge on the others.

    Of a wide layer the ridge is chosen by some of its outputs, evenly spread; at this ridge every
    output is judged.

    Args:
        now: The layer's weight, (groups, outputs / groups, columns), float64.
        importance: Of each output's squared error, (groups, outputs / groups).
        rounded: Weights as the layer will hold them.
        what: The inputs whose moments these are, for an error.
        ridges: Tried, one after the other.
        alone: Whether outputs are rounded independently of one another.
    """
    gram, cross = sums.gram(centred, FITTED), sums.cross(centred, FITTED)
    given = gram @ now.transpose(1, 2)
    some = slice(None, None, max(1, now.shape[1] // SAMPLE)) if alone else EVERY
    tried = [rounded(Solver(now, gram, ridge, what, given)(cross, some)) for ridge in ridges]
    errors, _ = sums.judged(tried, centred, some)
    best = int((errors * importance[:, some]).sum((1, 2)).argmin())
    fit = tried[best]
    if some != EVERY and some.step > 1:
        fit = rounded(Solver(now, gram, ridges[best], what, given)(cross))
    fits = [rounded(now), rounded(rescaled(now, given, cross)), fit]
    errors, energy = sums.judged(fits, centred)
    chosen = errors.argmin(0)
    return Choice(ridges[best], chosen == 2, chosen == 1, errors[0] > NOTHING * energy)
