"""How far the estimated errors of a layer's decisions are to be trusted.

Errors are estimated without an evaluation, and are wrong in much the same way in all networks: for
few channels removed and for many, early and late, in wide groups and narrow ones. So what is
learned on some networks is a factor on the errors of others, from what any network's layers have
in common; the knapsack turns the corrected errors into a strategy. An action is, for one layer,
the logarithms of four factors: of the error of removing few of its channels, more, and many
(the `PIECES` of a group's error, `envs.hypothesis`), and of the errors of its options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amc.cost.model import CostModel
from amc.graph.types import LayerInfo
from amc.recovery.errors import LayerErrors
from amc.strategy import Strategy
from envs.hypothesis import PIECES, pieces
from envs.knapsack import knapsack_strategy
from envs.levels import nearest_level

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]

TRUST_PARTS = ("error_few_removed", "error_more_removed", "error_most_removed", "error_options")
REACH = 20.0  # the largest factor, and 1 / the smallest: actions of 1 and -1
LOW, HIGH = -3.0, 3.0  # of features
LEAST = 1e-7  # nats; an error below it is taken for it


@dataclass(frozen=True)
class TrustView:
    """One layer, beside its network, the budget and what the knapsack makes of the estimates.

    Errors are logarithms (base 10) of nats; those of single layers and groups beside the
    network's median, as only their ratios decide anything.

    Attributes:
        layer: The layer.
        layers: How many the network has.
        size: Channels that it decides; 0 if none.
        producers: Layers that produce those channels: more than one in residual streams.
        before, share: Multiply-adds or time of all layers before it, and its own / the total.
        removal: Error at a quarter, half and three quarters of the channels removed.
        previous, following: Error at half of the layers that decide before and after.
        options: Error of the option that changes most.
        typical: Median error of all groups at half, in nats.
        expected: What the knapsack's strategy is estimated to lose, in nats.
        part: Of that, this layer's.
        fraction: Logarithm (base 2) of the bound / the original's cost.
        advised_ratio, advised_option: What the knapsack decides: fraction of the channels kept;
            0 for the option that changes most, 1 for that which changes least.
        chooses: Whether there is more than one option.
    """

    layer: LayerInfo
    layers: int
    size: int
    producers: int
    before: float
    share: float
    removal: tuple[float, float, float]
    previous: float
    following: float
    options: float
    typical: float
    expected: float
    part: float
    fraction: float
    advised_ratio: float
    advised_option: float
    chooses: bool


TRUST_FEATURES: dict[str, Callable[[TrustView], float]] = {
    "layer_index": lambda v: v.layer.index / max(v.layers - 1, 1),
    "layers": lambda v: float(np.log2(v.layers)) / 8,
    "cost_before": lambda v: v.before,
    "cost_share": lambda v: float(np.sqrt(v.share)),
    "group_size": lambda v: float(np.log2(1 + v.size)) / 12,
    "out_channels": lambda v: float(np.log2(1 + v.layer.out_channels)) / 12,
    "in_channels": lambda v: float(np.log2(1 + v.layer.in_channels)) / 12,
    "height": lambda v: float(np.log2(1 + v.layer.signature.in_size[0])) / 8,
    "kernel": lambda v: v.layer.signature.kernel[0] / 7,
    "stride": lambda v: v.layer.signature.stride[0] / 4,
    "is_depthwise": lambda v: float(v.layer.signature.is_depthwise),
    "is_linear": lambda v: float(v.layer.signature.op == "linear"),
    "decides_ratio": lambda v: float(v.size > 0),
    "producers": lambda v: float(np.log2(max(v.producers, 1))) / 4,
    "removal_error_75": lambda v: v.removal[0],
    "removal_error_50": lambda v: v.removal[1],
    "removal_error_25": lambda v: v.removal[2],
    "previous_error_50": lambda v: v.previous,
    "following_error_50": lambda v: v.following,
    "options_error": lambda v: v.options,
    "typical_error": lambda v: v.typical / 2,
    "expected_error": lambda v: v.expected,
    "expected_part": lambda v: float(np.sqrt(v.part)),
    "budget_fraction": lambda v: v.fraction / 2,
    "advised_ratio": lambda v: v.advised_ratio,
    "advised_option": lambda v: v.advised_option,
    "chooses_option": lambda v: float(v.chooses),
}


class Trust:
    """The estimated errors of one network under one budget, and factors on them.

    Attributes:
        costs, errors: As given.
    """

    def __init__(self, costs: CostModel, errors: LayerErrors) -> None:
        self.costs, self.errors = costs, errors
        self._layers = costs.graph.layers
        self._pieces = {
            group.index: pieces(errors.removal[group.index]) for group in costs.graph.free_groups
        }
        self._decider = {group: layer.index for layer in self._layers for group in layer.decides}

    # -- features -----------------------------------------------------------------------------

    @cached_property
    def observations(self) -> Array:
        """The `TRUST_FEATURES` of every layer, shape (layers, features)."""
        rows = [[feature(view) for feature in TRUST_FEATURES.values()] for view in self._views()]
        return np.clip(np.array(rows, np.float32), LOW, HIGH)

    def observed(self, names: Sequence[str]) -> Array:
        """Some of the features of every layer, shape (layers, names)."""
        known = list(TRUST_FEATURES)
        return self.observations[:, [known.index(name) for name in names]]

    def _views(self) -> list[TrustView]:
        costs, layers = self.costs, self._layers
        kept, options = costs.encode(self.knapsack)
        full = costs.original_costs / costs.original
        before = np.concatenate([[0.0], np.cumsum(full)])
        removal, typical = self._removal_errors()
        ranked = costs.choices.by_closeness
        rank = {option: place / max(len(ranked) - 1, 1) for place, option in enumerate(ranked)}
        most = _log(self.errors.options[:, ranked[0]])
        lost = self.parts(kept.tolist(), options.tolist()).sum(1)
        expected = max(float(lost.sum()), LEAST)
        near = self._near(removal[:, 1])
        producers = {group.index: len(group.producers) for group in costs.graph.free_groups}
        views = []
        for layer in layers:
            place = layer.index
            few, half, many = removal[place].tolist()
            level = nearest_level(costs, kept, place)
            views.append(
                TrustView(
                    layer=layer,
                    layers=len(layers),
                    size=sum(costs.graph.groups[group].size for group in layer.decides),
                    producers=max((producers[group] for group in layer.decides), default=0),
                    before=float(before[place]),
                    share=float(full[place]),
                    removal=(few, half, many),
                    previous=near[place][0],
                    following=near[place][1],
                    options=float(most[place] - np.median(most)) if len(ranked) > 1 else 0.0,
                    typical=typical,
                    expected=float(_log(expected)),
                    part=float(lost[place]) / expected,
                    fraction=float(np.log2(costs.bound / costs.original)),
                    advised_ratio=float(costs.level_ratios[place][level]),
                    advised_option=rank[int(options[place])],
                    chooses=len(ranked) > 1,
                )
            )
        return views

    def _removal_errors(self) -> tuple[FloatArray, float]:
        """Logarithms of the errors when layers keep 0.75, 0.5, 0.25 of what they decide.

        Returns:
            Shape (layers, 3), beside the median at half, 0 where a layer decides nothing; and that
            median.
        """
        found = np.zeros((len(self._layers), 3))
        deciding = [layer for layer in self._layers if layer.decides]
        for layer in deciding:
            curves = [self.errors.removal[group] for group in layer.decides]
            for place, left in enumerate((0.75, 0.5, 0.25)):
                nats = sum(curve[max(1, round(left * (len(curve) - 1)))] for curve in curves)
                found[layer.index, place] = _log(nats)
        rows = [layer.index for layer in deciding]
        typical = float(np.median(found[rows, 1])) if rows else 0.0
        found[rows] -= typical
        return found, typical

    def _near(self, halves: FloatArray) -> list[tuple[float, float]]:
        """What the deciding layers before and after each deciding layer lose at half."""
        found = [(0.0, 0.0)] * len(self._layers)
        deciding = [layer.index for layer in self._layers if layer.decides]
        padded = [0.0, *halves[deciding].tolist(), 0.0]
        for place, layer in enumerate(deciding):
            found[layer] = padded[place], padded[place + 2]
        return found

    # -- decisions ----------------------------------------------------------------------------

    @cached_property
    def knapsack(self) -> Strategy:
        """The strategy of the errors as estimated."""
        return knapsack_strategy(self.costs, self.errors)

    def corrected(self, actions: FloatArray | Array) -> LayerErrors:
        """The errors times the factors that actions stand for.

        Args:
            actions: Of every layer, in [-1, 1], shape (layers, 4).
        """
        factors = REACH ** np.asarray(actions, np.float64)
        removal = list(self.errors.removal)
        for group, piece in self._pieces.items():
            removal[group] = (factors[self._decider[group], :PIECES, None] * piece).sum(0)
        return LayerErrors(tuple(removal), self.errors.options * factors[:, PIECES:])

    def parts(self, kept: Sequence[int], options: Sequence[int]) -> FloatArray:
        """What a strategy is estimated to lose, by layer and part, shape (layers, 4)."""
        found = np.zeros((len(self._layers), len(TRUST_PARTS)))
        for group, piece in self._pieces.items():
            found[self._decider[group], :PIECES] += piece[:, kept[group]]
        found[:, PIECES] = self.errors.options[np.arange(len(self._layers)), list(options)]
        return found


def _log(nats: FloatArray | float) -> FloatArray:
    found: FloatArray = np.log10(np.maximum(nats, LEAST))
    return found
