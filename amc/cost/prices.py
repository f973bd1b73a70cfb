"""What one operator costs: asked once, or for all channel counts and bits of a walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amc.cost import formulas
from amc.cost.budget import DEVICE_METRICS
from amc.cost.choices import IntArray, Operator, operators_of, reference_bits
from amc.cost.device import Device
from amc.cost.profile import LocalSpec
from amc.errors import DeviceError
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits, Strategy

FloatArray = npt.NDArray[np.float64]
Formula = Callable[[Signature, int, int, Bits, bool], int]

# Metric -> cost of an operator by its signature, input and output channels, bits, and bias.
FORMULAS: dict[str, Formula] = {
    "macs": lambda s, i, o, bits, bias: formulas.macs(s, i, o),
    "bops": lambda s, i, o, bits, bias: formulas.bops(s, i, o, bits),
    "params": lambda s, i, o, bits, bias: formulas.params(s, i, o, bias),
    "size_bytes": formulas.size_bytes,
}
OF_WEIGHTS = ("params", "size_bytes")  # however often a layer is called


def check_metric(metric: str, device: Device | LocalSpec | None) -> None:
    """Check that a device prices a metric, where the metric is one of a device.

    Raises:
        DeviceError: There is no device, or it does not price the metric.
    """
    if metric not in DEVICE_METRICS:
        return
    if device is None:
        raise DeviceError(f"A budget on {metric} needs a device, got none.")
    if metric not in device.metrics:
        raise DeviceError(
            f"Device {device.name} prices {', '.join(device.metrics)}, not {metric}. "
            "Choose another device or budget.metric."
        )


def fuses_of(device: object) -> tuple[str, ...]:
    """Operators that a device computes inside of the layer before them; most say nothing of it."""
    return getattr(device, "fuses", ())


def operator_prices(
    graph: NetworkGraph, strategy: Strategy, metric: str, device: Device | None
) -> list[float]:
    """What every operator costs under any strategy, asked one by one; the layers first.

    Layers that the strategy gives no bits, and operators between layers, run in float, or in
    the device's most precise bits where it has no float.

    Raises:
        DeviceError, TableError: The device has no price for an operator.
    """
    kept = graph.kept_counts(strategy).tolist()
    reference = reference_of(metric, device)
    costs = []
    for operator in operators_of(graph):
        bits = strategy.bits.get(operator.name, reference) if operator.layer >= 0 else reference
        costs.append(_ask(operator, metric, device, kept, bits))
    return costs


def reference_of(metric: str, device: Device | None) -> Bits:
    """What the original runs in: what it costs otherwise would be no measure of a saving."""
    if metric not in DEVICE_METRICS:
        return FLOAT
    assert device is not None
    return reference_bits(device.supported_bits)


def _ask(
    operator: Operator, metric: str, device: Device | None, kept: Sequence[int], bits: Bits
) -> float:
    ins, outs = operator.inputs.count(kept), operator.outputs.count(kept)
    if metric in DEVICE_METRICS:
        assert device is not None
        if operator.is_fused(fuses_of(device)):
            return 0.0
        return device.price(metric, operator.signature, ins, outs, bits)
    if operator.is_repeat and metric in OF_WEIGHTS:
        return 0.0
    return float(FORMULAS[metric](operator.signature, ins, outs, bits, operator.has_bias))


class PriceList(Protocol):
    """Costs of one operator. A bit pair is given by its index among those on offer."""

    @property
    def is_free(self) -> bool:
        """Whether every price is 0."""

    def one(self, ins: int, outs: int, pair: int) -> float:
        """Cost with so many channels."""

    def column(self, ins: IntArray, outs: IntArray, pair: int) -> FloatArray:
        """Costs for channel counts side by side, shape (n,)."""

    def table(self, ins: IntArray, outs: IntArray) -> FloatArray:
        """Costs for channel counts side by side and every bit pair, shape (n, pairs)."""


class FormulaPrices:
    """Prices by a formula."""

    def __init__(
        self, metric: str, signature: Signature, pairs: Sequence[Bits], has_bias: bool
    ) -> None:
        self._formula, self._signature = FORMULAS[metric], signature
        self._pairs, self._has_bias = pairs, has_bias
        self.is_free = not signature.is_layer

    def one(self, ins: int, outs: int, pair: int) -> float:
        return float(self._formula(self._signature, ins, outs, self._pairs[pair], self._has_bias))

    def column(self, ins: IntArray, outs: IntArray, pair: int) -> FloatArray:
        bits = self._pairs[pair]
        # The formulas are the same for numbers and for arrays of them.
        costs = self._formula(self._signature, ins, outs, bits, self._has_bias)  # type: ignore[arg-type]
        return np.asarray(costs, np.float64)

    def table(self, ins: IntArray, outs: IntArray) -> FloatArray:
        return np.stack([self.column(ins, outs, pair) for pair in range(len(self._pairs))], 1)


class GridPrices:
    """Prices that a device was asked for once, over all reachable channel counts."""

    def __init__(
        self,
        device: Device,
        metric: str,
        signature: Signature,
        pairs: Sequence[Bits],
        ins: IntArray,
        outs: IntArray,
    ) -> None:
        """
        Args:
            ins, outs: Channel counts that can be asked for, ascending; side by side where outputs
                follow inputs.
        """
        grids = [device.prices(metric, signature, ins, outs, bits) for bits in pairs]
        # (pairs, input counts, output counts, or 1 where outputs follow inputs)
        self._grid = np.stack(grids).reshape(len(pairs), len(ins), -1)
        self._in_place = _places(ins)
        self._out_place = _places(outs)
        if formulas.is_paired(signature):
            self._out_place[:] = 0
        self._in_list, self._out_list = self._in_place.tolist(), self._out_place.tolist()
        self.is_free = not self._grid.any()

    def one(self, ins: int, outs: int, pair: int) -> float:
        return self._grid.item(pair, self._in_list[ins], self._out_list[outs])

    def column(self, ins: IntArray, outs: IntArray, pair: int) -> FloatArray:
        costs: FloatArray = self._grid[pair, self._in_place[ins], self._out_place[outs]]
        return costs

    def table(self, ins: IntArray, outs: IntArray) -> FloatArray:
        return self._grid[:, self._in_place[ins], self._out_place[outs]].T


@dataclass(frozen=True)
class PricedOperator:
    """One operator with its price list."""

    operator: Operator
    prices: PriceList

    def cost(self, kept: Sequence[int], pairs: Sequence[int]) -> float:
        layer = self.operator.layer
        return self.prices.one(
            self.operator.inputs.count(kept),
            self.operator.outputs.count(kept),
            pairs[layer] if layer >= 0 else 0,
        )


def _places(values: IntArray) -> IntArray:
    """Position of each value in a sorted array, indexed by the value itself."""
    places = np.zeros(int(values[-1]) + 1, np.int64)
    places[values] = np.arange(len(values))
    return places
