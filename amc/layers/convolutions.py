"""One-dimensional and transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from amc.layers.builtin import AnyConvolution, gathered, zeros_around
from amc.layers.kind import POSITIONS_PER_IMAGE, ProductKind, positions_of
from amc.layers.signature import Shape, Signature, Size, positions


class Convolution1d(AnyConvolution[nn.Conv1d]):
    """A convolution over one dimension, grouped or not: one over an image of one column."""

    op = "conv1d"
    modules = (nn.Conv1d,)

    def signature(self, layer: nn.Conv1d, in_shape: Shape, out_shape: Shape) -> Signature:
        zeros = sum(zeros_around(layer)) // 2
        return Signature(
            op=self.op,
            kernel=(layer.kernel_size[0], 1),
            stride=(layer.stride[0], 1),
            padding=(zeros, 0),
            dilation=(layer.dilation[0], 1),
            groups=0 if self.is_depthwise(layer) else layer.groups,
            in_size=positions(in_shape, 1),
            out_size=positions(out_shape, 1),
        )

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv1d(
            inputs,
            outputs,
            signature.kernel[0],
            stride=signature.stride[0],
            padding=signature.padding[0],
            dilation=signature.dilation[0],
            groups=inputs if signature.is_depthwise else signature.groups,
            device="meta",
        )

    def input_shape(self, signature: Signature, inputs: int) -> Shape:
        return inputs, signature.in_size[0]

    def rows(
        self,
        layer: nn.Conv1d,
        x: Tensor,
        generator: Generator | None,
        count: int = POSITIONS_PER_IMAGE,
    ) -> Tensor:
        (kernel,), (stride,), (dilation,) = layer.kernel_size, layer.stride, layer.dilation
        left, right = zeros_around(layer)
        x = self.padded(layer, x)
        length = (x.shape[2] + left + right - dilation * (kernel - 1) - 1) // stride + 1
        chosen = positions_of(length, generator, count)
        place = (chosen * stride - left)[:, None] + torch.arange(kernel) * dilation
        return _gathered_along([place], x, layer.groups)


class TransposedConvolution(nn.Module):
    """What `nn.ConvTranspose2d` computes, with a weight of the shape that layers have in amc.

    So everything that is done to rows of a weight is done to its outputs.

    Attributes:
        weight: (outputs, inputs / groups, height, width).
        bias: (outputs,), or None.
    """

    weight: Tensor
    bias: Tensor | None
    _function: Callable[..., Tensor] = staticmethod(functional.conv_transpose2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        output_padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        """Its tensors have no storage (``device="meta"``): they are another's."""
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = tuple(kernel_size), tuple(stride)
        self.padding, self.output_padding = tuple(padding), tuple(output_padding)
        self.dilation = tuple(dilation)
        shape = (out_channels, in_channels // groups, *kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        self.register_parameter("bias", None)
        if bias:
            empty = torch.empty(out_channels, device="meta")
            self.bias = nn.Parameter(empty, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, height, width) -> (n, outputs, more height, more width)."""
        return self.transposed(x, self.weight, self.bias)

    def transposed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with another weight and bias."""
        return self._function(
            x,
            exchanged(weight, self.groups),
            bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def extra_repr(self) -> str:
        """Its settings."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, output_padding={self.output_padding}, "
            f"dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


class TransposedConvolution1d(TransposedConvolution):
    """The same of `nn.ConvTranspose1d`; its weight is (outputs, inputs / groups, length)."""

    _function = staticmethod(functional.conv_transpose1d)


class Transposed(ProductKind[TransposedConvolution]):
    """A transposed convolution in two dimensions, grouped or not."""

    op = "conv_transpose2d"
    modules: tuple[type[nn.Module], ...] = (TransposedConvolution,)
    runs_at_inputs = True

    def groups(self, layer: TransposedConvolution) -> int:
        return layer.groups

    def signature(
        self, layer: TransposedConvolution, in_shape: Shape, out_shape: Shape
    ) -> Signature:
        return Signature(
            op=self.op,
            kernel=_two(layer.kernel_size, 1),
            stride=_two(layer.stride, 1),
            padding=_two(layer.padding, 0),
            dilation=_two(layer.dilation, 1),
            groups=0 if self.is_depthwise(layer) else layer.groups,
            in_size=positions(in_shape, 1),
            out_size=positions(out_shape, 1),
        )

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        return _made(TransposedConvolution, signature, inputs, outputs, 2)

    def apply(
        self, layer: TransposedConvolution, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        return layer.transposed(x, weight, bias)

    def resized(self, layer: TransposedConvolution, inputs: int, outputs: int) -> dict[str, int]:
        sizes = super().resized(layer, inputs, outputs)
        return sizes | {"groups": inputs} if self.is_depthwise(layer) else sizes

    def onnx(self, layer: TransposedConvolution, rank: int) -> tuple[str, dict[str, Any]]:
        return "ConvTranspose", {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "group": layer.groups,
            "pads": [*layer.padding, *layer.padding],
            "output_padding": list(layer.output_padding),
        }

    def onnx_weight(self, layer: TransposedConvolution, weight: Any) -> tuple[Any, int | None]:
        """Of shape (inputs, outputs / groups, height, width), as PyTorch's."""
        groups = layer.groups
        array = exchanged(torch.from_numpy(weight), groups).numpy()
        if groups == 1:
            return array, 1
        return array, 0 if array.shape[1] == weight.shape[1] == 1 else None

    def rows(
        self,
        layer: TransposedConvolution,
        x: Tensor,
        generator: Generator | None,
        count: int = POSITIONS_PER_IMAGE,
    ) -> Tensor:
        sizes = [
            least + more
            for least, more in zip(_least_size(layer, x), layer.output_padding, strict=True)
        ]
        chosen = positions_of(torch.Size(sizes).numel(), generator, count)
        places = torch.unravel_index(chosen, sizes)
        sources = [_sources(layer, axis, place) for axis, place in enumerate(places)]
        return _gathered_along(sources, x, layer.groups)


class Transposed1d(Transposed):
    """A transposed convolution in one dimension, grouped or not."""

    op = "conv_transpose1d"
    modules = (TransposedConvolution1d,)

    def build(self, signature: Signature, inputs: int, outputs: int) -> nn.Module:
        return _made(TransposedConvolution1d, signature, inputs, outputs, 1)

    def input_shape(self, signature: Signature, inputs: int) -> Shape:
        return inputs, signature.in_size[0]


def transposed_like(
    weight: Tensor, bias: Tensor | None, *, groups: int, **settings: int | Sequence[int]
) -> TransposedConvolution:
    """A transposed convolution for a weight of PyTorch's shape, without its tensors.

    Args:
        weight: (inputs, outputs / groups, height, width), or without width.
        settings: stride, padding, output_padding, dilation: a number, or one for each dimension.
    """
    kernel = tuple(weight.shape[2:])
    kind = TransposedConvolution if len(kernel) == 2 else TransposedConvolution1d
    sizes: dict[str, Any] = {
        name: (value,) * len(kernel) if isinstance(value, int) else _every(value, len(kernel))
        for name, value in settings.items()
    }
    outputs = weight.shape[1] * groups
    return kind(len(weight), outputs, kernel, groups=groups, bias=bias is not None, **sizes)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is PyTorch's own transposed convolution, which a trace follows into."""
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))


