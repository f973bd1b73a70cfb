"""What the agent sees of a layer: named numbers on scales that no network sets.

Sizes enter as logarithms over a fixed range, costs as fractions of the original's cost or of the
budget, errors as logarithms of nats, so that a policy learned on one network means the same on
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.cost.model import CostModel, WalkCosts
from amc.errors import ConfigError
from amc.graph.types import LayerInfo
from envs.estimates import LayerEstimates

Features = Mapping[str, float]
"""Part of a decision -> the number chosen, as agents see it."""


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
        previous_ratio, previous: What was decided before.
        advised_ratio, advised: The knapsack's decision here, the prior action.
        estimates: What every decision of the layer costs in accuracy and saves; None if unknown.
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
    previous: Features
    advised_ratio: float
    advised: Features
    estimates: LayerEstimates | None = None

    @property
    def known(self) -> LayerEstimates:
        """The estimates, where features need them."""
        assert self.estimates is not None
        return self.estimates


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
    "previous_weight_bits": lambda v: v.previous["weight_bits"],
    "previous_activation_bits": lambda v: v.previous["activation_bits"],
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
    "advised_weight_bits": lambda v: v.advised["weight_bits"],
    "advised_activation_bits": lambda v: v.advised["activation_bits"],
}
FEATURES = PLAIN | INFORMED
# What an observation may name as one. Of the informed: what decisions cost in accuracy, what they
# save, and what the knapsack makes of both.
FAMILIES = {
    "all": tuple(FEATURES),
    "plain": tuple(PLAIN),
    "errors": tuple(name for name in INFORMED if "_error_" in name),
    "savings": (*(name for name in INFORMED if "_saved_" in name), "budget_left"),
    "advice": tuple(name for name in INFORMED if name.startswith("advised_")),
}
LOW, HIGH = -2.0, 4.0  # only what is left of a budget, near the end of a walk, comes near


def is_informed(names: Iterable[str]) -> bool:
    """Whether some of the features need the estimated errors of decisions."""
    return any(name in INFORMED or name.startswith("advised_") for name in names)


def feature_names(chosen: str | Sequence[str] | None, parts: Sequence[str] = ()) -> tuple[str, ...]:
    """Features by name, or by the name of a family of them ("plain": AMC's); None means all.

    Args:
        parts: Of the decisions on a layer; of each there are ``previous_`` and ``advised_``.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    if chosen is None:
        chosen = "all"
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        chosen = (chosen,)
    before, advised = ([f"{when}_{part}" for part in parts] for when in ("previous", "advised"))
    more = {"all": [*before, *advised], "plain": before, "advice": advised}
    families = {name: (*of, *more.get(name, ())) for name, of in FAMILIES.items()}
    known = families | {name: (name,) for name in (*FEATURES, *before, *advised)}
    names = tuple(chosen)
    unknown = [name for name in names if not (isinstance(name, str) and name in known)]
    if unknown or not names:
        raise ConfigError(
            f"env.observation has unknown features {unknown}; choose at least one of "
            f"{', '.join(families)}, or of {', '.join(families['all'])}."
        )
    return tuple(dict.fromkeys(feature for name in names for feature in known[name]))


def layer_view(
    costs: CostModel,
    walk: WalkCosts,
    step: int,
    previous: tuple[float, Features],
    advised: tuple[float, Features],
    estimates: LayerEstimates | None,
) -> LayerView:
    """What a walk is like at a step.

    Args:
        step: Layers decided; where that is all of them, the last layer is seen once more.
    """
    layers = costs.graph.layers
    place = min(step, len(layers) - 1)
    layer, total, bound = layers[place], costs.original, costs.bound
    now, full = walk.layer_costs(), costs.original_costs
    return LayerView(
        layer=layer,
        layers=len(layers),
        decides=len(costs.level_ratios[place]) > 1,
        input_ratio=layer.inputs.count(walk.kept) / layer.in_channels,
        cost_share=float(full[place]) / total,
        saved=float((full[:step] - now[:step]).sum()) / total,
        rest=float(full[place + 1 :].sum()) / total,
        spent=walk.total / bound,
        floor_rest=float(now[step:].sum()) / bound,
        budget_left=(bound - float(now[:step].sum())) / max(float(full[step:].sum()), 1e-9 * total),
        previous_ratio=previous[0],
        previous=previous[1],
        advised_ratio=advised[0],
        advised=advised[1],
        estimates=estimates,
    )


def observe(view: LayerView, names: tuple[str, ...] = tuple(FEATURES)) -> npt.NDArray[np.float32]:
    """The named features of a layer, shape (len(names),)."""
    values = np.array([_feature(view, name) for name in names], np.float32)
    return np.clip(values, LOW, HIGH)


def _feature(view: LayerView, name: str) -> float:
    if name in FEATURES:
        return FEATURES[name](view)
    when, _, part = name.partition("_")
    found: Features = getattr(view, when)
    return found[part]
