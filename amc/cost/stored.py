"""Prices of what a network takes in a file, which depend on its weights and not on their count.

A formula cannot say what entropy coding makes of a layer. What writes the file tells it of every
layer and option (`StoredCosts`): bytes of a weight, of an output channel, and of what is there once
however few channels stay. Of few channels a weight takes a little more: so much more with each
halving of how many weights there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from amc.cost.formulas import params
from amc.cost.operators import Operator
from amc.graph.types import Signature
from amc.strategy import Option

PACKED = "packed_bytes"
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Numbers = TypeVar("Numbers", float, FloatArray)


@dataclass(frozen=True)
class StoredCost:
    """What something takes in a file.

    Attributes:
        weight, output: Bytes of each weight, and beside them of each output channel.
        once: Bytes beside all of these.
        all_weights: What ``weight`` holds of.
        growth: By what fraction of itself it grows with each halving of them.
    """

    weight: float = 0.0
    output: float = 0.0
    once: float = 0.0
    all_weights: int = 1
    growth: float = 0.0

    def of_weights(self, weights: Numbers) -> Numbers:
        """Bytes of so many weights alone; numbers or arrays of them."""
        halvings = np.log2(np.maximum(self.all_weights / np.maximum(weights, 1), 1))
        found: Numbers = self.weight * weights * (1 + self.growth * halvings)
        return found


class StoredCosts(Protocol):
    """What the layers of a network take in a file.

    Attributes:
        number: Bytes of a parameter that no layer has.
    """

    number: float

    def of(self, layer: int, option: Option) -> StoredCost:
        """Of a layer under an option."""

    def fingerprint(self) -> str:
        """Changes with the costs."""


def stored_cost(costs: StoredCosts, operator: Operator, option: Option) -> StoredCost:
    """Of any operator; what is no layer and has no parameters takes nothing."""
    if operator.layer >= 0:
        return costs.of(operator.layer, option)
    return StoredCost(weight=costs.number) if operator.is_stored else StoredCost()


def stored_bytes(cost: StoredCost, signature: Signature, ins: int, outs: int) -> float:
    """With so many channels."""
    weights = float(params(signature, ins, outs, False))
    return float(cost.of_weights(weights)) + cost.output * outs + cost.once


class StoredPrices:
    """Prices of one operator by its state, its layer's option."""

    def __init__(self, signature: Signature, costs: Sequence[StoredCost]) -> None:
        self._signature, self._costs = signature, tuple(costs)
        self.is_free = all(cost == StoredCost() for cost in costs)

    def one(self, ins: int, outs: int, state: int) -> float:
        return stored_bytes(self._costs[state], self._signature, ins, outs)

    def column(self, ins: IntArray, outs: IntArray, state: int) -> FloatArray:
        cost, weights = self._costs[state], params(self._signature, ins, outs, False)
        found: FloatArray = cost.of_weights(weights.astype(np.float64))
        return found + cost.output * outs + cost.once

    def table(self, ins: IntArray, outs: IntArray, states: Sequence[int]) -> FloatArray:
        return np.stack([self.column(ins, outs, state) for state in states], 1)