def exchanged(weight: Tensor, groups: int) -> Tensor:
    """A weight with its inputs and outputs exchanged within each group, to and fro."""
    first, second, *kernel = weight.shape
    grouped = weight.reshape(groups, first // groups, second, *kernel)
    return grouped.transpose(1, 2).reshape(groups * second, first // groups, *kernel)


def output_padding_of(signature: Signature) -> Size:
    """What a transposed convolution adds at one end to give so large an output."""
    s = signature
    high, wide = (
        out - ((size - 1) * step - 2 * pad + far * (taps - 1) + 1)
        for size, out, step, pad, far, taps in zip(
            s.in_size, s.out_size, s.stride, s.padding, s.dilation, s.kernel, strict=True
        )
    )
    return high, wide


def _least_size(layer: TransposedConvolution, x: Tensor) -> list[int]:
    """Of the output, without what is added at one end."""
    return [
        (size - 1) * step - 2 * pad + far * (taps - 1) + 1
        for size, step, pad, far, taps in zip(
            x.shape[2:],
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.kernel_size,
            strict=True,
        )
    ]


def _made(
    kind: type[TransposedConvolution], signature: Signature, inputs: int, outputs: int, dims: int
) -> nn.Module:
    return kind(
        inputs,
        outputs,
        signature.kernel[:dims],
        stride=signature.stride[:dims],
        padding=signature.padding[:dims],
        output_padding=output_padding_of(signature)[:dims],
        dilation=signature.dilation[:dims],
        groups=inputs if signature.is_depthwise else signature.groups,
    )


def _sources(layer: TransposedConvolution, axis: int, place: Tensor) -> Tensor:
    """What each tap of the kernel reads at output places along a dimension; -1: nothing.

    Input i meets tap k at output ``i * stride - padding + k * dilation``.
    """
    taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
    times = (place + layer.padding[axis])[:, None] - taps
    step = layer.stride[axis]
    return torch.where(times % step == 0, times.div(step, rounding_mode="floor"), -1)


def _gathered_along(places: Sequence[Tensor], x: Tensor, groups: int) -> Tensor:
    """`gathered`, of the places that each tap reads along one dimension or two."""
    if len(places) == 1:
        x, places = x.unsqueeze(3), [*places, torch.zeros_like(places[0][:, :1])]
    row, column = places
    return gathered(x, row[:, :, None], column[:, None, :], groups)


def _two(sizes: Sequence[int], other: int) -> Size:
    """Sizes along one dimension or two, as those of an image; of one column where there is one."""
    return sizes[0], sizes[1] if len(sizes) > 1 else other


def _every(sizes: Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(sizes) * (dims // len(sizes))
