"""Adder layers, and the ResNet of them (Chen et al. 2020, "AdderNet").

An adder layer gives ``y = -sum |x - w|`` over the window: it compares where a convolution
multiplies. What is counted as one of its multiply-adds is a subtraction and the addition of the
absolute value, two additions: as many as a convolution of that shape has products, so that layers
of one shape weigh the same in a budget of ``macs``. That an addition is cheaper is for a device to
say, which prices ``adder``. PyTorch's flop counter counts no additions.

All that amc knows of these layers is in this file, said as a stranger says it (docs/extending.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.layers import LayerKind, register_layer
from amc.layers.signature import Shape, Signature, pair, space_of
from amc.networks.resnet import CifarResNet, blocks_of

_NUMBERS = 2**23  # of windows that are held at once: 32 MiB
_OUTPUTS_AT_ONCE = 4  # in ONNX files
_LEARNING = 0.2  # eta of the paper's adaptive learning rate


class Adder2d(nn.Module):
    """Images (n, in_channels, height, width) to (n, out_channels, ...); zeros around them.

    In training it has the paper's gradients (sec. 3.2 and 3.3): of weights x - w instead of its
    sign, scaled to a norm that depends on their number alone; of inputs w - x, clipped to [-1, 1].
    In evaluation it has its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride, self.padding = kernel, stride, padding
        shape = out_channels, in_channels, kernel, kernel
        self.weight = nn.Parameter(torch.randn(shape, device=device))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.compared(x, self.weight, self.bias)

    def compared(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What it gives with this weight and bias; a few images' windows are held at once."""
        columns = weight.flatten(1)  # (outputs, inputs)
        height, width = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1 for size in x.shape[2:]
        )
        if torch.onnx.is_in_onnx_export():  # of any number of images
            y = _few_by_few(self._windows(x), columns)
        else:
            images = max(1, _NUMBERS // (columns.shape[1] * height * width))
            y = torch.cat([self._distances(some, columns) for some in torch.split(x, images)])
        y = y.reshape(-1, len(columns), height, width)
        return y if bias is None else y + bias[:, None, None]

    def _distances(self, x: Tensor, columns: Tensor) -> Tensor:
        """Minus the L1 distance of every window from every output's weights, (n, outputs, ...)."""
        rows = self._windows(x).transpose(1, 2)  # (n, places, inputs)
        flat = rows.flatten(0, 1)
        if self.training and torch.is_grad_enabled():
            distances: Tensor = _PaperGradients.apply(flat, columns)
        else:
            distances = torch.cdist(flat, columns, p=1)
        return -distances.view(*rows.shape[:2], -1).transpose(1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """(n, inputs * area, places)."""
        return functional.unfold(x, self.kernel, padding=self.padding, stride=self.stride)


def _few_by_few(windows: Tensor, columns: Tensor) -> Tensor:
    """The same by differences, of a few outputs at once: ONNX has no distances."""
    parts = torch.split(columns, _OUTPUTS_AT_ONCE)
    return torch.cat([-(windows[:, None] - part[:, :, None]).abs().sum(2) for part in parts], 1)


class _PaperGradients(torch.autograd.Function):
    """L1 distances of rows (n, inputs) from columns (outputs, inputs)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        return torch.cdist(rows, columns, p=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, columns = ctx.saved_tensors
        gradient = -gradients[0]  # of minus the distances, (n, outputs)
        of_columns = gradient.T @ rows - columns * gradient.sum(0)[:, None]
        scale = _LEARNING * math.sqrt(columns.numel())
        of_columns *= scale / of_columns.norm().clamp_min(1e-12)
        of_rows = torch.zeros_like(rows)
        for output, column in enumerate(columns):
            of_rows += (column - rows).clamp_(-1, 1).mul_(gradient[:, output, None])
        return of_rows, of_columns


class AdderKind(LayerKind[Adder2d]):
    """How channels of adder layers are removed, and what that costs."""

    op, modules = "adder", (Adder2d,)

    def signature(self, layer: Adder2d, in_shape: Shape, out_shape: Shape) -> Signature:
        return Signature(
            self.op,
            kernel=pair(layer.kernel),
            stride=pair(layer.stride),
            padding=pair(layer.padding),
            in_size=space_of(in_shape),
            out_size=space_of(out_shape),
        )

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        sizes = signature.kernel[0], signature.stride[0], signature.padding[0]
        return Adder2d(inputs, outputs, *sizes, device="meta")

    def apply(self, layer: Adder2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return layer.compared(x, weight, bias)

    def ignore(self, layer: Adder2d, columns: Tensor) -> None:
        """An input of 0 still adds -|w|, and a weight of 0 still -|x|: both must be 0."""
        layer.weight.data[:, columns] = 0
        layer.register_forward_pre_hook(lambda _, given: (given[0].index_fill(1, columns, 0),))

    def column_costs(self, layer: Adder2d, values: Tensor, sensitivities: Tensor) -> Tensor:
        """The bias makes up for the mean of what goes: the variance of |x - w| is the error.

        More cannot be repaired: its outputs are no linear map of its inputs.
        """
        weight = layer.weight.detach().double().flatten(1)
        return sensitivities @ _variances(values.double(), weight)


def _variances(values: Tensor, weight: Tensor) -> Tensor:
    """The variance of |x - w| over values x, for each weight w; of its shape.

    The sum of |x - w| is that of the values above w less that of those below it, so that one
    sorting serves all weights.
    """
    ordered, count = values.sort().values, len(values)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    below = torch.searchsorted(ordered, weight.contiguous())
    total = sums[-1] - 2 * sums[below] + weight * (2 * below - count)
    squares = ordered.var(correction=0) + (ordered.mean() - weight).square()
    return (squares - (total / count).square()).clamp_min(0)


register_layer(AdderKind())


def adder_resnet(*, depth: int, num_classes: int, image_shape: tuple[int, int, int]) -> CifarResNet:
    """A CIFAR ResNet of adder layers but for the first and the last, as in the paper (sec. 4)."""
    return CifarResNet(blocks_of(depth), num_classes, image_shape[0], _three_by_three)


def _three_by_three(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return Adder2d(in_channels, out_channels, 3, stride, padding=1)
