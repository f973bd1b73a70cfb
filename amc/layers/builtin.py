"""The kinds of layers that PyTorch has and amc knows."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.nn.modules.conv import _ConvNd

from amc.layers.kind import POSITIONS_PER_IMAGE, ProductKind, positions_of, rows_of_last
from amc.layers.signature import Shape, Signature, Size, pair, positions, space_of

AnyConv = TypeVar("AnyConv", bound=_ConvNd)


class Linear(ProductKind[nn.Linear]):
    """A linear layer: of features, or of the last dimension at every position."""

    op = "linear"
    modules = (nn.Linear,)
    size_names = ("in_features", "out_features")
    channel_dim = -1

    def signature(self, layer: nn.Linear, in_shape: Shape, out_shape: Shape) -> Signature:
        size = positions(in_shape, -1)
        return Signature(self.op, in_size=size, out_size=size)

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, device="meta")

    def apply(self, layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def rows(
        self,
        layer: nn.Linear,
        x: Tensor,
        generator: Generator | None,
        count: int = POSITIONS_PER_IMAGE,
    ) -> Tensor:
        return rows_of_last(x, generator, count).reshape(1, -1, x.shape[-1])

    def onnx(self, layer: nn.Linear, rank: int) -> tuple[str, dict[str, Any]]:
        return ("Gemm", {"transB": 1}) if rank == 2 else ("MatMul", {})


class AnyConvolution(ProductKind[AnyConv]):
    """What convolutions over any number of dimensions have in common."""

    def groups(self, layer: AnyConv) -> int:
        return layer.groups

    def apply(self, layer: AnyConv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = layer._conv_forward(x, weight, bias)
        return y

    def resized(self, layer: AnyConv, inputs: int, outputs: int) -> dict[str, int]:
        sizes = super().resized(layer, inputs, outputs)
        return sizes | {"groups": inputs} if self.is_depthwise(layer) else sizes

    def padded(self, layer: AnyConv, x: Tensor) -> Tensor:
        if layer.padding_mode == "zeros":
            return x
        return functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)

    def onnx(self, layer: AnyConv, rank: int) -> tuple[str, dict[str, Any]]:
        zeros = zeros_around(layer)
        return "Conv", {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "group": layer.groups,
            "pads": [*zeros[-2::-2], *zeros[::-2]],  # all beginnings, then all ends
        }


class Convolution(AnyConvolution[nn.Conv2d]):
    """A two-dimensional convolution, grouped or not."""

    op = "conv2d"
    modules = (nn.Conv2d,)

    def signature(self, layer: nn.Conv2d, in_shape: Shape, out_shape: Shape) -> Signature:
        return Signature(
            op=self.op,
            kernel=pair(layer.kernel_size),
            stride=pair(layer.stride),
            padding=_padding(layer),
            dilation=pair(layer.dilation),
            groups=0 if self.is_depthwise(layer) else layer.groups,
            in_size=space_of(in_shape),
            out_size=space_of(out_shape),
        )

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(
            inputs,
            outputs,
            signature.kernel,
            stride=signature.stride,
            padding=signature.padding,
            dilation=signature.dilation,
            groups=inputs if signature.is_depthwise else signature.groups,
            device="meta",
        )

    def weight_gradients(self, layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor | None:
        is_plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if gradient.shape[2:].numel() == 1 or not is_plain:
            return None
        found = [
            conv2d_weight(  # type: ignore[no-untyped-call]
                x[i : i + 1],
                list(layer.weight.shape),
                gradient[i : i + 1],
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            for i in range(len(x))
        ]
        return torch.stack(found)

    def rows(
        self,
        layer: nn.Conv2d,
        x: Tensor,
        generator: Generator | None,
        count: int = POSITIONS_PER_IMAGE,
    ) -> Tensor:
        (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
        # Only padding with other values than 0 is really done: it copies the whole input, of
        # which a few positions are read.
        left, right, top, bottom = zeros_around(layer)
        x = self.padded(layer, x)
        in_h, in_w = x.shape[2:]
        out_h = (in_h + top + bottom - dh * (kh - 1) - 1) // sh + 1
        out_w = (in_w + left + right - dw * (kw - 1) - 1) // sw + 1
        chosen = positions_of(out_h * out_w, generator, count)
        row = (chosen // out_w * sh - top)[:, None, None] + (torch.arange(kh) * dh)[None, :, None]
        column = (chosen % out_w * sw - left)[:, None, None] + (torch.arange(kw) * dw)
        return gathered(x, row, column, layer.groups)


def gathered(x: Tensor, row: Tensor, column: Tensor, groups: int) -> Tensor:
    """The rows of an unfolded input: what each tap of a kernel reads at some output positions.

    Args:
        x: (n, channels, height, width).
        row, column: Of the places read, (positions, kh, 1) and (positions, 1, kw); outside of the
            input a 0 is read.

    Returns:
        Shape (groups, n * positions, channels / groups * kh * kw).
    """
    n, channels, in_h, in_w = x.shape
    inside = ((row >= 0) & (row < in_h) & (column >= 0) & (column < in_w)).flatten()
    # (positions * kh * kw,); what lies outside reads place 0 and is then set to 0
    places = torch.where(inside, (row * in_w + column).flatten(), 0)
    area = len(row), row.shape[1] * column.shape[2]
    # One index along one dimension: what lies side by side in memory is copied in one piece.
    if x.is_contiguous(memory_format=torch.channels_last):
        flat = x.permute(0, 2, 3, 1).reshape(n, -1, channels).index_select(1, places)
        flat[:, ~inside] = 0
        patches = flat.view(n, *area, groups, -1).permute(3, 0, 1, 4, 2)
    else:
        flat = x.flatten(2).index_select(2, places)
        flat[:, :, ~inside] = 0
        patches = flat.view(n, groups, -1, *area).permute(1, 0, 3, 2, 4)
    # patches: (groups, n, positions, channels of one group, kh * kw)
    # Contiguous: a product of rows that lie strided in memory takes 30 times as long.
    return patches.reshape(groups, n * len(row), -1).contiguous()


def zeros_around(layer: _ConvNd) -> tuple[int, ...]:
    """Zeros that are added left, right, above and below; other values were before."""
    if layer.padding_mode != "zeros":
        return (0,) * (2 * len(layer.kernel_size))
    return tuple(layer._reversed_padding_repeated_twice)


def _padding(layer: nn.Conv2d) -> Size:
    if isinstance(layer.padding, str):  # "same" or "valid"
        if layer.padding == "valid":
            return 0, 0
        kernel, dilation = pair(layer.kernel_size), pair(layer.dilation)
        return (kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2
    return pair(layer.padding)
