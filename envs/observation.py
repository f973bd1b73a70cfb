"""What the agent sees of a layer: named numbers on scales that no network sets.

Sizes enter as logarithms over a fixed range, costs as fractions of the original's cost or of the
budget, so that a policy learned on one network means the same on another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.graph.types import LayerInfo
from amc.strategy import Bits


@dataclass(frozen=True)
class LayerView:
    """Everything an observation may be made of, at one step of a walk.

    Attributes:
        layer: The layer to decide.
        layers: How many the network has.
        decides: Whether the ratio part of the action counts.
        input_ratio: Fraction of the layer's input channels that is kept.
        cost_share: The layer's cost in the original / the original's total.
        saved: Cost saved by the layers decided so far / the original's total.
        rest: Cost in the original of the layers after this one / the original's total.
        spent: Cost of what is decided, with the rest at its cheapest / the bound.
        floor_rest: Cheapest cost of this and the later layers / the bound.
        previous_ratio, previous_bits: The decision before.
    """

    layer: LayerInfo
    layers: int
    decides: bool
    input_ratio: float
    cost_share: float
    saved: float
    rest: float
    spent: float
    floor_rest: float
    previous_ratio: float
    previous_bits: Bits


def _log(value: float, largest: float) -> float:
    return float(np.log2(1 + value) / np.log2(1 + largest))


# AMC's eleven features (He et al. 2018, eq. 1: t, n, c, h, w, stride, k, FLOPs, reduced, rest,
# a_{t-1}), then what bits, budgets and shared channel groups add.
FEATURES: dict[str, Callable[[LayerView], float]] = {
    "layer_index": lambda v: v.layer.index / max(v.layers - 1, 1),
    "out_channels": lambda v: _log(v.layer.out_channels, 4096),
    "in_channels": lambda v: _log(v.layer.in_channels, 4096),
    "height": lambda v: _log(v.layer.signature.in_size[0], 1024),
    "width": lambda v: _log(v.layer.signature.in_size[1], 1024),
    "stride": lambda v: v.layer.signature.stride[0] / 4,
    "kernel": lambda v: v.layer.signature.kernel[0] / 7,
    "cost_share": lambda v: v.cost_share,
    "saved": lambda v: v.saved,
    "rest": lambda v: v.rest,
    "previous_ratio": lambda v: v.previous_ratio,
    "previous_weight_bits": lambda v: _log(v.previous_bits.weight, 32),
    "previous_activation_bits": lambda v: _log(v.previous_bits.activation, 32),
    "spent": lambda v: v.spent,
    "floor_rest": lambda v: v.floor_rest,
    "decides_ratio": lambda v: float(v.decides),
    "input_ratio": lambda v: v.input_ratio,
    "is_depthwise": lambda v: float(v.layer.signature.is_depthwise),
    "is_linear": lambda v: float(v.layer.signature.op == "linear"),
}
LOW, HIGH = -2.0, 4.0  # no feature of a real network comes near; larger ones are cut off


def observe(view: LayerView, names: tuple[str, ...] = tuple(FEATURES)) -> npt.NDArray[np.float32]:
    """The named features of a layer, shape (len(names),)."""
    values = np.array([FEATURES[name](view) for name in names], np.float32)
    return np.clip(values, LOW, HIGH)
