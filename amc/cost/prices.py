"""What one operator costs: asked once, or for all channel counts and bits of a walk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amc.cost import formulas
from amc.cost.budget import DEVICE_METRICS
from amc.cost.choices import IntArray, reference_bits
from amc.cost.device import Device
from amc.cost.operators import Operator, operators_of
from amc.cost.plugins import price_from, prices_from
from amc.cost.profile import LocalSpec
from amc.cost.states import Part, Stated, States, decoded
from amc.cost.stored import PACKED, StoredCosts, stored_bytes, stored_cost
from amc.decisions import cost_factor
from amc.errors import DeviceError
from amc.graph.graph import NetworkGraph
from amc.graph.types import STORED, OperatorInfo, Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits, Option, Strategy

FloatArray = npt.NDArray[np.float64]
Formula = Callable[[Signature, int, int, Bits, bool], int]

# Metric -> cost of an operator by its signature, input and output channels, bits, and bias.
FORMULAS: dict[str, Formula] = {
    "macs": lambda s, i, o, bits, bias: formulas.macs(s, i, o),
    "bops": lambda s, i, o, bits, bias: formulas.bops(s, i, o, bits),
    "params": lambda s, i, o, bits, bias: formulas.params(s, i, o, bias),
    "size_bytes": formulas.size_bytes,
}
OF_WEIGHTS = ("params", "size_bytes", PACKED)  # however often a layer is called


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


def prices_whole(device: object, signature: Signature, bits: Bits) -> bool:
    """Whether a device has a price for a call that amc does not follow; most have none."""
    asked = getattr(device, "prices_whole", None)
    return asked is not None and bool(asked(signature, bits))


def costs_nothing_on(device: Device, operator: Operator) -> bool:
    """Whether a device is not asked: what is stored, what it fuses, what it cannot price whole.

    Of the last a run says that it is missing (`unpriced`).
    """
    if operator.is_stored or operator.is_fused(fuses_of(device)):
        return True
    return operator.signature.is_whole and not prices_whole(
        device, operator.signature, reference_bits(device.supported_bits)
    )


def unpriced(graph: NetworkGraph, device: Device) -> list[OperatorInfo]:
    """The calls that amc does not follow and the device has no price for: they cost nothing."""
    reference = reference_bits(device.supported_bits)
    return [
        operator
        for operator in graph.operators
        if operator.signature.is_whole and not prices_whole(device, operator.signature, reference)
    ]


def converts_of(device: object) -> tuple[str, ...]:
    """Conversions between layers that a device prices (`amc.quantplan.forms`); most price none."""
    return getattr(device, "converts", ())


def operator_prices(
    graph: NetworkGraph,
    strategy: Strategy,
    metric: str,
    device: Device | None,
    stored: StoredCosts | None = None,
) -> list[float]:
    """What every operator costs under any strategy, asked one by one; the layers first.

    Layers that the strategy gives no bits, and operators between layers, run in float, or in
    the device's most precise bits where it has no float. On a device that prices conversions,
    operators between layers run as the layers around them say, and conversions come last.

    Args:
        stored: What weights take in a file, for the metric that asks it.

    Raises:
        DeviceError, TableError: The device has no price for an operator.
    """
    if metric == PACKED:
        assert stored is not None
        return _stored_prices(graph, strategy, stored)
    parts = parts_under(graph, strategy, metric, device)
    return [math.fsum(price for _, price in priced) for priced in parts]


def _stored_prices(graph: NetworkGraph, strategy: Strategy, stored: StoredCosts) -> list[float]:
    kept = graph.kept_counts(strategy).tolist()
    names = [layer.name for layer in graph.layers]
    prices = []
    for operator in operators_of(graph):
        option = strategy.option(names[operator.layer]) if operator.layer >= 0 else Option()
        ins, outs = operator.inputs.count(kept), operator.outputs.count(kept)
        is_free = operator.is_gone(kept) or operator.is_repeat
        cost = stored_cost(stored, operator, option)
        prices.append(0.0 if is_free else stored_bytes(cost, operator.signature, ins, outs))
    return prices


def parts_under(
    graph: NetworkGraph, strategy: Strategy, metric: str, device: Device | None
) -> list[list[tuple[Part, float]]]:
    """What every operator consists of under a strategy, with its price: a part once for each call.

    Raises:
        DeviceError, TableError: As `operator_prices`.
    """
    kept = graph.kept_counts(strategy).tolist()
    return [
        [
            (part, _ask(operator, part, metric, device, kept) * factor)
            for part, times in occurring
            for _ in range(times)
        ]
        for operator, occurring, factor in _occurring(graph, strategy, metric, device)
    ]


def requests_under(graph: NetworkGraph, strategy: Strategy, device: Device) -> list[Request]:
    """What a device is asked for the latency of a strategy, distinct."""
    kept = graph.kept_counts(strategy).tolist()
    found: dict[Request, None] = {}
    for operator, occurring, _ in _occurring(graph, strategy, "latency_ms", device):
        if operator.is_gone(kept) or costs_nothing_on(device, operator):
            continue
        ins, outs = operator.inputs.count(kept), operator.outputs.count(kept)
        for part in (part for part, _ in occurring if part is not None):
            found[Request(part[0], ins, outs, part[1])] = None
    return list(found)


def _occurring(
    graph: NetworkGraph, strategy: Strategy, metric: str, device: Device | None
) -> Iterator[tuple[Operator, list[tuple[Part, int]], float]]:
    """Every operator with the parts that it consists of under a strategy, how often, and what its
    price is multiplied by.
    """
    reference = reference_of(metric, device)
    options = [strategy.option(layer.name, reference) for layer in graph.layers]
    offered = tuple(dict.fromkeys(options))
    chosen = [offered.index(option) for option in options]
    states = states_of(graph, [option.bits for option in offered], metric, device)
    forms = states.forms(chosen)
    by_formula = metric not in DEVICE_METRICS
    factors = [cost_factor(metric, option) for option in offered] if by_formula else []
    for stated in states.stated:
        state = stated.rule(chosen, forms)
        factor = factors[state] if by_formula and stated.is_optional else 1.0
        yield stated.operator, stated.occurring(state), factor


def states_of(
    graph: NetworkGraph, pairs: Sequence[Bits], metric: str, device: Device | None
) -> States:
    """All operators of a network, and which prices they have on a device."""
    converts = converts_of(device) if metric in DEVICE_METRICS else ()
    return States(graph, pairs, reference_of(metric, device), converts)


def reference_of(metric: str, device: Device | None) -> Bits:
    """What the original runs in: what it costs otherwise would be no measure of a saving."""
    if metric not in DEVICE_METRICS:
        return FLOAT
    assert device is not None
    return reference_bits(device.supported_bits)


def _ask(
    operator: Operator, part: Part, metric: str, device: Device | None, kept: Sequence[int]
) -> float:
    ins, outs = operator.inputs.count(kept), operator.outputs.count(kept)
    if part is None or operator.is_gone(kept):
        return 0.0
    signature, bits = part
    if metric in DEVICE_METRICS:
        assert device is not None
        if costs_nothing_on(device, operator):
            return 0.0
        return price_from(device, metric, signature, ins, outs, bits)
    if operator.is_repeat and metric in OF_WEIGHTS:
        return 0.0
    return float(FORMULAS[metric](signature, ins, outs, bits, operator.has_bias))


class PriceList(Protocol):
    """Costs of one operator, by its state (`amc.cost.states`)."""

    @property
    def is_free(self) -> bool:
        """Whether every price is 0."""

    def one(self, ins: int, outs: int, state: int) -> float:
        """Cost with so many channels."""

    def column(self, ins: IntArray, outs: IntArray, state: int) -> FloatArray:
        """Costs for channel counts side by side, shape (n,)."""

    def table(self, ins: IntArray, outs: IntArray, states: Sequence[int]) -> FloatArray:
        """Costs for channel counts side by side and several states, shape (n, states)."""


class FormulaPrices:
    """Prices by a formula."""

    def __init__(
        self, metric: str, parts: Sequence[Part], has_bias: bool, factors: Sequence[float] = ()
    ) -> None:
        """
        Args:
            factors: Of the price of every part; none: 1.
        """
        self._formula, self._parts, self._has_bias = FORMULAS[metric], parts, has_bias
        self._factors = factors or [1.0] * len(parts)
        self._known: dict[tuple[int, int, int], float] = {}  # walks ask the same again and again
        costing = (part[0] for part in parts if part)
        self.is_free = not any(
            s.is_layer or s.is_product or s.own_macs or s.op == STORED for s in costing
        )

    def one(self, ins: int, outs: int, state: int) -> float:
        key = ins, outs, state
        cost = self._known.get(key)
        if cost is None:
            part = self._parts[state]
            cost = (
                float(self._formula(part[0], ins, outs, part[1], self._has_bias)) if part else 0.0
            )
            cost *= self._factors[state]
            self._known[key] = cost
        return cost

    def column(self, ins: IntArray, outs: IntArray, state: int) -> FloatArray:
        part = self._parts[state]
        if part is None:
            return np.zeros(len(ins))
        # The formulas are the same for numbers and for arrays of them.
        costs = self._formula(part[0], ins, outs, part[1], self._has_bias)  # type: ignore[arg-type]
        return np.asarray(costs, np.float64) * self._factors[state]

    def table(self, ins: IntArray, outs: IntArray, states: Sequence[int]) -> FloatArray:
        return np.stack([self.column(ins, outs, state) for state in states], 1)


class GridPrices:
    """Prices that a device was asked for once, over all reachable channel counts."""

    def __init__(
        self,
        device: Device,
        metric: str,
        parts: Sequence[Part],
        ins: IntArray,
        outs: IntArray,
    ) -> None:
        """
        Args:
            ins, outs: Channel counts that can be asked for, ascending; side by side where outputs
                follow inputs.
        """
        signature = next(part[0] for part in parts if part)
        self.is_paired = formulas.is_paired(signature)
        shape = len(ins), 1 if self.is_paired else len(outs)
        grids = [
            prices_from(device, metric, *part, ins, outs).reshape(shape)
            if part
            else np.zeros(shape)
            for part in parts
        ]
        self.grid: FloatArray = np.stack(
            grids
        )  # (parts, input counts, output counts, or 1 if these follow)
        self._in_place = _places(ins)
        self._out_place = _places(outs)
        if self.is_paired:
            self._out_place[:] = 0
        self._in_list, self._out_list = self._in_place.tolist(), self._out_place.tolist()
        self.is_free = not self.grid.any()

    def one(self, ins: int, outs: int, state: int) -> float:
        return float(self.grid.item(state, self._in_list[ins], self._out_list[outs]))

    def column(self, ins: IntArray, outs: IntArray, state: int) -> FloatArray:
        costs: FloatArray = self.grid[state, self._in_place[ins], self._out_place[outs]]
        return costs

    def table(self, ins: IntArray, outs: IntArray, states: Sequence[int]) -> FloatArray:
        chosen = np.asarray(states)[:, None]
        costs: FloatArray = self.grid[chosen, self._in_place[ins], self._out_place[outs]].T
        return costs


class ConversionPrices:
    """Prices of what a tensor is converted to: sums of its parts, each as often as it occurs."""

    def __init__(
        self, device: Device, metric: str, parts: Sequence[Part], counts: IntArray
    ) -> None:
        """
        Args:
            counts: Channel counts that can be asked for, ascending.
        """
        self._parts = GridPrices(device, metric, parts, counts, counts)
        self._place = _places(counts)
        self._of_state: dict[int, FloatArray] = {}
        self._places = self._place.tolist()
        self._lists: dict[int, list[float]] = {}
        self.is_free = self._parts.is_free

    def one(self, ins: int, outs: int, state: int) -> float:
        if state not in self._lists:
            self._lists[state] = self._sums(state).tolist()
        price: float = self._lists[state][self._places[ins]]
        return price

    def column(self, ins: IntArray, outs: IntArray, state: int) -> FloatArray:
        costs: FloatArray = self._sums(state)[self._place[ins]]
        return costs

    def table(self, ins: IntArray, outs: IntArray, states: Sequence[int]) -> FloatArray:
        return np.stack([self.column(ins, outs, state) for state in states], 1)

    def _sums(self, state: int) -> FloatArray:
        """Cost in one state, shape (channel counts,): exactly rounded, as when asked one by one."""
        if state not in self._of_state:
            times = decoded(state, len(self._parts.grid))
            parts = [n * grid[:, 0] for n, grid in zip(times, self._parts.grid, strict=True) if n]
            sums = [math.fsum(prices) for prices in zip(*parts, strict=True)]
            self._of_state[state] = np.array(sums) if parts else np.zeros(len(self._parts.grid[0]))
        return self._of_state[state]


@dataclass(frozen=True)
class PricedOperator:
    """One operator with its price list."""

    stated: Stated
    prices: PriceList

    @property
    def operator(self) -> Operator:
        return self.stated.operator

    def cost(self, kept: Sequence[int], pairs: Sequence[int], forms: Sequence[int] = ()) -> float:
        """Cost with the channels of every group, and the bit pair of every layer."""
        return self.cost_in(self.stated.rule(pairs, forms), kept)

    def cost_in(self, state: int, kept: Sequence[int]) -> float:
        """Cost in a state, with the channels of every group."""
        if self.operator.is_gone(kept):
            return 0.0
        return self.prices.one(
            self.operator.inputs.count(kept), self.operator.outputs.count(kept), state
        )


def _places(values: IntArray) -> IntArray:
    """Position of each value in a sorted array, indexed by the value itself."""
    places = np.zeros(int(values[-1]) + 1, np.int64)
    places[values] = np.arange(len(values))
    return places
