"""The simplest strategies: one preserve ratio and one option for all that they touch."""

from __future__ import annotations

import numpy as np

from amc.cost.choices import Choices
from amc.cost.model import CostModel
from amc.decisions import closeness
from amc.strategy import Strategy

STEPS = 81  # ratios tried between 1 and the smallest


def uniform_strategies(costs: CostModel) -> list[Strategy]:
    """For every option that can meet the budget: the largest uniform ratio that does.

    Once over the groups that a single layer produces, which leaves residual streams whole, and
    once over all groups. Those that keep all channels come first (everything in 8 bits, where
    that will do), then the most precise options; one is left out where a more precise one keeps as
    much. If none meets the budget, the cheapest strategy there is.
    """
    free = costs.graph.free_groups
    alone = frozenset(group.index for group in free if len(group.producers) == 1)
    every = frozenset(group.index for group in free)
    found: dict[str, Strategy] = {}
    tried: dict[frozenset[int], list[tuple[int, float]]] = {alone: [], every: []}
    for option in reversed(costs.choices.by_closeness):
        for groups, before in tried.items():
            ratio = _largest_ratio(costs, groups, option)
            if ratio is None:
                continue
            if not any(r >= ratio and _as_precise(costs.choices, o, option) for o, r in before):
                strategy = costs.decode(*_uniform(costs, groups, option, ratio))
                found.setdefault(strategy.to_json(), strategy)
            before.append((option, ratio))
    whole_first = sorted(found.values(), key=_is_smaller)
    return whole_first or [costs.decode(costs.floor_kept, costs.floor_options)]


def _is_smaller(strategy: Strategy) -> bool:
    return any(ratio < 1 for ratio in strategy.preserve_ratio.values())


def _as_precise(choices: Choices, one: int, other: int) -> bool:
    """Whether no number of an option changes more than that of another."""
    of_one, of_other = (
        closeness(choices.options[option], choices.decisions) for option in (one, other)
    )
    return all(a >= b for a, b in zip(of_one, of_other, strict=True))


def _largest_ratio(costs: CostModel, groups: frozenset[int], option: int) -> float | None:
    """The largest ratio over some groups that meets the budget, if one does."""
    for ratio in np.linspace(1.0, costs.choices.min_preserve_ratio, STEPS).tolist():
        if costs.cost(*_uniform(costs, groups, option, ratio)) <= costs.bound:
            return float(ratio)
    return None


def _uniform(
    costs: CostModel, groups: frozenset[int], option: int, ratio: float
) -> tuple[list[int], list[int]]:
    """Kept channels and options at one ratio; other groups stay whole."""
    kept = costs.graph.sizes()
    for layer in costs.graph.layers:
        if groups.issuperset(layer.decides):
            away = np.abs(costs.level_ratios[layer.index] - ratio)
            away[costs.level_ratios[layer.index] == 0] = np.inf  # one ratio for all keeps some
            level = int(away.argmin())
            kept[list(layer.decides)] = costs.levels[layer.index][level]
    return kept.tolist(), [option] * len(costs.graph.layers)
