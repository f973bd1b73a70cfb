"""What every decision of a walk costs, ready to look up.

Costs add over the network's operators, and an operator's cost depends only on its input and
output channels and its bits, or, on a device that prices conversions, on those of a
few layers. All prices that a walk can ask a device for are fetched once, as dense arrays per
operator; after that a decision costs a few look-ups.

Totals are exactly rounded sums (`math.fsum`): however a strategy's cost is arrived at, it is the
same number, so that a promise kept along the walk is kept at its end to the last bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np

from amc.cost.budget import DEVICE_METRICS, Budget
from amc.cost.choices import (
    Choices,
    IntArray,
    choices_for,
    reachable,
    reference_bits,
    requests_for,
)
from amc.cost.device import Device
from amc.cost.formulas import is_paired
from amc.cost.frozen import unreachable
from amc.cost.prices import (
    OF_WEIGHTS,
    ConversionPrices,
    FloatArray,
    FormulaPrices,
    GridPrices,
    PricedOperator,
    PriceList,
    check_metric,
    costs_nothing_on,
    operator_prices,
    states_of,
)
from amc.cost.states import Stated
from amc.cost.stored import PACKED, StoredCosts, StoredPrices, stored_cost
from amc.cost.walk import LevelCounts, LevelPrices, WalkCosts, listed
from amc.decisions import cost_factor
from amc.errors import BudgetError, ConfigError
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelCount
from amc.strategy import IDENTITY, Option, Strategy, Value

__all__ = [
    "ROUNDING",
    "Choices",
    "CostModel",
    "WalkCosts",
    "check_metric",
    "choices_for",
    "operator_prices",
    "reference_bits",
    "requests_for",
]

ROUNDING = 1e-12  # relative; what a bound that was computed by a multiplication may be off


class CostModel:
    """Costs of strategies in one metric, and the bound they must meet.

    Attributes:
        original: Cost of the original network, in float (or in the device's most precise bits
            where it has no float).
        original_costs: Of its layers, in execution order.
        bound: What every strategy must not exceed.
        floor: Cost with every group and layer at `floor_kept`, `floor_options`: the completion
            that the walk falls back on.
        levels: For every layer, the kept counts that its step chooses from, shape (levels,
            groups decided); where it decides nothing, (1, 0).
        level_ratios: For every layer, the preserve ratio of each level, shape (levels,).
        states: Which of its prices every operator has, by the bits of all layers.
        priced: All layers, in their order, and then what else costs anything.
        affected: For every layer, the indices in ``priced`` of what its step changes: itself
            first, then all that has channels of the groups it decides. On a device that prices
            conversions its bits change more (`after`).
        known_decisions: What walks asked before: a layer, the channels of every group and the bit
            option of every layer -> the total after each of its decisions.
        allocated: What the integer program gave, with the errors that it was given: several
            environments of one task ask it the same.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        choices: Choices,
        budget: Budget,
        device: Device | None = None,
        stored: StoredCosts | None = None,
    ) -> None:
        """
        Args:
            stored: What weights take in a file, for the metric that asks it.

        Raises:
            DeviceError: The metric is a device's, and there is none, or it does not price it.
            BudgetError: The budget is already met.
            UnreachableBudgetError: Not even the smallest network meets it.
        """
        check_metric(budget.metric, device)
        self.graph, self.choices, self.budget, self.device = graph, choices, budget, device
        self._stored = stored
        self._set_original()
        self.level_ratios = [self._ratios(layer.decides) for layer in graph.layers]
        self.levels = [self._levels(layer.decides) for layer in graph.layers]
        self.states = states_of(graph, choices.bits, budget.metric, device)
        self.priced = self._price_all()
        self.affected = self._find_affected()
        self._level_prices: dict[tuple[int, int], LevelPrices] = {}
        self.known_decisions: dict[tuple[int, ...], FloatArray] = {}
        self.allocated: list[tuple[object, Strategy]] = []
        self._set_floor()

    # -- the original and the cheapest --------------------------------------------------------

    def _set_original(self) -> None:
        metric = self.budget.metric
        costs = operator_prices(self.graph, IDENTITY, metric, self.device, self._stored)
        self.original_costs = np.array(costs[: len(self.graph.layers)])
        self.original = math.fsum(costs)
        if not self.original > 0:
            raise BudgetError(
                f"The original network costs {self.original} {self.budget.unit} in "
                f"{self.budget.metric}; a budget needs a positive cost to start from. "
                "Check the device's prices."
            )
        self.bound = self.budget.bound(self.original)

    def _set_floor(self) -> None:
        """Find the cheapest strategy: from the smallest counts, descent layer by layer.

        Where cost rises with channels and bits, its first pass is at the minimum. Device tables
        need not rise, so the smallest network is not always the cheapest one. Any fixed
        completion keeps the walk's promise; a cheap one clamps least.
        """
        kept = self.graph.sizes().tolist()
        for layer, levels in zip(self.graph.layers, self.levels, strict=True):
            for group, count in zip(layer.decides, levels[self._first(levels)], strict=True):
                kept[group] = int(count)
        walks = [self._descend(kept, option) for option in self.starting_options]
        walk = min(walks, key=lambda found: found.total)
        # Blocks go last: bits that are the cheapest where one stays say what it costs to keep it.
        for layer in self.graph.layers:
            option = walk.options[layer.index]
            if walk.decision_costs(layer.index, 0, option)[0, 0] < walk.total:
                walk.decide(layer.index, 0, option)
        self.floor_kept = np.array(walk.kept, np.int64)
        self.floor_options = np.array(walk.options, np.int64)
        self.floor = walk.total
        self._smallest_kept = kept
        if self.floor > self.bound * (1 + ROUNDING):
            raise unreachable(self, walk)
        self.bound = max(self.bound, self.floor)

    def tightened(self, bound: float) -> CostModel:
        """The same costs under a smaller bound.

        Raises:
            BudgetError: It is not smaller, or below the floor.
        """
        if not self.floor <= bound <= self.bound:
            raise BudgetError(
                f"A tighter bound must be between the smallest reachable {self.floor:,.6g} and "
                f"the bound of {self.bound:,.6g} {self.budget.unit}, got {bound!r}."
            )
        tighter = copy.copy(self)
        tighter.bound, tighter.allocated = bound, []
        return tighter

    def completions(self, walk: WalkCosts, step: int) -> Iterator[WalkCosts]:
        """The walk with what it has not decided yet at its smallest, in one starting option after
        the other.

        Where the device prices conversions, a layer in 8 bits before others in float may be dear,
        and yet be cheap in the end: before others in 8 bits.

        Args:
            step: The layer that is decided next; those before it are.
        """
        if len(self.starting_options) == 1:
            return
        decided = {group for layer in self.graph.layers[:step] for group in layer.decides}
        kept = [
            walk.kept[group] if group in decided else count
            for group, count in enumerate(self._smallest_kept)
        ]
        left = len(self.graph.layers) - step
        for option in self.starting_options:
            yield WalkCosts(self, kept, [*walk.options[:step], *[option] * left])

    @property
    def starting_options(self) -> range:
        """Options that all layers should start at, for who changes one layer at a time.

        One, unless the device prices conversions: then a layer alone in other bits than those
        around it costs more, however cheap it is among its like.
        """
        return range(len(self.choices.options) if self.states.couples else 1)

    def _descend(self, kept: Sequence[int], option: int) -> WalkCosts:
        walk = WalkCosts(self, kept, [option] * len(self.graph.layers))
        before = math.inf
        while walk.total < before:
            before = walk.total
            for layer in self.graph.layers:
                first = self._first(self.levels[layer.index])
                totals = walk.decision_costs(layer.index, None, None)[first:]
                level, best = np.unravel_index(int(totals.argmin()), totals.shape)
                if totals[level, best] < walk.total * (1 - ROUNDING):
                    walk.decide(layer.index, first + int(level), int(best))
        return walk

    @staticmethod
    def _first(levels: IntArray) -> int:
        """The first of a step's levels at which no block goes."""
        return int((levels > 0).all(1).argmax())

    # -- prices -------------------------------------------------------------------------------

    def _price_all(self) -> list[PricedOperator]:
        """Price lists of all layers, and of the other operators that cost anything."""
        known: dict[tuple[object, ...], PriceList] = {}
        of_device = self.budget.metric in DEVICE_METRICS
        priced: list[PricedOperator] = []
        self._place: dict[int, int] = {}  # among all operators -> among those that cost
        for place, stated in enumerate(self.states.stated):
            operator = stated.operator
            if operator.is_repeat and self.budget.metric in OF_WEIGHTS:
                continue
            if self.device is not None and of_device and costs_nothing_on(self.device, operator):
                continue
            prices = self._prices_of(stated, known)
            if operator.layer >= 0 or not prices.is_free:
                self._place[place] = len(priced)
                priced.append(PricedOperator(stated, prices))
        return priced

    def _prices_of(self, stated: Stated, known: dict[tuple[object, ...], PriceList]) -> PriceList:
        metric, device, operator = self.budget.metric, self.device, stated.operator
        if self._stored is not None and metric == PACKED:
            options = self.choices.options if stated.is_optional else (Option(),)
            of_states = [stored_cost(self._stored, operator, option) for option in options]
            return StoredPrices(operator.signature, of_states)
        if metric not in DEVICE_METRICS:
            factors = [cost_factor(metric, option) for option in self.choices.options]
            return FormulaPrices(
                metric, stated.parts, operator.has_bias, factors if stated.is_optional else ()
            )
        assert device is not None
        ins, outs = (reachable(c, self.choices) for c in (operator.inputs, operator.outputs))
        if is_paired(operator.signature):
            outs = ins * operator.outputs_per_input(self.graph.sizes())
        # Networks repeat their blocks.
        key = stated.parts, stated.is_conversion, ins.tobytes(), outs.tobytes()
        if key not in known:
            known[key] = (
                ConversionPrices(device, metric, stated.parts, ins)
                if stated.is_conversion
                else GridPrices(device, metric, stated.parts, ins, outs)
            )
        return known[key]

    def _find_affected(self) -> list[tuple[int, ...]]:
        by_group: list[list[int]] = [[] for _ in self.graph.groups]
        for index, priced in enumerate(self.priced):
            terms = (*priced.operator.inputs.terms, *priced.operator.outputs.terms)
            for group in {group for group, _ in terms} | {self._block_of(priced)} - {-1}:
                by_group[group].append(index)
        return [
            tuple(dict.fromkeys([layer.index, *(i for g in layer.decides for i in by_group[g])]))
            for layer in self.graph.layers
        ]

    def _block_of(self, priced: PricedOperator) -> int:
        """The group with which an operator may go; -1: none, or nothing may."""
        return priced.operator.block if self.choices.drop_blocks else -1

    def after(
        self, layer: int, options: Sequence[int], forms: list[int]
    ) -> tuple[list[int], set[int]]:
        """The forms, and the indices in ``priced`` of what may have another state.

        Args:
            options: With the layer's new bits.
            forms: With its bits so far.
        """
        forms, moved = self.states.after(layer, options, forms)
        return forms, {self._place[place] for place in moved if place in self._place}

    def level_prices(self, layer: int, index: int) -> LevelPrices:
        """Prices of ``priced[index]`` at every level of a layer's step."""
        found = self._level_prices.get((layer, index))
        if found is None:
            priced = self.priced[index]
            decides, levels = self.graph.layers[layer].decides, self.levels[layer]
            found = self._level_prices[layer, index] = LevelPrices(
                priced.prices,
                LevelCounts.of(priced.operator.inputs, decides, levels),
                LevelCounts.of(priced.operator.outputs, decides, levels),
                _block_counts(self._block_of(priced), decides, levels),
            )
        return found

    # -- whole strategies ---------------------------------------------------------------------

    def cost(self, kept: Sequence[int] | IntArray, options: Sequence[int] | IntArray) -> float:
        """Cost when group g keeps ``kept[g]`` channels and layer l has option ``options[l]``."""
        return math.fsum(self.operator_costs(kept, options))

    def operator_costs(
        self, kept: Sequence[int] | IntArray, options: Sequence[int] | IntArray
    ) -> list[float]:
        """Cost of all layers, in their order, and then of what else costs anything."""
        kept, options = listed(kept), listed(options)
        forms = self.states.forms(options)
        return [priced.cost(kept, options, forms) for priced in self.priced]

    def cost_of(self, strategy: Strategy) -> float:
        """Cost of a strategy that uses only this model's choices.

        Raises:
            ConfigError: The strategy has bits or channel counts that are not among them.
        """
        return self.cost(*self.encode(strategy))

    def encode(self, strategy: Strategy) -> tuple[IntArray, IntArray]:
        """Kept channels per group and option index per layer of a strategy.

        Raises:
            ConfigError: As `cost_of`.
        """
        kept = self.graph.kept_counts(strategy)
        for group in self.graph.groups:
            if kept[group.index] not in self.choices.kept[group.index]:
                raise ConfigError(
                    f"The strategy keeps {kept[group.index]} channels of group {group.name!r}; "
                    f"here it may keep {self.choices.kept[group.index].tolist()}."
                )
        place = {option: index for index, option in enumerate(self.choices.options)}
        options = []
        for layer in self.graph.layers:
            option = strategy.option(layer.name)
            if option not in place:
                raise ConfigError(
                    f"The strategy gives layer {layer.name!r} bits {option}; "
                    f"here they may be {', '.join(map(str, place))}."
                )
            options.append(place[option])
        return kept, np.array(options, np.int64)

    def decode(self, kept: Sequence[int] | IntArray, options: Sequence[int] | IntArray) -> Strategy:
        """The strategy with these kept channels and options."""
        ratios = {
            group.name: int(kept[group.index]) / group.size for group in self.graph.free_groups
        }
        bits, others = {}, dict[str, dict[str, Value]]()
        for layer in self.graph.layers:
            option = self.choices.options[int(options[layer.index])]
            bits[layer.name] = option.bits
            for decision, value in option.others:
                others.setdefault(decision, {})[layer.name] = value
        return Strategy(ratios, bits, others)

    # -- the walk's decisions -----------------------------------------------------------------

    def _levels(self, groups: tuple[int, ...]) -> IntArray:
        """Kept counts that a layer's step chooses from, (levels, groups decided)."""
        if not groups:
            return np.zeros((1, 0), np.int64)
        ratios = self._ratios(groups)
        columns = []
        for group in groups:
            options, size = self.choices.kept[group], self.graph.groups[group].size
            nearest = np.abs(options[None, :] / size - ratios[:, None]).argmin(1)
            columns.append(options[nearest])
        return np.stack(columns, 1)

    def _ratios(self, groups: tuple[int, ...]) -> FloatArray:
        """One ratio for all groups that a layer decides: those of the one with most choices."""
        if not groups:
            return np.ones(1)
        finest = max(groups, key=lambda g: len(self.choices.kept[g]))
        ratios: FloatArray = self.choices.kept[finest] / self.graph.groups[finest].size
        return ratios

    def start(self) -> WalkCosts:
        """Costs at the start of a walk: nothing decided."""
        return WalkCosts(self, self.floor_kept, self.floor_options)


def _block_counts(block: int, decides: Sequence[int], levels: IntArray) -> LevelCounts | None:
    """What is kept of the group that an operator goes with, if it goes with any."""
    if block < 0:
        return None
    return LevelCounts.of(ChannelCount(0, ((block, 1),)), decides, levels)
