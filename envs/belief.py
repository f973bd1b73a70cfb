"""What rewards say of the estimated errors: a factor for each of them, and how sure it is.

The program trusts estimates that were made without an evaluation, one decision at a time. Every
evaluated strategy tells how far they are off. With e_k(s) the estimated error of strategy s at
decision k (a channel group's removal, a layer's bits) and r_0 the original's reward,

    r_0 - r(s) = scale * sum_k f_k e_k(s) + noise        f_k ~ N(1, WIDTH^2)

is linear in the factors f, and their posterior is a normal distribution in closed form (Bayesian
linear regression: Bishop 2006, section 3.3). Solving the program under factors drawn from it is
Thompson sampling (Thompson 1933): what may be better than it looks is tried, what is known to be
worse is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amc.cost.model import CostModel
from amc.recovery.errors import LayerErrors
from amc.strategy import Strategy
from envs.program import ProgramSolver

FloatArray = npt.NDArray[np.float64]

WIDTH = 1.0  # standard deviation of a factor before any evaluation
NOISE = 0.1  # of what a strategy loses, relative: errors do not quite add
FLOOR = 0.05  # of the median loss: what small losses are off by all the same
LEAST = 0.02  # a factor below it would make a decision free


class ErrorBelief:
    """Factors of the estimated errors, learnt from evaluated strategies."""

    def __init__(self, costs: CostModel, errors: LayerErrors, whole: float) -> None:
        """
        Args:
            errors: As estimated without an evaluation.
            whole: Reward of the original network.
        """
        self._costs, self._errors, self._whole = costs, errors, whole
        self._groups = [group.index for group in costs.graph.free_groups]
        layers = range(len(costs.graph.layers))
        self._layers = list(layers) if len(costs.choices.pairs) > 1 else []
        self._parts: list[FloatArray] = []  # estimated errors of each strategy, (factors,)
        self._lost: list[float] = []

    @property
    def factors_count(self) -> int:
        """How many factors there are: one for each free group, one for each layer's bits."""
        return len(self._groups) + len(self._layers)

    def note(self, strategy: Strategy, reward: float) -> None:
        """Take an evaluated strategy into account."""
        kept, pairs = (numbers.tolist() for numbers in self._costs.encode(strategy))
        removal = [self._errors.removal[group][kept[group]] for group in self._groups]
        rounding = [self._errors.bits[layer][pairs[layer]] for layer in self._layers]
        self._parts.append(np.array([*removal, *rounding]))
        self._lost.append(self._whole - reward)

    def posterior(self) -> tuple[FloatArray, FloatArray]:
        """Mean of the factors, shape (factors,), and their covariance, (factors, factors)."""
        mean: FloatArray = np.ones(self.factors_count)
        precision: FloatArray = np.eye(self.factors_count) / WIDTH**2
        told = self._told()
        if told is not None:
            parts, lost = told
            weights = 1 / np.square(NOISE * lost.clip(0) + FLOOR)
            right = precision @ mean + parts.T @ (weights * lost)
            precision = precision + (parts.T * weights) @ parts
            mean = np.asarray(np.linalg.solve(precision, right), np.float64)
        return mean, np.asarray(np.linalg.inv(precision), np.float64)

    def _told(self) -> tuple[FloatArray, FloatArray] | None:
        """Estimated errors, shape (strategies, factors), and losses, (strategies,), of median 1.

        None where there is nothing to tell errors by: most strategies lose nothing, or are
        estimated to.
        """
        if not self._parts:
            return None
        parts, lost = np.stack(self._parts), np.array(self._lost)
        typical, median = float(np.median(parts.sum(1))), float(np.median(lost))
        return (parts / typical, lost / median) if min(typical, median) > 0 else None

    def draw(self, rng: np.random.Generator, boldness: float) -> LayerErrors:
        """Errors as they may be.

        Args:
            boldness: Factor of the posterior's standard deviation; 0 gives its mean.
        """
        mean, covariance = self.posterior()
        root = np.linalg.cholesky(covariance)
        factors = mean + boldness * (root @ rng.standard_normal(len(mean)))
        return self._scaled(factors.clip(LEAST))

    def propose(self, rng: np.random.Generator, boldness: float) -> Strategy:
        """The allocation of least error within the budget, were errors as `draw` gives them."""
        solver = ProgramSolver(self._costs, self.draw(rng, boldness))
        best, _ = solver.descend_to_bound(self._usual_price)
        best = solver.spend_the_rest(best)
        return self._costs.decode(best.kept, best.pairs)

    @cached_property
    def _usual_price(self) -> float:
        """Of a unit of cost, with the errors as estimated: whatever was proposed before."""
        return ProgramSolver(self._costs, self._errors).descend_to_bound()[1]

    def _scaled(self, factors: Sequence[float] | FloatArray) -> LayerErrors:
        of_groups, of_layers = np.split(np.asarray(factors), [len(self._groups)])
        removal = list(self._errors.removal)
        for group, factor in zip(self._groups, of_groups.tolist(), strict=True):
            removal[group] = removal[group] * factor
        bits = self._errors.bits
        if self._layers:
            bits = bits * of_layers[:, None]
        return LayerErrors(tuple(removal), bits)
