"""What a device must know of an operator to price it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Size = tuple[int, int]
Shape = tuple[int, ...]

WHOLE = "whole_"  # begins the name of what is counted and timed as it stands (`amc.graph.whole`)
STORED = "stored"  # what is no operator: parameters that no layer has
SCORES, MIXTURE = "attention_scores", "attention_values"  # q k^T; a v
PRODUCTS = frozenset([SCORES, MIXTURE])  # of two computed tensors
LAYER_OPS: set[str] = set()  # of all registered kinds of layers
RUN_AT_INPUTS: set[str] = set()  # of those whose weights meet every position of the input


@dataclass(frozen=True, order=True)
class Signature:
    """What a device must know of an operator to price it, apart from channels and bits.

    Attributes:
        op: Of layers their kind's ("conv2d", "linear", ...); "whole_..." for a call that amc does
            not follow, a name for all calls that take the same time; otherwise the operator's plain
            name ("relu", "add", "max_pool2d", ...).
        groups: Convolution groups; 0 means depthwise (as many groups as input channels). Of
            attention's products the heads.
        in_size: Height and width of the input; of a linear layer the positions that it is computed
            at, (1, 1) for one, (tokens, 1) for tokens. Of a whole call, all numbers that reach it.
            Of attention's products keys and windows.
        out_size: The same of the output; of attention's products queries and windows.
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
    def is_product(self) -> bool:
        """Whether it multiplies two computed tensors: it has multiply-adds and no weight."""
        return self.op in PRODUCTS

    @property
    def is_layer(self) -> bool:
        return self.op in LAYER_OPS

    @property
    def run_size(self) -> Size:
        """Of a layer, where all of its weights are multiplied: the positions of its output.

        Of a transposed convolution those of its input.
        """
        return self.in_size if self.op in RUN_AT_INPUTS else self.out_size


def space_of(shape: Shape) -> Size:
    """Height and width of a shape; (1, 1) for what is no image."""
    return (shape[-2], shape[-1]) if len(shape) == 4 else (1, 1)


def positions(shape: Shape, channel_dim: int) -> Size:
    """What one image has beside its channels, as a height and a width.

    (1, c, h, w) with channels in dim 1, and (1, h, w, c) with channels last, have (h, w); tokens
    (1, n, c) have (n, 1), and so have windows (n, 1, c); features (1, c) have (1, 1).
    """
    sizes = list(shape)
    del sizes[channel_dim]
    *rows, width = sizes if len(sizes) > 2 else [*sizes, 1]
    return math.prod(rows), width


def pair(value: object) -> Size:
    """A size given as one number, or as two."""
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)  # type: ignore[call-overload]
