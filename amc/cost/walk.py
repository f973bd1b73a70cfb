"""Costs along one walk: what is decided, with the rest at its cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
        self._forms = model.states.forms(self.pairs)
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
            costs = self._after(layer, level, pair)[-1]
            return np.array([[math.fsum(costs)]])
        totals = self._all_decisions(layer)
        rows = slice(None) if level is None else [level]
        columns = slice(None) if pair is None else [pair]
        chosen: FloatArray = totals[rows][:, columns]
        return chosen

    def decide(self, layer: int, level: int, pair: int) -> None:
        """Take a decision."""
        if self._is_taken(layer, level, pair):
            return
        self.kept, self.pairs, self._forms, self._costs = self._after(layer, level, pair)
        self.total = math.fsum(self._costs)

    def _is_taken(self, layer: int, level: int, pair: int) -> bool:
        """Whether a decision changes nothing."""
        model = self._model
        counts = zip(
            model.graph.layers[layer].decides, model.levels[layer][level].tolist(), strict=True
        )
        return pair == self.pairs[layer] and all(self.kept[g] == count for g, count in counts)

    def _after(
        self, layer: int, level: int, pair: int
    ) -> tuple[list[int], list[int], list[int], list[float]]:
        """Kept channels, bit pairs, forms and costs once a decision is taken."""
        model = self._model
        kept, costs = self.kept.copy(), self._costs.copy()
        decides = model.graph.layers[layer].decides
        for group, count in zip(decides, model.levels[layer][level].tolist(), strict=True):
            kept[group] = count
        pairs, forms, moved = self._with(layer, pair)
        for index in moved.union(model.affected[layer]):
            costs[index] = model.priced[index].cost(kept, pairs, forms)
        return kept, pairs, forms, costs

    def _with(self, layer: int, pair: int) -> tuple[list[int], list[int], set[int]]:
        """Bit pairs and forms when a layer has another bit pair, and what else that moves."""
        if pair == self.pairs[layer]:
            return self.pairs, self._forms, set()
        pairs = self.pairs.copy()
        pairs[layer] = pair
        return pairs, *self._model.after(layer, pairs, self._forms)

    def _all_decisions(self, layer: int) -> FloatArray:
        """Total after every decision, shape (levels, pairs)."""
        model, levels = self._model, self._model.levels[layer]
        with_pair = [self._with(layer, pair) for pair in range(len(model.choices.pairs))]
        moving = {layer}.union(*(moved for _, _, moved in with_pair))
        others = np.zeros(len(levels))  # of what keeps its state, whatever the layer's bits are
        moved = np.zeros((len(levels), len(with_pair)))
        for index in dict.fromkeys((*model.affected[layer], *sorted(moving))):
            prices, rule = model.priced[index].prices, model.priced[index].stated.rule
            ins, outs = (counts.at(self.kept) for counts in model.counts_of(layer, index))
            if index in moving:
                states = [rule(pairs, forms) for pairs, forms, _ in with_pair]
                moved += prices.table(ins, outs, states) - self._costs[index]
            else:
                state = rule(self.pairs, self._forms)
                others += prices.column(ins, outs, state) - self._costs[index]
        totals: FloatArray = self.total + others[:, None] + moved
        return totals


@dataclass(frozen=True)
class LevelCounts:
    """A channel count at every level of a layer's step.

    Attributes:
        decided: What the step and nothing else sets, shape (levels,).
        others: Groups decided by other steps, and how often each of their channels counts.
    """

    decided: IntArray
    others: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, count: ChannelCount, decides: Sequence[int], levels: IntArray) -> LevelCounts:
        """
        Args:
            decides: Groups that the step decides.
            levels: What it may keep of them, shape (levels, groups decided).
        """
        decided = np.full(len(levels), count.fixed, np.int64)
        for group, times in count.terms:
            if group in decides:
                decided += levels[:, decides.index(group)] * times
        return cls(decided, tuple(term for term in count.terms if term[0] not in decides))

    def at(self, kept: Sequence[int]) -> IntArray:
        """The counts, shape (levels,), when the other groups keep ``kept`` channels."""
        counts: IntArray = self.decided + sum(kept[group] * times for group, times in self.others)
        return counts


def listed(numbers: Iterable[int]) -> list[int]:
    """A list of its own: Python's integers index faster than an array's."""
    return [int(number) for number in numbers]
