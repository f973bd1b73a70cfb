"""Costs along one walk: what is decided, with the rest at its cheapest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from amc.cost.choices import IntArray
from amc.cost.prices import FloatArray, PriceList
from amc.graph.types import ChannelCount
from amc.quantplan.remember import key_of

if TYPE_CHECKING:
    from amc.cost.model import CostModel

_LIMIT = 1024  # tables of one operator's prices that are remembered
_DECISIONS = 16384  # of one network: of ResNet-56 a few ten megabytes


class WalkCosts:
    """Costs along one walk: decisions so far, the rest at the model's floor.

    ``total`` never exceeds the bound if every decision's cost does not: the floor is reachable
    before the first step, and after each step the rest at its floor still fits.

    Attributes:
        kept: Channels of every group.
        options: Bit option index of every layer.
        total: Cost of the strategy that these are.
    """

    def __init__(
        self,
        model: CostModel,
        kept: Sequence[int] | IntArray,
        options: Sequence[int] | IntArray,
    ) -> None:
        self._model = model
        self.kept, self.options = listed(kept), listed(options)
        self._forms = model.states.forms(self.options)
        self._states = [priced.stated.rule(self.options, self._forms) for priced in model.priced]
        self._costs = model.operator_costs(self.kept, self.options)
        self.total = math.fsum(self._costs)

    def layer_costs(self) -> FloatArray:
        """Cost of every layer as decided so far, shape (layers,)."""
        return np.array(self._costs[: len(self._model.graph.layers)])

    def decision_costs(self, layer: int, level: int | None, option: int | None) -> FloatArray:
        """Total cost, the rest at its floor, of deciding a layer.

        Args:
            level, option: Index of the ratio level and of the option; None for all of them.

        Returns:
            Shape (levels, options), or (1, 1) for one decision, which then is exactly the ``total``
            that `decide` leads to; the others are off by rounding.
        """
        if level is not None and option is not None:
            costs = self._after(layer, level, option)[-1]
            return np.array([[math.fsum(costs)]])
        totals = self._known_decisions(layer)
        rows = slice(None) if level is None else [level]
        columns = slice(None) if option is None else [option]
        chosen: FloatArray = totals[rows][:, columns]
        return chosen

    def decide(self, layer: int, level: int, option: int) -> None:
        """Take a decision."""
        if self._is_taken(layer, level, option):
            return
        self.kept, self.options, self._forms, self._states, self._costs = self._after(
            layer, level, option
        )
        self.total = math.fsum(self._costs)

    def _is_taken(self, layer: int, level: int, option: int) -> bool:
        """Whether a decision changes nothing."""
        model = self._model
        counts = zip(
            model.graph.layers[layer].decides, model.levels[layer][level].tolist(), strict=True
        )
        return option == self.options[layer] and all(self.kept[g] == count for g, count in counts)

    def _after(
        self, layer: int, level: int, option: int
    ) -> tuple[list[int], list[int], list[int], list[int], list[float]]:
        """Kept channels, options, forms, states and costs once a decision is taken."""
        model = self._model
        kept, states, costs = self.kept.copy(), self._states.copy(), self._costs.copy()
        decides = model.graph.layers[layer].decides
        for group, count in zip(decides, model.levels[layer][level].tolist(), strict=True):
            kept[group] = count
        options, forms, moved = self._with(layer, option)
        for index in moved:
            states[index] = model.priced[index].stated.rule(options, forms)
        for index in moved.union(model.affected[layer]):
            costs[index] = model.priced[index].cost_in(states[index], kept)
        return kept, options, forms, states, costs

    def _with(self, layer: int, option: int) -> tuple[list[int], list[int], set[int]]:
        """options and forms when a layer has another option, and what else that moves."""
        if option == self.options[layer]:
            return self.options, self._forms, set()
        options = self.options.copy()
        options[layer] = option
        return options, *self._model.after(layer, options, self._forms)

    def _known_decisions(self, layer: int) -> FloatArray:
        """`_all_decisions`; descents at one price after another ask nearly all of it again."""
        known, key = self._model.known_decisions, (layer, *self.kept, *self.options)
        totals = known.get(key)
        if totals is None:
            if len(known) >= _DECISIONS:
                known.clear()
            totals = known[key] = self._all_decisions(layer)
            totals.flags.writeable = False
        return totals

    def _all_decisions(self, layer: int) -> FloatArray:
        """Total after every decision, shape (levels, options)."""
        model, levels = self._model, self._model.levels[layer]
        if len(model.choices.options) == 1:  # no operator comes to another state
            totals = np.full((len(levels), 1), self.total)
            for index in model.affected[layer]:
                prices = model.level_prices(layer, index)
                totals += prices.at(self.kept, (self._states[index],)) - self._costs[index]
            return totals
        with_option = [self._with(layer, option) for option in range(len(model.choices.options))]
        moving = {layer}.union(*(moved for _, _, moved in with_option))
        others = np.zeros(len(levels))  # of what keeps its state, whatever the layer's bits are
        moved = np.zeros((len(levels), len(with_option)))
        affected = model.affected[layer]
        for index in dict.fromkeys((*affected, *sorted(moving))):
            rule, now = model.priced[index].stated.rule, self._states[index]
            if index in moving:
                states = tuple(
                    [
                        rule(options, forms) if index in changes else now
                        for options, forms, changes in with_option
                    ]
                )
                if index not in affected and states.count(now) == len(states):
                    continue  # what may have moved has not
                prices = model.level_prices(layer, index)
                moved += prices.at(self.kept, states) - self._costs[index]
            else:
                prices = model.level_prices(layer, index)
                others += prices.at(self.kept, (now,))[:, 0] - self._costs[index]
        return np.asarray(self.total + others[:, None] + moved)


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


class LevelPrices:
    """What an operator costs at every level of a layer's step; walks ask the same often."""

    def __init__(
        self,
        prices: PriceList,
        ins: LevelCounts,
        outs: LevelCounts,
        block: LevelCounts | None = None,
    ) -> None:
        """
        Args:
            block: Where it is 0 the operator is gone, and costs nothing.
        """
        self._prices, self._ins, self._outs, self._block = prices, ins, outs, block
        on = [counts for counts in (ins, outs, block) if counts is not None]
        self._key = key_of(group for counts in on for group, _ in counts.others)
        self._known: dict[Hashable, FloatArray] = {}

    def at(self, kept: Sequence[int], states: tuple[int, ...]) -> FloatArray:
        """Costs, shape (levels, states), when the other groups keep ``kept`` channels."""
        key = self._key(kept), states
        costs = self._known.get(key)
        if costs is None:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            costs = self._prices.table(self._ins.at(kept), self._outs.at(kept), states)
            if self._block is not None:
                costs = np.where(self._block.at(kept)[:, None] > 0, costs, 0.0)
            self._known[key] = costs
        return costs


def listed(numbers: Iterable[int]) -> list[int]:
    """A list of its own: Python's integers index faster than an array's."""
    return [int(number) for number in numbers]
