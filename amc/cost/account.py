"""What a run says of its sums: what is counted as it stands, has no price, or is missing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from amc.cost.budget import DEVICE_METRICS
from amc.cost.device import Device
from amc.cost.prices import operator_prices, unpriced
from amc.graph.graph import NetworkGraph
from amc.graph.types import OperatorInfo
from amc.graph.whole import counting
from amc.strategy import IDENTITY

TOLERANCE = 0.01  # of PyTorch's count; beyond it a run says what differs
_NAMED = 5


def count_macs(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds on one image by PyTorch's flop counter, which knows nothing of amc.

    Returns:
        Module path -> multiply-adds inside of it; the whole network's under "".
    """
    images = torch.zeros(1, *image_shape)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # the counter asks for gradients of those that modules are given
            parameter.requires_grad_(False)
        with counting() as counter:
            network(images)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    counts = {"": counter.get_total_flops() // 2}
    for path, flops in counter.get_flop_counts().items():
        inner = str(path).partition(".")[2]  # after the class of the network
        if inner:
            counts[inner] = sum(flops.values()) // 2
    return counts


def account(
    network: nn.Module, graph: NetworkGraph, metric: str, device: Device | None
) -> list[str]:
    """Lines for the user: nothing where every layer is followed, priced and counted.

    Args:
        network: On the CPU, in evaluation mode; run on one image.
    """
    macs = math.fsum(operator_prices(graph, IDENTITY, "macs", None))
    wholes = [operator for operator in graph.operators if operator.signature.own_macs]
    lines = []
    if wholes:
        lines.append(f"counted as it stands, not followed: {_summary(graph, wholes, macs)}")
    lines += unpriced_lines(graph, metric, device)
    if graph.unused:
        unused = ", ".join(f"{path} ({count:,} parameters)" for path, count in graph.unused.items())
        lines.append(f"never read by the forward, not counted: {unused}")
    return lines + _differences(count_macs(network, graph.image_shape), graph, macs)


def unpriced_lines(graph: NetworkGraph, metric: str, device: Device | None) -> list[str]:
    """A line where the device's metric leaves something out."""
    missing = unpriced(graph, device) if device is not None and metric in DEVICE_METRICS else []
    if not missing or device is None:
        return []
    macs = math.fsum(operator_prices(graph, IDENTITY, "macs", None))
    return [
        f"{metric} of {device.name} leaves out what has no price there: "
        f"{_summary(graph, missing, macs)}"
    ]


def _summary(graph: NetworkGraph, operators: Iterable[OperatorInfo], macs: float) -> str:
    """How many of which kind, and their share of the multiply-adds."""
    times: Counter[str] = Counter()
    own: dict[str, int] = defaultdict(int)
    for operator in operators:
        what = graph.wholes[operator.signature.op].what
        times[what] += 1
        own[what] += operator.signature.own_macs
    ordered = sorted(times, key=lambda what: (-own[what], -times[what], what))
    parts = [
        f"{times[what]} {what}" + (f" ({100 * own[what] / macs:.1f} %)" if own[what] else "")
        for what in ordered
    ]
    more = f" and {len(parts) - _NAMED} other kinds" if len(parts) > _NAMED else ""
    share = 100 * sum(own.values()) / macs
    return f"{', '.join(parts[:_NAMED])}{more}; {share:.1f} % of the multiply-adds"


def _differences(counted: dict[str, int], graph: NetworkGraph, macs: float) -> list[str]:
    """A line where PyTorch counts something else than amc does."""
    expected = counted[""]
    if abs(macs - expected) <= TOLERANCE * expected:
        return []
    own = _own_counts(graph)
    apart = {path: counted.get(path, 0) - own[path] for path in own}
    worst = sorted((path for path in apart if apart[path]), key=lambda path: -abs(apart[path]))
    named: Sequence[str] = [f"{path} ({apart[path]:+,})" for path in worst[:_NAMED]]
    elsewhere = expected - int(macs) - sum(apart.values())
    if elsewhere:
        named = [*named, f"outside of the layers ({elsewhere:+,})"]
    return [
        f"amc counts {macs:,.0f} multiply-adds, PyTorch's flop counter {expected:,} "
        f"({macs / max(expected, 1):.3f} of them counted); what differs: {', '.join(named)}"
    ]


def _own_counts(graph: NetworkGraph) -> dict[str, int]:
    """Multiply-adds of every layer, over all its calls."""
    prices = operator_prices(graph, IDENTITY, "macs", None)
    own: Counter[str] = Counter()
    names = [layer.name for layer in graph.layers] + [other.name for other in graph.operators]
    layers = {layer.name for layer in graph.layers}
    for name, price in zip(names, prices, strict=False):
        if name in layers:
            own[name] += int(price)
    return dict(own)
