"""What the program would decide next: its advice at every step, within the budget that is left."""

from __future__ import annotations

import numpy as np

from amc.cost.model import CostModel, WalkCosts
from amc.recovery.errors import LayerErrors
from envs.levels import nearest_level
from envs.program import Plan, ProgramSolver

PLANS = 48  # allocations beside the cheapest, the best and the whole network
FACTOR = 30.0  # between the price that meets the bound / this and times this


class Guide:
    """Allocations of least estimated error for many bounds, looked up along a walk.

    A walk that has spent more than the program would on its first layers is advised to spend
    less on the others, and the other way round: advice taken at every step meets the budget.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors) -> None:
        self._costs = costs
        self._plans = _plans(costs, errors)
        layers = costs.graph.layers
        self._decided_at = np.full(len(costs.graph.groups), -1)
        for layer in layers:
            self._decided_at[list(layer.decides)] = layer.index
        self._levels = [
            [nearest_level(costs, plan.kept, layer.index) for layer in layers]
            for plan in self._plans
        ]

    def decision(self, step: int, walk: WalkCosts) -> tuple[int, int]:
        """Ratio level and bit pair for a layer, of the best plan whose rest still fits.

        Args:
            walk: Decided up to the layer before.
        """
        low, high = 0, len(self._plans)  # plans below low fit
        while low < high:
            middle = (low + high) // 2
            if self._fits(self._plans[middle], step, walk):
                low = middle + 1
            else:
                high = middle
        place = max(low - 1, 0)
        return self._levels[place][step], self._plans[place].pairs[step]

    def _fits(self, plan: Plan, step: int, walk: WalkCosts) -> bool:
        kept = [
            now if when < step else planned
            for now, planned, when in zip(
                walk.kept, plan.kept, self._decided_at.tolist(), strict=True
            )
        ]
        cost = self._costs.cost(kept, walk.pairs[:step] + plan.pairs[step:])
        return cost <= self._costs.bound


def _plans(costs: CostModel, errors: LayerErrors) -> list[Plan]:
    """At prices around the one that meets the bound, and both ends."""
    solver = ProgramSolver(costs, errors)
    best, price = solver.descend_to_bound()
    whole = solver.whole
    plans = [solver.cheapest, best, whole]
    for factor in np.geomspace(1 / FACTOR, FACTOR, PLANS).tolist():
        plans.append(solver.descend(price * factor, whole))
    return _undominated(plans)


def _undominated(plans: list[Plan]) -> list[Plan]:
    """Cheapest first; each errs less than all that are cheaper."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.cost, plan.error)):
        if not kept or plan.error < kept[-1].error:
            kept.append(plan)
    return kept
