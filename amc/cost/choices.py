"""What a walk may choose from, and every price that it can ask a device for."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.cost.device import Request
from amc.cost.formulas import is_paired
from amc.errors import ConfigError
from amc.graph.graph import NetworkGraph
from amc.graph.types import ChannelCount, Signature
from amc.strategy import Bits

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """What a walk may choose from.

    Attributes:
        kept: For every group, the channel counts it may keep, ascending, the last its size.
            Frozen groups have one choice.
        pairs: Bit-widths that a layer may have.
        min_preserve_ratio: Smallest fraction of a group that may be kept.
    """

    kept: tuple[IntArray, ...]
    pairs: tuple[Bits, ...]
    min_preserve_ratio: float


@dataclass(frozen=True)
class Operator:
    """Anything in a network that costs: a layer, or what stands between layers.

    Attributes:
        layer: Index of the layer; -1 between layers.
        has_bias: As it runs, with batch normalisation folded into the layer before it.
        is_repeat: A further call of a layer: it costs time, and its weights are stored once.
        after_layer: As `OperatorInfo.after_layer`.
    """

    name: str
    signature: Signature
    inputs: ChannelCount
    outputs: ChannelCount
    layer: int
    has_bias: bool
    is_repeat: bool = False
    after_layer: bool = False

    def is_fused(self, fuses: Collection[str]) -> bool:
        """Whether a runtime that fuses these computes it inside of the layer before it."""
        return self.after_layer and self.signature.op in fuses

    def outputs_per_input(self, sizes: Sequence[int] | IntArray) -> int:
        """Output channels for each input channel, where outputs follow inputs."""
        return self.outputs.count(sizes) // self.inputs.count(sizes)


def operators_of(graph: NetworkGraph) -> list[Operator]:
    """All that costs in a network: the layers in their order, then everything else."""
    folded = set(graph.plan.folds.values())
    operators = [
        Operator(
            layer.name,
            layer.signature,
            layer.inputs,
            layer.outputs,
            layer.index,
            layer.has_bias or layer.name in folded,
        )
        for layer in graph.layers
    ]
    seen = {layer.name for layer in graph.layers}
    for other in graph.operators:
        operators.append(
            Operator(
                other.name,
                other.signature,
                other.inputs,
                other.outputs,
                -1,
                other.has_bias,
                other.name in seen,
                other.after_layer,
            )
        )
        seen.add(other.name)
    return operators


def choices_for(
    graph: NetworkGraph,
    pairs: Sequence[Bits],
    *,
    channel_step: int = 1,
    min_preserve_ratio: float = 0.2,
) -> Choices:
    """Channel counts in steps of the device, down to a smallest ratio.

    Args:
        channel_step: Kept counts are multiples of it, or the whole group.

    Raises:
        ConfigError: ``min_preserve_ratio`` is not in (0, 1].
    """
    if not 0 < min_preserve_ratio <= 1:
        raise ConfigError(f"env.min_preserve_ratio must be in (0, 1], got {min_preserve_ratio!r}.")
    kept = []
    for group in graph.groups:
        lowest = math.ceil(min_preserve_ratio * group.size - 1e-9)  # 0.55 * 100 > 55
        counts = [c for c in range(channel_step, group.size, channel_step) if c >= lowest]
        kept.append(np.array([*counts, group.size] if group.is_free else [group.size], np.int64))
    return Choices(tuple(kept), tuple(dict.fromkeys(pairs)), min_preserve_ratio)


def reference_bits(supported: Sequence[Bits]) -> Bits:
    """What the original network runs in: float, or the most precise that there is."""
    return max(supported, key=lambda bits: (bits.weight * bits.activation, bits))


def requests_for(
    graph: NetworkGraph,
    choices: Choices,
    reference: Bits | None = None,
    fuses: Collection[str] = (),
) -> list[Request]:
    """Every price that a walk can ask a device for, distinct.

    Args:
        reference: What the original network and all operators between layers run in; the most
            precise of the choices unless given.
        fuses: Operators that the device computes inside of the layer before them.
    """
    reference = reference or reference_bits(choices.pairs)
    sizes = graph.sizes()
    requests: dict[Request, None] = {}
    for operator in operators_of(graph):
        if operator.is_fused(fuses):
            continue
        pairs = choices.pairs if operator.layer >= 0 else (reference,)
        outs = reachable(operator.outputs, choices).tolist()
        for i in reachable(operator.inputs, choices).tolist():
            if is_paired(operator.signature):
                outs = [i * operator.outputs_per_input(sizes)]
            for o in outs:
                for pair in pairs:
                    requests[Request(operator.signature, i, o, pair)] = None
        full = operator.inputs.count(sizes), operator.outputs.count(sizes)
        requests[Request(operator.signature, *full, reference)] = None
    return list(requests)


def reachable(count: ChannelCount, choices: Choices) -> IntArray:
    """All values that a channel count can take, ascending."""
    values = np.array([count.fixed], np.int64)
    for group, times in count.terms:
        values = np.unique(values[:, None] + choices.kept[group] * times)
    return values
