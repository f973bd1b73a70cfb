"""Errors that decisions may cause, as pieces that factors multiply.

A group's estimated error is cut into `PIECES` by the channels kept: what is lost down to the first
of `CUTS`, from there to the second, and beyond; a layer's bits have one piece. Factors of pieces
are what rewards tell (`envs.surrogate`) and what policies correct (`envs.trust`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag

from amc.cost.model import CostModel
from amc.recovery.errors import LayerErrors
from envs.knapsack import KnapsackSolver
from envs.neighbours import Choice

FloatArray = npt.NDArray[np.float64]

CUTS = (0.7, 0.4)  # of a group's channels kept: where one piece of its error ends
PIECES = len(CUTS) + 1
WIDTH = 1.5  # standard deviation of a factor before any evaluation
LIKENESS = 0.25  # correlation of the factors of one group before any evaluation


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """Errors that decisions may cause, but for factors.

    Attributes:
        costs: Of the walk.
        errors: As estimated without an evaluation, or as a policy corrects them.
    """

    costs: CostModel
    errors: LayerErrors

    @cached_property
    def groups(self) -> list[int]:
        """Indices of the free groups."""
        return [group.index for group in self.costs.graph.free_groups]

    @cached_property
    def layers(self) -> list[int]:
        """Layers whose bits are to be chosen."""
        layers = range(len(self.costs.graph.layers))
        return list(layers) if len(self.costs.choices.options) > 1 else []

    @cached_property
    def pieces(self) -> list[FloatArray]:
        """Of every free group's errors."""
        return [pieces(self.errors.removal[group]) for group in self.groups]

    @cached_property
    def prior(self) -> FloatArray:
        """Covariance of the factors before any evaluation, shape (factors, factors)."""
        of_one_group = LIKENESS + (1 - LIKENESS) * np.eye(PIECES)
        of_groups = np.kron(np.eye(len(self.groups)), of_one_group)
        return np.asarray(WIDTH**2 * block_diag(of_groups, np.eye(len(self.layers))), np.float64)

    def parts(self, choices: Sequence[Choice]) -> FloatArray:
        """Estimated errors, shape (choices, factors)."""
        removal = [
            piece[:, [kept[group] for kept, _ in choices]]
            for group, piece in zip(self.groups, self.pieces, strict=True)
        ]
        bits = [
            self.errors.options[layer][[options[layer] for _, options in choices]][None]
            for layer in self.layers
        ]
        return np.concatenate([*removal, *bits, np.empty((0, len(choices)))]).T

    def scaled(self, factors: Sequence[float] | FloatArray) -> LayerErrors:
        """The errors times the factors of their pieces."""
        of_groups, of_layers = np.split(np.asarray(factors), [PIECES * len(self.groups)])
        removal = list(self.errors.removal)
        by_group = of_groups.reshape(-1, PIECES)
        for group, piece, factor in zip(self.groups, self.pieces, by_group, strict=True):
            removal[group] = (factor[:, None] * piece).sum(0)
        bits = self.errors.options
        if self.layers:
            bits = bits * of_layers[:, None]
        return LayerErrors(tuple(removal), bits)

    @cached_property
    def solver(self) -> KnapsackSolver:
        """Allocations by the errors as they are."""
        return KnapsackSolver(self.costs, self.errors)

    @cached_property
    def usual_price(self) -> float:
        """Of a unit of cost, with the errors as they are: whatever was proposed before."""
        return self.solver.descend_to_bound()[1]


def pieces(curve: FloatArray) -> FloatArray:
    """A group's errors cut into those down to each of `CUTS`, and below the last.

    Args:
        curve: Nats by the channels kept, shape (channels + 1,); never less for fewer of them, and
            only that of no channel at all is infinite.

    Returns:
        Shape (PIECES, channels + 1); their sum is the curve.
    """
    counts = np.arange(len(curve))
    ends = [math.ceil(cut * (len(curve) - 1)) for cut in CUTS]
    down_to = [curve[np.maximum(counts, end)] for end in ends]
    return np.diff(np.stack([*down_to, curve]), axis=0, prepend=np.zeros((1, len(curve))))
