"""What is known of every decision before any is taken: errors, and the cost that each saves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amc.cost.model import CostModel, WalkCosts
from amc.recovery.errors import LayerErrors

RATIOS = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class LayerEstimates:
    """Of one layer, alone in an otherwise whole network.

    Attributes:
        removal_error: Nats lost when its groups keep each of `RATIOS`, shape (3,).
        removal_saved: Cost saved by that / the original's total, shape (3,).
        bits_error: Nats lost with the option that changes most, and the middle one, shape (2,).
        bits_saved: Cost saved by that / the original's total, shape (2,).
    """

    removal_error: tuple[float, ...]
    removal_saved: tuple[float, ...]
    bits_error: tuple[float, ...]
    bits_saved: tuple[float, ...]


def layer_estimates(costs: CostModel, errors: LayerErrors) -> list[LayerEstimates]:
    """One for every layer, in execution order."""
    ranked = costs.choices.by_closeness
    whole_option, fewer = ranked[-1], (ranked[0], ranked[len(ranked) // 2])
    layers = costs.graph.layers
    whole = WalkCosts(costs, costs.graph.sizes(), [whole_option] * len(layers))
    found = []
    for layer in layers:
        saved = (whole.total - whole.decision_costs(layer.index, None, None)) / costs.original
        ratios, levels = costs.level_ratios[layer.index], costs.levels[layer.index]
        nearest = [int(np.abs(ratios - ratio).argmin()) for ratio in RATIOS]
        of_options = errors.options[layer.index]
        found.append(
            LayerEstimates(
                removal_error=tuple(
                    sum(
                        float(errors.removal[group][levels[level, place]])
                        for place, group in enumerate(layer.decides)
                    )
                    for level in nearest
                ),
                removal_saved=tuple(float(saved[level, whole_option]) for level in nearest),
                bits_error=tuple(float(of_options[option]) for option in fewer),
                bits_saved=tuple(float(saved[-1, option]) for option in fewer),
            )
        )
    return found
