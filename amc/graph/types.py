"""What the rest of amc knows of a network: layers, operators between them, channel groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]

WHOLE = "whole_"  # begins the name of what is counted and timed as it stands (`amc.graph.whole`)
STORED = "stored"  # what is no operator: parameters that no layer has


@dataclass(frozen=True, order=True)
class Signature:
    """What a device must know of an operator to price it, apart from channels and bits.

    Attributes:
        op: "conv2d" or "linear" for layers; "whole_..." for a call that amc does not follow, a name
            for all calls that take the same time; otherwise the operator's plain name ("relu",
            "add", "max_pool2d", ...).
        groups: Convolution groups; 0 means depthwise (as many groups as input channels).
        in_size: Height and width of the input; of a linear layer the positions that it is computed
            at, (1, 1) for one, (tokens, 1) for tokens. Of a whole call, all numbers that reach it.
        out_size: The same of the output.
        own_macs, own_params: Of a whole call, whatever is kept around it; its name tells them.
    """

    op: str
    kernel: Size = (1, 1)
    stride: Size = (1, 1)
    padding: Size = (0, 0)
    dilation: Size = (1, 1)
    groups: int = 1
    in_size: Size = (1, 1)
    out_size: Size = (1, 1)
    own_macs: int = field(default=0, compare=False, repr=False)
    own_params: int = field(default=0, compare=False, repr=False)

    @property
    def is_whole(self) -> bool:
        return self.op.startswith(WHOLE)

    @property
    def is_depthwise(self) -> bool:
        return self.groups == 0

    @property
    def is_layer(self) -> bool:
        return self.op in ("conv2d", "linear")


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
    """A convolution or linear layer with weights.

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
