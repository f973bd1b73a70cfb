"""What a device must know of an operator to price it, read off the traced graph."""

from __future__ import annotations

import math

from torch import fx, nn

from amc.graph.operators import argument
from amc.graph.types import Signature, Size

Shape = tuple[int, ...]


def is_depthwise(module: nn.Module) -> bool:
    """Whether every channel is filtered on its own."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def shape_of(node: object) -> Shape:
    """Shape of a node's value on the example."""
    assert isinstance(node, fx.Node)
    return tuple(node.meta["value"].shape)


def space_of(shape: tuple[int, ...]) -> Size:
    """Height and width of a shape; (1, 1) for what is no image."""
    return (shape[-2], shape[-1]) if len(shape) == 4 else (1, 1)


def positions(shape: tuple[int, ...], channel_dim: int) -> Size:
    """What one image has beside its channels, as a height and a width.

    (1, c, h, w) with channels in dim 1, and (1, h, w, c) with channels last, have (h, w); tokens
    (1, n, c) have (n, 1), and so have windows (n, 1, c); features (1, c) have (1, 1).
    """
    sizes = list(shape)
    del sizes[channel_dim]
    *rows, width = sizes if len(sizes) > 2 else [*sizes, 1]
    return math.prod(rows), width


def layer_signature(module: nn.Module, in_shape: Shape, out_shape: Shape) -> Signature:
    """Signature of a convolution or linear layer, from the shapes of its input and output."""
    if isinstance(module, nn.Linear):
        size = positions(in_shape, -1)
        return Signature("linear", in_size=size, out_size=size)
    assert isinstance(module, nn.Conv2d)
    return Signature(
        op="conv2d",
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_padding(module),
        dilation=_pair(module.dilation),
        groups=0 if is_depthwise(module) else module.groups,
        in_size=space_of(in_shape),
        out_size=space_of(out_shape),
    )


def operator_signature(op: str, node: fx.Node, module: nn.Module | None) -> Signature:
    """Signature, without sizes, of an operator between layers.

    Args:
        module: What the node calls; None for functions and methods.
    """
    if op not in ("max_pool2d", "avg_pool2d"):
        return Signature(op)
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
    else:
        kernel = argument(node, 1, "kernel_size", 1)
        stride = argument(node, 2, "stride", None)
        padding = argument(node, 3, "padding", 0)
    return Signature(
        op, kernel=_pair(kernel), stride=_pair(stride or kernel), padding=_pair(padding)
    )


def _pair(value: object) -> Size:
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)  # type: ignore[call-overload]


def _padding(module: nn.Conv2d) -> Size:
    if isinstance(module.padding, str):  # "same" or "valid"
        if module.padding == "valid":
            return 0, 0
        kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
        return (kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2
    return _pair(module.padding)
