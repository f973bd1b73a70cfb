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
NODES = 500  # of a program's branch and bound: a limit that, unlike seconds, is reproducible


@dataclass(frozen=True)
class Plan:
    """One allocation for the whole network.

    Attributes:
        kept: Channels of every group.
        pairs: Bit pair index of every layer.
        cost, error: What it costs in the budget's metric, and is estimated to lose, in nats.
    """

    kept: list[int]
    pairs: list[int]
    cost: float
    error: float


def program_strategy(costs: CostModel, errors: LayerErrors) -> Strategy:
    """The strategy of least estimated error that meets the budget."""
    solver = ProgramSolver(costs, errors)
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
    return costs.decode(best.kept, best.pairs)


class ProgramSolver:
    """Allocations of least error, by the price of a unit of cost or by a bound.

    Attributes:
        tables: Estimated error of every layer's decisions, in nats, shape (levels, pairs) each.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors) -> None:
        self._costs, self._errors = costs, errors
        layers = range(len(costs.graph.layers))
        self.tables = [self._table(layer) for layer in layers]
        self._open = [layer for layer in layers if self.tables[layer].size > 1]

    def _table(self, layer: int) -> FloatArray:
        """Errors of every decision of a layer, in nats, shape (levels, pairs)."""
        levels = self._costs.levels[layer]
        removal = np.zeros(len(levels))
        for place, group in enumerate(self._costs.graph.layers[layer].decides):
            removal = removal + self._errors.removal[group][levels[:, place]]
        table: FloatArray = removal[:, None] + self._errors.bits[layer][None, :]
        return table

    def _plan(self, walk: WalkCosts) -> Plan:
        error = self._errors.total(walk.kept, walk.pairs)
        return Plan(walk.kept, walk.pairs, walk.total, error)

    def _walk(self, plan: Plan) -> WalkCosts:
        return WalkCosts(self._costs, plan.kept, plan.pairs)

    # -- the Lagrangian -----------------------------------------------------------------------

    @property
    def cheapest(self) -> Plan:
        """The cheapest plan that there is."""
        return self._plan(self._costs.start())

    @property
    def whole(self) -> Plan:
        """Every channel, in the bits of least error."""
        pairs = [int(row.argmin()) for row in self._errors.bits]
        return self._plan(WalkCosts(self._costs, self._costs.graph.sizes(), pairs))

    @property
    def _starts(self) -> list[Plan]:
        """Every channel; in the bits of least error, and, where layers in other bits than those
        around them cost more, all in the same bits.
        """
        pairs = self._costs.starting_pairs
        sizes, layers = self._costs.graph.sizes(), len(self._costs.graph.layers)
        alike = [[pair] * layers for pair in pairs] if len(pairs) > 1 else []
        plans = [
            self.whole,
            *(self._plan(WalkCosts(self._costs, sizes, bits)) for bits in alike),
        ]
        return [plan for place, plan in enumerate(plans) if plan not in plans[:place]]

    def descend_to_bound(self, near: float | None = None) -> tuple[Plan, float]:
        """The best plan within the bound over prices, and its price: high enough, no higher.

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
    ) -> tuple[Plan, tuple[float, float]]:
        """The best plan within the bound over a range of prices, and what is left of the range.

        Args:
            low, high: Powers of ten, times the scale.
        """
        best, starts = self.cheapest, self._starts
        for _ in range(halvings):
            middle = (low + high) / 2
            price = 10**middle * scale
            plans = [self.descend(price, start) for start in starts]
            plan = min(plans, key=lambda found: found.error + price * found.cost)
            if plan.cost <= self._costs.bound:
                high = middle
                if plan.error < best.error:
                    best = plan
            else:
                low = middle
        return best, (low, high)

    def descend(self, price: float, start: Plan) -> Plan:
        """Each layer in turn to its least error plus priced cost, until none moves."""
        walk = self._walk(start)
        for _ in range(SWEEPS):
            changed = False
            for layer in self._open:
                totals = self.tables[layer] + price * walk.decision_costs(layer, None, None)
                level, pair = (int(i) for i in np.unravel_index(totals.argmin(), totals.shape))
                before = walk.kept, walk.pairs
                walk.decide(layer, level, pair)
                changed = changed or (walk.kept, walk.pairs) != before
            if not changed:
                break
        return self._plan(walk)

    # -- the integer program ------------------------------------------------------------------

    def improve(self, plan: Plan, target: float) -> Plan:
        """The least error with every layer's cost as it is around a plan, and their sum."""
        walk = self._walk(plan)
        choices: list[tuple[int, int, int]] = []
        error: list[float] = []
        extra: list[float] = []
        for layer in self._open:
            cost = walk.decision_costs(layer, None, None) - walk.total
            for level, pair in _undominated(self.tables[layer], cost):
                choices.append((layer, level, pair))
                error.append(float(self.tables[layer][level, pair]))
                extra.append(float(cost[level, pair]))
        if not choices:
            return plan
        place = {layer: row for row, layer in enumerate(self._open)}
        rows = [place[layer] for layer, _, _ in choices]
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
        if solution.x is None:  # nothing is that cheap around this plan
            return plan
        for index in np.flatnonzero(solution.x > 0.5).tolist():
            walk.decide(*choices[index])
        return self._plan(walk)

    def spend_the_rest(self, plan: Plan) -> Plan:
        """Take what still fits, the largest fall in error first."""
        walk = self._walk(plan)
        while True:
            best = (0.0, -1, -1, -1)
            for layer in self._open:
                gain = self._error_now(walk, layer) - self.tables[layer]
                fits = walk.decision_costs(layer, None, None) <= self._costs.bound
                gain = np.where(fits, gain, 0.0)
                level, pair = (int(i) for i in np.unravel_index(gain.argmax(), gain.shape))
                if gain[level, pair] > best[0] + 1e-15:
                    exact = walk.decision_costs(layer, level, pair)[0, 0]
                    if exact <= self._costs.bound:
                        best = (float(gain[level, pair]), layer, level, pair)
            if best[1] < 0:
                return self._plan(walk)
            walk.decide(*best[1:])

    def _error_now(self, walk: WalkCosts, layer: int) -> float:
        decides = self._costs.graph.layers[layer].decides
        removal = sum(float(self._errors.removal[group][walk.kept[group]]) for group in decides)
        return removal + float(self._errors.bits[layer][walk.pairs[layer]])


def _undominated(error: FloatArray, cost: FloatArray) -> list[tuple[int, int]]:
    """Decisions that no other one beats in both error and cost."""
    order = np.lexsort((error.ravel(), cost.ravel()))  # cheapest first
    least = np.inf
    found = []
    for flat in order.tolist():
        if error.flat[flat] < least:
            least = error.flat[flat]
            level, pair = divmod(flat, error.shape[1])
            found.append((level, pair))
    return found
