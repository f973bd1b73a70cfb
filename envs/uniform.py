"""The simplest strategies: one preserve ratio and one bit pair for all that they touch."""

from __future__ import annotations

import numpy as np

from amc.cost.model import CostModel
from amc.strategy import Bits, Strategy

STEPS = 81  # ratios tried between 1 and the smallest


def uniform_strategies(costs: CostModel) -> list[Strategy]:
    """For every bit pair that can meet the budget: the largest uniform ratio that does.

    Once over the groups that a single layer produces, which leaves residual streams whole, and
    once over all groups. Those that keep all channels come first (everything in 8 bits, where
    that will do), then the most precise pairs; a pair is left out where a more precise one keeps
    as much. If none meets the budget, the cheapest strategy there is.
    """
    pairs, free = costs.choices.pairs, costs.graph.free_groups
    alone = frozenset(group.index for group in free if len(group.producers) == 1)
    every = frozenset(group.index for group in free)
    found: dict[str, Strategy] = {}
    tried: dict[frozenset[int], list[tuple[Bits, float]]] = {alone: [], every: []}
    for pair in sorted(range(len(pairs)), key=lambda p: pairs[p], reverse=True):
        for groups, before in tried.items():
            ratio = _largest_ratio(costs, groups, pair)
            if ratio is None:
                continue
            if not any(_as_precise(bits, pairs[pair]) and r >= ratio for bits, r in before):
                strategy = costs.decode(*_uniform(costs, groups, pair, ratio))
                found.setdefault(strategy.to_json(), strategy)
            before.append((pairs[pair], ratio))
    whole_first = sorted(found.values(), key=_is_smaller)
    return whole_first or [costs.decode(costs.floor_kept, costs.floor_pairs)]


def _is_smaller(strategy: Strategy) -> bool:
    return any(ratio < 1 for ratio in strategy.preserve_ratio.values())


def _as_precise(bits: Bits, others: Bits) -> bool:
    return bits.weight >= others.weight and bits.activation >= others.activation


def _largest_ratio(costs: CostModel, groups: frozenset[int], pair: int) -> float | None:
    """The largest ratio over some groups that meets the budget, if one does."""
    for ratio in np.linspace(1.0, costs.choices.min_preserve_ratio, STEPS).tolist():
        if costs.cost(*_uniform(costs, groups, pair, ratio)) <= costs.bound:
            return float(ratio)
    return None


def _uniform(
    costs: CostModel, groups: frozenset[int], pair: int, ratio: float
) -> tuple[list[int], list[int]]:
    """Kept channels and bit pairs at one ratio; other groups stay whole."""
    kept = costs.graph.sizes()
    for layer in costs.graph.layers:
        if groups.issuperset(layer.decides):
            away = np.abs(costs.level_ratios[layer.index] - ratio)
            away[costs.level_ratios[layer.index] == 0] = np.inf  # one ratio for all keeps some
            level = int(away.argmin())
            kept[list(layer.decides)] = costs.levels[layer.index][level]
    return kept.tolist(), [pair] * len(costs.graph.layers)
