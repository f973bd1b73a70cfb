"""Costs along one walk: what is decided, with the rest at its cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from amc.cost.choices import IntArray
from amc.cost.prices import FloatArray
from amc.graph.types import ChannelCount

if TYPE_CHECKING:
    from amc.cost.model import CostModel


class WalkCosts:
    """Costs along one walk: decisions so far, the rest at the model's floor.

    ``total`` never exceeds the bound if every decision's cost does not: the floor is reachable
    before the first step, and after each step the rest at its floor still fits.

    Attributes:
        kept: Channels of every group.
        pairs: Bit pair index of every layer.
        total: Cost of the strategy that these are.
    """

    def __init__(
        self,
        model: CostModel,
        kept: Sequence[int] | IntArray,
        pairs: Sequence[int] | IntArray,
    ) -> None:
        self._model = model
        self.kept, self.pairs = listed(kept), listed(pairs)
        self._costs = model.operator_costs(self.kept, self.pairs)
        self.total = math.fsum(self._costs)

    def layer_costs(self) -> FloatArray:
        """Cost of every layer as decided so far, shape (layers,)."""
        return np.array(self._costs[: len(self._model.graph.layers)])

    def decision_costs(self, layer: int, level: int | None, pair: int | None) -> FloatArray:
        """Total cost, the rest at its floor, of deciding a layer.

        Args:
            level, pair: Index of the ratio level and of the bit pair; None for all of them.

        Returns:
            Shape (levels, pairs), or (1, 1) for one decision, which then is exactly the ``total``
            that `decide` leads to; the others are off by rounding.
        """
        if level is not None and pair is not None:
            _, _, costs = self._after(layer, level, pair)
            return np.array([[math.fsum(costs)]])
        totals = self._all_decisions(layer)
        rows = slice(None) if level is None else [level]
        columns = slice(None) if pair is None else [pair]
        chosen: FloatArray = totals[rows][:, columns]
        return chosen

    def decide(self, layer: int, level: int, pair: int) -> None:
        """Take a decision."""
        self.kept, self.pairs, self._costs = self._after(layer, level, pair)
        self.total = math.fsum(self._costs)

    def _after(self, layer: int, level: int, pair: int) -> tuple[list[int], list[int], list[float]]:
        """Kept channels, bit pairs and costs once a decision is taken."""
        model = self._model
        kept, pairs, costs = self.kept.copy(), self.pairs.copy(), self._costs.copy()
        decides = model.graph.layers[layer].decides
        for group, count in zip(decides, model.levels[layer][level].tolist(), strict=True):
            kept[group] = count
        pairs[layer] = pair
        for index in model.affected[layer]:
            costs[index] = model.priced[index].cost(kept, pairs)
        return kept, pairs, costs

    def _all_decisions(self, layer: int) -> FloatArray:
        """Total after every decision, shape (levels, pairs)."""
        model, levels = self._model, self._model.levels[layer]
        decides = model.graph.layers[layer].decides
        others = np.zeros(len(levels))  # of what the step affects beside the layer itself
        for index in model.affected[layer]:
            operator, prices = model.priced[index].operator, model.priced[index].prices
            ins = self._counts(operator.inputs, decides, levels)
            outs = self._counts(operator.outputs, decides, levels)
            if operator.layer == layer:
                own = prices.table(ins, outs) - self._costs[index]
            else:
                pair = self.pairs[operator.layer] if operator.layer >= 0 else 0
                others += prices.column(ins, outs, pair) - self._costs[index]
        totals: FloatArray = self.total + others[:, None] + own
        return totals

    def _counts(self, count: ChannelCount, decides: tuple[int, ...], levels: IntArray) -> IntArray:
        """Values of a channel count at every level, shape (levels,)."""
        values = np.full(len(levels), count.fixed, np.int64)
        for group, times in count.terms:
            chosen = levels[:, decides.index(group)] if group in decides else self.kept[group]
            values += chosen * times
        return values


def listed(numbers: Iterable[int]) -> list[int]:
    """A list of its own: Python's integers index faster than an array's."""
    return [int(number) for number in numbers]
