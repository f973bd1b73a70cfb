"""Strategies a few decisions away from another, all within the budget."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amc.cost.model import CostModel, WalkCosts
from envs.levels import level_at

Choice = tuple[tuple[int, ...], tuple[int, ...]]
"""(channels kept of every group, option of every layer)."""

FloatArray = npt.NDArray[np.float64]

CHANGES = 3  # decisions that are changed at most, before the budget is met and spent again
SPREAD = 0.15  # standard deviation of a change, as a part of a layer's levels
SAME = 1 - 1e-9  # costs of all decisions at once are off by rounding


def neighbour(
    costs: CostModel, tables: list[FloatArray], choice: Choice, rng: np.random.Generator
) -> Choice:
    """Change one to `CHANGES` decisions at random, meet the budget, and spend what is left.

    Layers give way, and take what is left, in random order: each gives as little as it can at a
    time, and takes as much as it can. If none can give way any more, nothing is changed.

    Args:
        tables: Estimated error of every layer's decisions, shape (levels, options) each.
    """
    places = [layer for layer, table in enumerate(tables) if table.size > 1]
    if not places:
        return choice
    walk = WalkCosts(costs, *choice)
    number = int(rng.integers(1, min(CHANGES, len(places)) + 1))
    for layer in rng.choice(places, number, replace=False).tolist():
        walk.decide(layer, *_changed(costs, walk, layer, rng))
    while walk.total > costs.bound:
        before = walk.total
        for layer in rng.permutation(places).tolist():
            _give_way(costs, walk, layer)
        if walk.total >= before:
            return choice
    for layer in rng.permutation(places).tolist():
        _take(costs, walk, layer, tables[layer])
    return tuple(walk.kept), tuple(walk.options)


def _changed(
    costs: CostModel, walk: WalkCosts, layer: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Another level, or another option, or both."""
    level, option = level_at(costs, walk.kept, layer), walk.options[layer]
    levels, options = len(costs.levels[layer]), len(costs.choices.options)
    both = rng.random() < 0.5
    if levels > 1 and (options == 1 or both or rng.random() < 0.5):
        step = round(float(rng.normal(0, SPREAD * levels))) or int(rng.choice((-1, 1)))
        level = min(max(level + step, 0), levels - 1)
        if not both:
            return level, option
    return level, int(rng.integers(options))


def _give_way(costs: CostModel, walk: WalkCosts, layer: int) -> None:
    """Take a layer's next cheaper decision, if the bound is not met and it has one."""
    if walk.total <= costs.bound:
        return
    totals = walk.decision_costs(layer, None, None)
    cheaper = np.where(totals < walk.total * SAME, totals, -np.inf)
    level, option = (int(i) for i in np.unravel_index(cheaper.argmax(), cheaper.shape))
    if np.isfinite(cheaper[level, option]):
        walk.decide(layer, level, option)


def _take(costs: CostModel, walk: WalkCosts, layer: int, table: FloatArray) -> None:
    """Take a layer's decision of least estimated error that still fits."""
    now = table[level_at(costs, walk.kept, layer), walk.options[layer]]
    if now <= table.min():
        return
    fits = walk.decision_costs(layer, None, None) <= costs.bound
    error = np.where(fits, table, np.inf)
    level, option = (int(i) for i in np.unravel_index(error.argmin(), error.shape))
    if (
        error[level, option] < now
        and walk.decision_costs(layer, level, option)[0, 0] <= costs.bound
    ):
        walk.decide(layer, level, option)
