"""What the rest of amc knows of a network: layers, operators between them, channel groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.layers.signature import STORED as STORED
from amc.layers.signature import WHOLE as WHOLE
from amc.layers.signature import Signature as Signature
from amc.layers.signature import Size as Size

PART = ":"  # between a node's name and which of the operators it consists of


@dataclass(frozen=True)
class ChannelCount:
    """How many channels a tensor has, as a function of the channels kept in each group.

    ``fixed + sum(kept[group] * multiplicity)``: a 64-channel 4x4 map flattened into a linear
    layer counts every channel of its group 16 times.
    """

    fixed: int
    terms: tuple[tuple[int, int], ...]  # (group index, multiplicity)

    def count(self, kept: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Channels of the tensor when group ``g`` keeps ``kept[g]`` channels."""
        channels = self.fixed
        for group, times in self.terms:  # not sum(): a walk counts millions of times
            channels += int(kept[group]) * times
        return channels


@dataclass(frozen=True)
class LayerInfo:
    """A layer: of a kind that amc knows (`amc.layers`), with weights.

    Attributes:
        index: Position in execution order.
        name: Module path in the network.
        signature: What a device prices it by.
        in_channels, out_channels: Of the original layer (features for linear).
        has_bias: Whether the layer adds a bias.
        inputs, outputs: Channel counts as functions of the kept channels.
        decides: Indices of the free groups that this layer is the first to produce.
    """

    index: int
    name: str
    signature: Signature
    in_channels: int
    out_channels: int
    has_bias: bool
    inputs: ChannelCount
    outputs: ChannelCount
    decides: tuple[int, ...]


@dataclass(frozen=True)
class OperatorInfo:
    """An operator that decides nothing but costs time: between layers, or a call not followed.

    Attributes:
        name: Node or module path.
        inputs, outputs: Channel counts as functions of the kept channels.
        after_layer: Whether it reads a layer's (normalised) output that nothing else reads:
            runtimes compute some operators together with such a layer.
    """

    name: str
    signature: Signature
    inputs: ChannelCount
    outputs: ChannelCount
    has_bias: bool = False
    after_layer: bool = False


@dataclass(frozen=True)
class StoredInfo:
    """Parameters that no layer has: of a normalisation that is not folded, of the forward itself.

    Attributes:
        name: The node that reads them.
        count: How many, as a function of the kept channels.
    """

    name: str
    count: ChannelCount


@dataclass(frozen=True)
class TensorInfo:
    """A tensor between layers: what gives it, and what it is made of.

    What only moves values (a view, a slice of positions, a flatten) gives no tensor of its own, nor
    does a ReLU that alone reads what it rectifies, nor a folded normalisation.

    Attributes:
        kind: "input"; "layer"; "add" or "concat" of computed tensors; "copy" (paddings, choices of
            channels), "maximum" (max pools) and "rectified", whose values are values of their
            source, or 0; "mean" (average pools); else "other".
        sources: Indices of the tensors that it is made of, each smaller than its own.
        layer: Index of the layer that gives it, at its first or a further call; -1 for other kinds.
        operators: Names of the `OperatorInfo` that give it, a rectifier's last.
        count: Its channels.
        size: Height and width; (1, 1) for what is no image.
        is_output: Whether the network gives it out.
    """

    kind: str
    sources: tuple[int, ...]
    layer: int
    operators: tuple[str, ...] = ()
    count: ChannelCount = ChannelCount(0, ())
    size: Size = (1, 1)
    is_output: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers produce and the same layers consume.

    Each of its ``size`` channels is tied to its counterpart in every producer and consumer:
    they are kept or removed together.

    Attributes:
        producers, consumers: Names of the layers whose outputs / inputs are in the group.
        reason: Why the group is frozen; None when it is free.
    """

    index: int
    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str | None = None

    @property
    def is_free(self) -> bool:
        return self.reason is None
