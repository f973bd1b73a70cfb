"""Where a strategy stands among the levels that a layer's step chooses from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc.cost.choices import IntArray
from amc.cost.model import CostModel


def level_at(costs: CostModel, kept: Sequence[int] | IntArray, layer: int) -> int:
    """Index of the level at which a layer's groups are; the lowest if they are at none.

    Args:
        kept: Channels kept of every group.
    """
    return int((costs.levels[layer] == _decided(costs, kept, layer)).all(1).argmax())


def nearest_level(costs: CostModel, kept: Sequence[int] | IntArray, layer: int) -> int:
    """Index of the level that is the fewest channels away from where a layer's groups are.

    Args:
        kept: Channels kept of every group.
    """
    distance = np.abs(costs.levels[layer] - _decided(costs, kept, layer)).sum(1)
    return int(distance.argmin())


def _decided(costs: CostModel, kept: Sequence[int] | IntArray, layer: int) -> IntArray:
    """What is kept of the groups that a layer decides, shape (groups decided,)."""
    return np.array([kept[group] for group in costs.graph.layers[layer].decides], np.int64)
