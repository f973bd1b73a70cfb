"""Operators as PyTorch modules without storage, to be timed one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from amc.errors import DeviceError, meant
from amc.layers import kind_named
from amc.layers.signature import LAYER_OPS, MIXTURE, SCORES
from amc.runtimes.request import ProductShape, Request


class _Function(nn.Module):
    """A function of tensors, called as a module like everything else."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


def _layer_norm(request: Request) -> nn.Module:
    """Over the channels of every position, which lie side by side where it is computed."""
    norm = nn.LayerNorm(request.in_channels, device="meta")

    def given(x: Tensor) -> Tensor:
        given: Tensor = norm(x.view(len(x), -1, request.in_channels))
        return given

    function = _Function(given)
    function.norm = norm
    return function


def factors_of(batch: int, request: Request) -> list[tuple[int, ...]]:
    """Shapes of what one of attention's products multiplies."""
    product = ProductShape.of(request)
    blocks = batch, product.blocks
    if request.signature.op == SCORES:
        shapes = (product.queries, product.width), (product.width, product.keys)
    else:
        shapes = (product.queries, product.keys), (product.keys, product.width)
    return [(*blocks, *shape) for shape in shapes]


def _selected(x: Tensor) -> Tensor:
    """In ascending order, as a removal of channels leaves them."""
    return x.index_select(1, torch.arange(x.shape[1], device=x.device))


_BUILDERS: dict[str, Callable[[Request], nn.Module]] = {
    "batch_norm": lambda r: nn.BatchNorm2d(r.in_channels, device="meta"),
    "layer_norm": _layer_norm,
    "max_pool2d": lambda r: nn.MaxPool2d(
        r.signature.kernel, r.signature.stride, r.signature.padding, r.signature.dilation
    ),
    "avg_pool2d": lambda r: nn.AvgPool2d(
        r.signature.kernel, r.signature.stride, r.signature.padding
    ),
    "adaptive_avg_pool2d": lambda r: nn.AdaptiveAvgPool2d(r.signature.out_size),
    "select": lambda r: _Function(_selected),
    "concat": lambda r: _Function(torch.clone),
    "pad": lambda r: _Function(torch.clone),
    "relu": lambda r: nn.ReLU(),
    "relu6": lambda r: nn.ReLU6(),
    "leaky_relu": lambda r: nn.LeakyReLU(),
    "hardswish": lambda r: nn.Hardswish(),
    "hardsigmoid": lambda r: nn.Hardsigmoid(),
    "silu": lambda r: nn.SiLU(),
    "gelu": lambda r: nn.GELU(),
    "sigmoid": lambda r: nn.Sigmoid(),
    "tanh": lambda r: nn.Tanh(),
    "softmax": lambda r: nn.Softmax(-1),
    SCORES: lambda r: _Function(torch.matmul),
    MIXTURE: lambda r: _Function(torch.matmul),
    "add": lambda r: _Function(torch.add),
    "mul": lambda r: _Function(torch.mul),
}
TWO_INPUTS = ("add", "mul")


def builder_of(request: Request) -> Callable[[Request], nn.Module]:
    op = request.signature.op
    if request.signature.is_whole:
        raise DeviceError(f"PyTorch's timer has no network with {request} at hand.")
    if not request.bits.is_float:
        raise DeviceError(f"PyTorch times float operators (32/32 bits), got {request}.")
    if (kind := kind_named(op)) is not None:
        layer = kind
        return lambda r: layer.build(r.signature, r.in_channels, r.out_channels)
    if op not in _BUILDERS:
        known = [*sorted(LAYER_OPS), *_BUILDERS]
        raise DeviceError(f"PyTorch's timer knows no operator {op!r}. {meant(op, known)}")
    return _BUILDERS[op]
