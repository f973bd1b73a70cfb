"""All that costs in a network: its layers, and what stands between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.graph.graph import NetworkGraph
from amc.graph.types import PART, STORED, ChannelCount, Signature

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Operator:
    """Anything in a network that costs: a layer, what stands between layers, or is only stored.

    Attributes:
        layer: Index of the layer; -1 between layers.
        has_bias: As it runs, with batch normalisation folded into the layer before it.
        is_repeat: A further call of a layer: it costs time, and its weights are stored once.
        shared: Index of the layer that it is a further call of, whose bits it has; -1 if of none.
        call: How often that layer is called before.
        after_layer: As `OperatorInfo.after_layer`.
        block: Index of the group of whose residual block it is part, with which it goes; -1: none.
    """

    name: str
    signature: Signature
    inputs: ChannelCount
    outputs: ChannelCount
    layer: int
    has_bias: bool
    is_repeat: bool = False
    after_layer: bool = False
    shared: int = -1
    call: int = 0
    block: int = -1

    @property
    def is_stored(self) -> bool:
        """Whether it is no operator, only parameters that no layer has: they take no time."""
        return self.signature.op == STORED

    def is_gone(self, kept: Sequence[int] | IntArray) -> bool:
        """Whether its residual block is left out, and it with it."""
        return self.block >= 0 and not kept[self.block]

    def is_fused(self, fuses: Collection[str]) -> bool:
        """Whether a runtime that fuses these computes it inside of the layer before it."""
        return self.after_layer and self.signature.op in fuses

    def outputs_per_input(self, sizes: Sequence[int] | IntArray) -> int:
        """Output channels for each input channel, where outputs follow inputs."""
        return self.outputs.count(sizes) // self.inputs.count(sizes)


def operators_of(graph: NetworkGraph) -> list[Operator]:
    """All that costs in a network: the layers in their order, then everything else.

    What costs time or multiply-adds comes before what is only stored.
    """
    folded = set(graph.plan.folds.values())
    blocks = {name: b.group for b in graph.plan.blocks for name in (*b.gone, *b.layers)}
    operators = [
        Operator(
            layer.name,
            layer.signature,
            layer.inputs,
            layer.outputs,
            layer.index,
            layer.has_bias or layer.name in folded,
            block=blocks.get(layer.name, -1),
        )
        for layer in graph.layers
    ]
    index_of = {layer.name: layer.index for layer in graph.layers}
    seen = Counter(list(index_of))
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
                index_of.get(other.name, -1),
                seen[other.name],
                blocks.get(other.name.partition(PART)[0], -1),
            )
        )
        seen[other.name] += 1
    operators += [
        Operator(
            held.name,
            Signature(STORED),
            held.count,
            held.count,
            -1,
            has_bias=False,
            block=blocks.get(held.name, -1),
        )
        for held in graph.stored
    ]
    return operators
