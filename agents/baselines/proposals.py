"""What a step of NetAdapt may change, and in which order it is worth a try."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from amc.cost.model import ROUNDING, CostModel, WalkCosts
from amc.cost.prices import FloatArray
from amc.decisions import numbers_of
from amc.recovery.errors import LayerErrors
from amc.strategy import Option
from envs.levels import level_at


class Unit(NamedTuple):
    """What is changed at once: a layer's ratio level, or its option."""

    layer: int
    is_bits: bool


class Move(NamedTuple):
    """A unit's change: the layer's new level and option, and what it does, as estimated."""

    level: int
    option: int
    error: float
    saved: float


class Proposals:
    """The units of a network, and the changes by which they lower its cost.

    A whole strategy is a `WalkCosts` with everything decided.

    Attributes:
        units: All that can be changed.
        choices: How many choices they have, together.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors | None) -> None:
        """
        Args:
            errors: Ranks the changes; None: `energy_lost`.
        """
        self._costs = costs
        self._errors = errors or energy_lost(costs)
        layers = costs.graph.layers
        ratios = [
            Unit(layer.index, False) for layer in layers if len(costs.levels[layer.index]) > 1
        ]
        bits = [Unit(layer.index, True) for layer in layers if len(costs.choices.options) > 1]
        self.units = (*ratios, *bits)
        levels = sum(len(costs.levels[unit.layer]) for unit in ratios)
        self.choices = levels + len(bits) * len(costs.choices.options)

    def original(self) -> WalkCosts:
        """All channels, and the most precise of the bits on offer."""
        best = self._costs.choices.reference
        sizes = self._costs.graph.sizes()
        return WalkCosts(self._costs, sizes, [best] * len(self._costs.graph.layers))

    def towards(self, now: WalkCosts, target: float) -> list[WalkCosts]:
        """For every unit, the strategy of cost ``target`` at most that changes it the least.

        A unit that cannot save so much alone goes as low as it can, and the others follow in
        their order until the target is reached. Distinct; first the unit with the smallest
        estimated error per cost saved. If nothing can be lowered: the cheapest strategy there is.
        """
        moves = {unit: self._move(now, unit, target) for unit in self.units}
        order = {unit: move.error / move.saved for unit, move in moves.items() if move is not None}
        ranked = sorted(order, key=order.__getitem__)
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], WalkCosts] = {}
        for first in ranked:
            rest = [unit for unit in ranked if unit != first]
            reached = self._reach(now, [first, *rest], target)
            found.setdefault((tuple(reached.kept), tuple(reached.options)), reached)
        return list(found.values()) or [self._costs.start()]

    def _reach(self, now: WalkCosts, order: list[Unit], target: float) -> WalkCosts:
        """Lower one unit after the other until the target is reached."""
        walk = copy.copy(now)  # decisions replace its lists
        for unit in order:
            move = self._move(walk, unit, target)
            if move is not None:
                walk.decide(unit.layer, move.level, move.option)
            if walk.total <= target:
                return walk
        return self._costs.start()

    def _move(self, walk: WalkCosts, unit: Unit, target: float) -> Move | None:
        """The unit's change of least error that reaches the target; else its cheapest, if any."""
        layer = unit.layer
        option, level = walk.options[layer], level_at(self._costs, walk.kept, layer)
        along = self._errors.options[layer] if unit.is_bits else self._removal(layer)
        chosen = option if unit.is_bits else level
        totals = walk.decision_costs(
            layer, level if unit.is_bits else None, None if unit.is_bits else option
        ).ravel()
        lower = totals < walk.total * (1 - ROUNDING)
        if not unit.is_bits:
            lower[level:] = False  # a table that falls may make more channels cheaper
        if not lower.any():
            return None
        reaching = lower & (totals <= target)
        # By error, then by cost: of equals the one that saves least, as long as it is enough.
        best = (
            np.lexsort((-totals, along, ~reaching))
            if reaching.any()
            else np.argsort(np.where(lower, totals, np.inf), kind="stable")
        )
        place = int(best[0])
        return Move(
            level=level if unit.is_bits else place,
            option=place if unit.is_bits else option,
            error=float(along[place] - along[chosen]),
            saved=float(walk.total - totals[place]),
        )

    def _removal(self, layer: int) -> FloatArray:
        """Estimated error of every level, shape (levels,)."""
        levels = self._costs.levels[layer]
        errors = np.zeros(len(levels))
        for group, counts in zip(self._costs.graph.layers[layer].decides, levels.T, strict=True):
            errors += self._errors.removal[group][counts]
        return errors


def energy_lost(costs: CostModel) -> LayerErrors:
    """What stands in for measured errors: the share of a layer's signal that a decision takes.

    Of channels all alike, the share that is removed. Rounding to b bits in steps of 8 standard
    deviations / 2^b leaves noise of step^2 / 12 = 16/3 * 4^-b of the energy: 0.02 at 4 bits. Of
    other decisions, by how much a number differs from the one that changes nothing.
    """
    sizes = costs.graph.sizes().tolist()
    removal = tuple(1 - np.arange(size + 1) / size for size in sizes)
    choices = costs.choices
    noise = (16 / 3 * 4.0 ** -np.array(choices.bits)).sum(1)  # (options,)
    noise += np.abs(choices.numbers[:, 2:] - numbers_of(Option(), choices.decisions)[2:]).sum(1)
    return LayerErrors(removal, np.tile(noise, (len(costs.graph.layers), 1)))
