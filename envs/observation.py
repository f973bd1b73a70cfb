"""What the agent sees of a layer: named numbers on scales that no network sets.

Sizes enter as logarithms over a fixed range, costs as fractions of the original's cost or of the
budget, errors as logarithms of nats, so that a policy learned on one network means the same on
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.errors import ConfigError
from amc.graph.types import LayerInfo
from amc.strategy import FLOAT, Bits
from envs.outlook import Outlook


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
        budget_left: What the bound leaves for this and the later layers / what they cost in
            the original.
        previous_ratio, previous_bits: The decision before.
        outlook: What every decision of the layer costs in accuracy and saves; None if unknown.
        advised_ratio, advised_bits: The program's decision here; whole and float if unknown.
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
    budget_left: float
    previous_ratio: float
    previous_bits: Bits
    outlook: Outlook | None = None
    advised_ratio: float = 1.0
    advised_bits: Bits = FLOAT

    @property
    def known(self) -> Outlook:
        """The outlook, where features need it."""
        assert self.outlook is not None
        return self.outlook


def _log(value: float, largest: float) -> float:
    return float(np.log2(1 + value) / np.log2(1 + largest))


def _nats(error: float) -> float:
    """0 for 1e-5 nats and less, 1 for 1 nat."""
    return float(np.log10(max(error, 1e-5))) / 5 + 1


# AMC's eleven features (He et al. 2018, eq. 1: t, n, c, h, w, stride, k, FLOPs, reduced, rest,
# a_{t-1}), then what bits, budgets and shared channel groups add.
PLAIN: dict[str, Callable[[LayerView], float]] = {
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

# What the repair and the device know before any evaluation.
INFORMED: dict[str, Callable[[LayerView], float]] = {
    "removal_error_75": lambda v: _nats(v.known.removal_error[0]),
    "removal_error_50": lambda v: _nats(v.known.removal_error[1]),
    "removal_error_25": lambda v: _nats(v.known.removal_error[2]),
    "removal_saved_75": lambda v: v.known.removal_saved[0],
    "removal_saved_50": lambda v: v.known.removal_saved[1],
    "removal_saved_25": lambda v: v.known.removal_saved[2],
    "bits_error_fewest": lambda v: _nats(v.known.bits_error[0]),
    "bits_error_middle": lambda v: _nats(v.known.bits_error[1]),
    "bits_saved_fewest": lambda v: v.known.bits_saved[0],
    "bits_saved_middle": lambda v: v.known.bits_saved[1],
    "budget_left": lambda v: v.budget_left,
    "advised_ratio": lambda v: v.advised_ratio,
    "advised_weight_bits": lambda v: _log(v.advised_bits.weight, 32),
    "advised_activation_bits": lambda v: _log(v.advised_bits.activation, 32),
}
FEATURES = PLAIN | INFORMED
# What an observation may name as one. Of the informed: what decisions cost in accuracy, what they
# save, and what the program makes of both.
FAMILIES = {
    "all": tuple(FEATURES),
    "plain": tuple(PLAIN),
    "errors": tuple(name for name in INFORMED if "_error_" in name),
    "savings": (*(name for name in INFORMED if "_saved_" in name), "budget_left"),
    "advice": tuple(name for name in INFORMED if name.startswith("advised_")),
}
LOW, HIGH = -2.0, 4.0  # only what is left of a budget, near the end of a walk, comes near


def feature_names(chosen: str | Sequence[str] | None) -> tuple[str, ...]:
    """Features by name, or by the name of a family of them ("plain": AMC's); None means all.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    if chosen is None:
        chosen = "all"
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        chosen = (chosen,)
    known = FAMILIES | {name: (name,) for name in FEATURES}
    names = tuple(chosen)
    unknown = [name for name in names if not (isinstance(name, str) and name in known)]
    if unknown or not names:
        raise ConfigError(
            f"env.observation has unknown features {unknown}; choose at least one of "
            f"{', '.join(FAMILIES)}, or of {', '.join(FEATURES)}."
        )
    return tuple(dict.fromkeys(feature for name in names for feature in known[name]))


def observe(view: LayerView, names: tuple[str, ...] = tuple(FEATURES)) -> npt.NDArray[np.float32]:
    """The named features of a layer, shape (len(names),)."""
    values = np.array([FEATURES[name](view) for name in names], np.float32)
    return np.clip(values, LOW, HIGH)
