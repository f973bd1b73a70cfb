"""The allocation that needs no evaluation: least estimated error under the budget.

Errors add over decisions (as far as the estimate goes) and costs are looked up, so the best
allocation is a multiple-choice knapsack with one choice a layer. What a decision costs depends on
its neighbours (a layer's cost is in its input times its output channels): the Lagrangian of the
true costs is minimised layer by layer first, then integer programs on the costs around the best
point so far improve it, and only what meets the budget exactly is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from amc.cost.model import CostModel, WalkCosts
from amc.recovery.errors import LayerErrors
from amc.strategy import Strategy

FloatArray = npt.NDArray[np.float64]

LOWEST, HIGHEST = -12.0, 6.0  # price of a unit of cost: powers of ten, times its usual scale
PRICES = 32  # bisections of that range
PRICES_NEAR = 10  # where the price is roughly known
NEAR = 1.0  # how roughly: powers of ten
SWEEPS = 20  # over the layers, at one price
ROUNDS = 8  # integer programs, each around the best point so far
NODES = 500  # of its branch and bound: a limit that, unlike seconds, is reproducible


@dataclass(frozen=True)
class Allocation:
    """One allocation for the whole network.

    Attributes:
        kept: Channels of every group.
        options: Bit option index of every layer.
        cost, error: What it costs in the budget's metric, and is estimated to lose, in nats.
    """

    kept: list[int]
    options: list[int]
    cost: float
    error: float


def knapsack_strategy(costs: CostModel, errors: LayerErrors) -> Strategy:
    """The strategy of least estimated error that meets the budget."""
    solver = KnapsackSolver(costs, errors)
    best, _ = solver.descend_to_bound()
    target = costs.bound
    for _ in range(ROUNDS):
        found = solver.improve(best, target)
        if found.cost > costs.bound:  # the steps of several layers together save less
            target -= 1.5 * (found.cost - costs.bound)
        elif found.error < best.error * (1 - 1e-9):
            best, target = found, costs.bound
        else:
            break
    best = solver.spend_the_rest(best)
    return costs.decode(best.kept, best.options)


class KnapsackSolver:
    """Allocations of least error, by the price of a unit of cost or by a bound.

    Attributes:
        tables: Estimated error of every layer's decisions, in nats, shape (levels, options) each.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors) -> None:
        self._costs, self._errors = costs, errors
        layers = range(len(costs.graph.layers))
        self.tables = [self._table(layer) for layer in layers]
        self._open = [layer for layer in layers if self.tables[layer].size > 1]

    def _table(self, layer: int) -> FloatArray:
        """Errors of every decision of a layer, in nats, shape (levels, options)."""
        levels = self._costs.levels[layer]
        removal = np.zeros(len(levels))
        for place, group in enumerate(self._costs.graph.layers[layer].decides):
            removal = removal + self._errors.removal[group][levels[:, place]]
        table: FloatArray = removal[:, None] + self._errors.options[layer][None, :]
        return table

    def _allocation(self, walk: WalkCosts) -> Allocation:
        error = self._errors.total(walk.kept, walk.options)
        return Allocation(walk.kept, walk.options, walk.total, error)

    def _walk(self, allocation: Allocation) -> WalkCosts:
        return WalkCosts(self._costs, allocation.kept, allocation.options)

    # -- the Lagrangian -----------------------------------------------------------------------

    @property
    def cheapest(self) -> Allocation:
        """The cheapest allocation that there is."""
        return self._allocation(self._costs.start())

    @property
    def whole(self) -> Allocation:
        """Every channel, in the bits of least error."""
        options = [int(row.argmin()) for row in self._errors.options]
        return self._allocation(WalkCosts(self._costs, self._costs.graph.sizes(), options))

    @property
    def _starts(self) -> list[Allocation]:
        """Every channel; in the bits of least error, and, where layers in other bits than those
        around them cost more, all in the same bits.
        """
        options = self._costs.starting_options
        sizes, layers = self._costs.graph.sizes(), len(self._costs.graph.layers)
        alike = [[option] * layers for option in options] if len(options) > 1 else []
        allocations = [
            self.whole,
            *(self._allocation(WalkCosts(self._costs, sizes, bits)) for bits in alike),
        ]
        return [one for place, one in enumerate(allocations) if one not in allocations[:place]]

    def descend_to_bound(self, near: float | None = None) -> tuple[Allocation, float]:
        """The best allocation within the bound over prices, and its price: high enough, no higher.

        Args:
            near: A price not far from it, where one is known: found sooner, to fewer digits. One
                that proves to be far off, or is no price, changes nothing.
        """
        largest = max((float(np.ptp(self.tables[layer])) for layer in self._open), default=0.0)
        scale = max(largest, 1e-12) / self._costs.bound
        if near is not None and 10**LOWEST < near / scale < 10**HIGHEST:
            centre = math.log10(near / scale)
            ends = centre - NEAR, centre + NEAR
            best, (low, high) = self._bisect(scale, *ends, PRICES_NEAR)
            if ends[0] < low and high < ends[1]:  # some prices met the bound, some did not
                return best, 10**high * scale
        best, (_, high) = self._bisect(scale, LOWEST, HIGHEST, PRICES)
        return best, 10**high * scale

    def _bisect(
        self, scale: float, low: float, high: float, halvings: int
    ) -> tuple[Allocation, tuple[float, float]]:
        """The best within the bound over a range of prices, and what is left of the range.

        Args:
            low, high: Powers of ten, times the scale.
        """
        best, starts = self.cheapest, self._starts
        for _ in range(halvings):
            middle = (low + high) / 2
            price = 10**middle * scale
            allocations = [self.descend(price, start) for start in starts]
            allocation = min(allocations, key=lambda found: found.error + price * found.cost)
            if allocation.cost <= self._costs.bound:
                high = middle
                if allocation.error < best.error:
                    best = allocation
            else:
                low = middle
        return best, (low, high)

    def descend(self, price: float, start: Allocation) -> Allocation:
        """Each layer in turn to its least error plus priced cost, until none moves."""
        walk = self._walk(start)
        for _ in range(SWEEPS):
            changed = False
            for layer in self._open:
                totals = self.tables[layer] + price * walk.decision_costs(layer, None, None)
                level, option = (int(i) for i in np.unravel_index(totals.argmin(), totals.shape))
                before = walk.kept, walk.options
                walk.decide(layer, level, option)
                changed = changed or (walk.kept, walk.options) != before
            if not changed:
                break
        return self._allocation(walk)

    # -- the integer program ------------------------------------------------------------------

    def improve(self, allocation: Allocation, target: float) -> Allocation:
        """The least error with every layer's cost as it is around a allocation, and their sum."""
        walk = self._walk(allocation)
        choices: list[tuple[int, int, int]] = []
        error: list[float] = []
        extra: list[float] = []
        for layer in self._open:
            cost = walk.decision_costs(layer, None, None) - walk.total
            for place in undominated(self.tables[layer], cost):
                level, option = divmod(place, cost.shape[1])
                choices.append((layer, level, option))
                error.append(float(self.tables[layer][level, option]))
                extra.append(float(cost[level, option]))
        if not choices:
            return allocation
        row_of = {layer: row for row, layer in enumerate(self._open)}
        rows = [row_of[layer] for layer, _, _ in choices]
        one_each = csr_array((np.ones(len(rows)), (rows, range(len(rows)))))
        unit = self._costs.bound
        solution = milp(
            np.array(error),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(np.array([extra]) / unit, ub=(target - walk.total) / unit),
            ],
            integrality=np.ones(len(choices)),
            bounds=(0, 1),
            options={"node_limit": NODES, "mip_rel_gap": 1e-4},
        )
        if solution.x is None:  # nothing is that cheap around this allocation
            return allocation
        for index in np.flatnonzero(solution.x > 0.5).tolist():
            walk.decide(*choices[index])
        return self._allocation(walk)

    def spend_the_rest(self, allocation: Allocation) -> Allocation:
        """Take what still fits, the largest fall in error first."""
        walk = self._walk(allocation)
        while True:
            best = (0.0, -1, -1, -1)
            for layer in self._open:
                gain = self._error_now(walk, layer) - self.tables[layer]
                fits = walk.decision_costs(layer, None, None) <= self._costs.bound
                gain = np.where(fits, gain, 0.0)
                level, option = (int(i) for i in np.unravel_index(gain.argmax(), gain.shape))
                if gain[level, option] > best[0] + 1e-15:
                    exact = walk.decision_costs(layer, level, option)[0, 0]
                    if exact <= self._costs.bound:
                        best = (float(gain[level, option]), layer, level, option)
            if best[1] < 0:
                return self._allocation(walk)
            walk.decide(*best[1:])

    def _error_now(self, walk: WalkCosts, layer: int) -> float:
        decides = self._costs.graph.layers[layer].decides
        removal = sum(float(self._errors.removal[group][walk.kept[group]]) for group in decides)
        return removal + float(self._errors.options[layer][walk.options[layer]])


def undominated(error: npt.ArrayLike, cost: npt.ArrayLike) -> list[int]:
    """Places of what nothing else beats in both error and cost; the cheapest first."""
    errors = np.ravel(error)
    least, found = np.inf, []
    for place in np.lexsort((errors, np.ravel(cost))).tolist():
        if errors[place] < least:
            least = errors[place]
            found.append(place)
    return found
