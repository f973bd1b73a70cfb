"""What the knapsack would decide next: its advice at every step, within the budget that is left."""

from __future__ import annotations

import numpy as np

from amc.cost.model import CostModel, WalkCosts
from amc.recovery.errors import LayerErrors
from envs.knapsack import Allocation, KnapsackSolver, undominated
from envs.levels import nearest_level

PRICES = 48  # allocations beside the cheapest, the best and the whole network
FACTOR = 30.0  # between the price that meets the bound / this and times this


class LookAhead:
    """Allocations of least estimated error for many bounds, looked up along a walk.

    A walk that has spent more than the knapsack would on its first layers is advised to spend
    less on the others, and the other way round: advice taken at every step meets the budget.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors) -> None:
        self._costs = costs
        self._allocations = _allocations(costs, errors)
        layers = costs.graph.layers
        self._decided_at = np.full(len(costs.graph.groups), -1)
        for layer in layers:
            self._decided_at[list(layer.decides)] = layer.index
        self._levels = [
            [nearest_level(costs, allocation.kept, layer.index) for layer in layers]
            for allocation in self._allocations
        ]

    def decision(self, step: int, walk: WalkCosts) -> tuple[int, int]:
        """Ratio level and option for a layer, of the best allocation whose rest still fits.

        Args:
            walk: Decided up to the layer before.
        """
        low, high = 0, len(self._allocations)  # allocations below low fit
        while low < high:
            middle = (low + high) // 2
            if self._fits(self._allocations[middle], step, walk):
                low = middle + 1
            else:
                high = middle
        place = max(low - 1, 0)
        return self._levels[place][step], self._allocations[place].options[step]

    def _fits(self, allocation: Allocation, step: int, walk: WalkCosts) -> bool:
        kept = [
            now if when < step else planned
            for now, planned, when in zip(
                walk.kept, allocation.kept, self._decided_at.tolist(), strict=True
            )
        ]
        cost = self._costs.cost(kept, walk.options[:step] + allocation.options[step:])
        return cost <= self._costs.bound


def _allocations(costs: CostModel, errors: LayerErrors) -> list[Allocation]:
    """At prices around the one that meets the bound, and both ends; the cheapest first.

    Each errs less than all that are cheaper.
    """
    solver = KnapsackSolver(costs, errors)
    best, price = solver.descend_to_bound()
    whole = solver.whole
    found = [solver.cheapest, best, whole]
    for factor in np.geomspace(1 / FACTOR, FACTOR, PRICES).tolist():
        found.append(solver.descend(price * factor, whole))
    kept = undominated([one.error for one in found], [one.cost for one in found])
    return [found[place] for place in kept]
