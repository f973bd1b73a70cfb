"""Uniform fake quantization: values rounded to the grid that b bits can hold, stored as floats.

Weights: per output channel, symmetric, the integers -(2^(b-1) - 1) .. 2^(b-1) - 1 times a scale;
one bit means +-scale with the scale at the mean magnitude (XNOR-Net, Rastegari et al. 2016, eq. 6).
Activations: per tensor, affine, the integers 0 .. 2^b - 1, zero exactly on the grid. Scales of few
bits are the ones of least squared error, not of the largest value. Gradients pass straight through
(Bengio et al. 2013), zero outside the clipping range; one bit has no such range. While a network is
trained its grids may be learned too (`amc.compress.learned_steps`).
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from amc.compress.learned_steps import binary_weight, learned_rounding, mean_magnitude
from amc.errors import ConfigError
from amc.layers import Layer, TransposedConvolution, TransposedConvolution1d, kind_of
from amc.layers.copies import clone_module
from amc.networks.adder import Adder2d
from amc.strategy import FLOAT_BITS, Bits

# Clipping ranges tried, as fractions of the largest magnitude.
_FRACTIONS = torch.linspace(0.2, 1.0, 33)
SMALLEST_STEP = 1e-8  # of a grid that is learned


def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Scale of every output channel that rounds its weights with the least squared error.

    Args:
        weight: (outputs, ...).
        bits: 1 to 8.

    Returns:
        Positive scales, shape (outputs,).
    """
    rows = weight.detach().flatten(1)
    if bits == 1:
        return mean_magnitude(weight)
    largest = rows.abs().amax(1).clamp_min(1e-12)
    levels = 2 ** (bits - 1) - 1
    best: Tensor = largest / levels
    if bits >= 8:
        return best
    lowest = torch.full_like(largest, torch.inf)
    for fraction in _FRACTIONS:
        scale = largest * fraction / levels
        rounded = (rows / scale[:, None]).round().clamp(-levels, levels) * scale[:, None]
        error = (rounded - rows).square().sum(1)
        better = error < lowest
        best, lowest = torch.where(better, scale, best), torch.where(better, error, lowest)
    return best


def quantize_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round weights to their grid; differentiable (straight-through)."""
    if bits == 1:
        signs = _StraightThroughSign.apply(weight)
        binary: Tensor = signs * scale.view(-1, *[1] * (weight.dim() - 1))
        return binary
    levels = 2 ** (bits - 1) - 1
    if torch.onnx.is_in_onnx_export():  # ONNX has no such operator with these ends
        steps = scale.view(-1, *[1] * (weight.dim() - 1))
        return (weight / steps).round().clamp(-levels, levels) * steps
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    grid: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -levels, levels)
    return grid


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def activation_range(values: Tensor, bits: int) -> tuple[float, int]:
    """Scale and zero point of least squared error over a sample of activations.

    Where all of them are 0, any grid has it. That from 0 to 1 lies within the ends of every
    rectifier, so that a runtime can leave the rectifier to the grid; a wider one would cost time.

    Args:
        values: Sampled values, shape (n,).
        bits: 1 to 8.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    levels = 2**bits - 1
    if high - low <= 0:
        return 1 / levels, 0
    best, lowest = (1.0, 0), float("inf")
    for fraction in _FRACTIONS.tolist():
        scale = (high - low) * fraction / levels
        zero = min(max(round(-low * fraction / scale), 0), levels)
        rounded = ((values / scale).round() + zero).clamp(0, levels).sub(zero).mul(scale)
        error = float((rounded - values).square().sum())
        if error < lowest:
            best, lowest = (scale, zero), error
    return best


def round_to_grid(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round activations to their grid; differentiable (straight-through) where gradients are on.

    Args:
        scale, zero_point: One value each; `activation_range`.
    """
    levels = 2**bits - 1
    if torch.is_grad_enabled() or not x.is_cpu or torch.compiler.is_compiling():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, levels)
    # The same values in four passes: on a CPU the operator above takes eight times as long. It
    # reads the zero point as a number, which `torch.export` and `torch.compile` have none of.
    zero = int(zero_point)
    counts = x.mul(scale.reciprocal()).round_()
    return counts.clamp_(-zero, levels - zero).mul_(scale)


class Quantized(Layer):
    """A layer that sees its input and weight through their grids.

    A class that inherits from it and from a layer's class, in this order, is what modules of the
    latter become where their bits are few.

    Attributes:
        twins: Class of layers -> that class.
        learns_steps: Whether the steps of its grids are being trained.
    """

    twins: ClassVar[dict[type[nn.Module], type[nn.Module]]] = {}
    learns_steps = False
    bits: Bits
    weight_scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Quantized.twins.update(dict.fromkeys(cls.__bases__[1:], cls))

    def quantized_weight(self) -> Tensor:
        """The weight on its grid."""
        bits = self.bits.weight
        if bits == FLOAT_BITS:
            return self.weight
        if not self.learns_steps:
            return quantize_weight(self.weight, self.weight_scale, bits)
        if bits == 1:
            return binary_weight(self.weight)
        levels, steps = 2 ** (bits - 1) - 1, self.weight_scale
        steps = steps.view(-1, *[1] * (self.weight.dim() - 1))
        return learned_rounding(self.weight, steps, -levels, levels, self.weight[0].numel())

    def quantized_input(self, x: Tensor) -> Tensor:
        """An input on its grid."""
        if self.bits.activation == FLOAT_BITS:
            return x
        if self.learns_steps:
            ends = -self.input_zero, 2**self.bits.activation - 1 - self.input_zero
            return learned_rounding(x, self.input_scale, *ends, x[0].numel())
        return round_to_grid(x, self.input_scale, self.input_zero_point, self.bits.activation)

    def learn_steps(self) -> None:
        """Have the steps of the grids trained with the weights, until `fix_steps`.

        Those of weights of one bit follow the weights. The zero of an input's grid stays.
        """
        self.learns_steps = True
        self.input_zero = int(self.input_zero_point)  # once: at every step a GPU would wait
        self._order = list(self._buffers)
        for name in self._learned():
            step = self._buffers.pop(name)
            assert step is not None
            self.register_parameter(name, nn.Parameter(step))

    def fix_steps(self) -> None:
        """Undo `learn_steps`: the steps are numbers of the layer again, as they are now."""
        for name in self._learned():
            step = self._parameters.pop(name)
            assert step is not None
            self.register_buffer(name, step.detach())
        self._buffers = {name: self._buffers[name] for name in self._order}
        self.learns_steps = False

    def hold_steps(self) -> None:
        """Keep steps that are learned away from 0, on whose other side the grid is mirrored."""
        for name in self._learned():
            cast(Tensor, getattr(self, name)).data.clamp_min_(SMALLEST_STEP)

    def settle(self) -> None:
        """Put the weight on its grid, in place; of one bit the grid is that of the weight now."""
        if self.bits.weight == FLOAT_BITS:
            return
        with torch.no_grad():
            if self.learns_steps and self.bits.weight == 1:
                self.weight_scale.copy_(mean_magnitude(self.weight))
            self.weight.copy_(self.quantized_weight())

    def _learned(self) -> list[str]:
        """Names of the steps that are learned by gradient."""
        weight, activation = self.bits
        names = ["weight_scale"] if weight not in (1, FLOAT_BITS) else []
        return names + (["input_scale"] if activation != FLOAT_BITS else [])

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        given = self.quantized_input(x), self.quantized_weight()
        return kind_of(self).apply(self, *given, self.bias)


class QuantizedConv2d(Quantized, nn.Conv2d):
    """A convolution that sees its input and weight through their grids."""


class QuantizedConv1d(Quantized, nn.Conv1d):
    """A one-dimensional convolution that sees its input and weight through their grids."""


class QuantizedTransposed(Quantized, TransposedConvolution):
    """A transposed convolution that sees its input and weight through their grids."""


class QuantizedTransposed1d(Quantized, TransposedConvolution1d):
    """A transposed convolution over one dimension that sees both through their grids."""


class QuantizedLinear(Quantized, nn.Linear):  # type: ignore[misc]  # whose bias may be None
    """A linear layer that sees its input and weight through their grids."""


class QuantizedAdder2d(Quantized, Adder2d):  # type: ignore[misc]  # whose weight is a Parameter
    """An adder layer that sees its input and weight through their grids."""


def quantize_layer(layer: nn.Module, bits: Bits, input_grid: tuple[float, int] | None) -> nn.Module:
    """A layer's quantized twin; its weight is already on the grid.

    Args:
        input_grid: Scale and zero point of its input; needed unless activation bits are 32.

    Raises:
        ConfigError: There is no twin of such layers.
    """
    if bits.is_float:
        return layer
    twin = next((Quantized.twins[c] for c in type(layer).__mro__ if c in Quantized.twins), None)
    if twin is None:
        raise ConfigError(
            f"Layers of class {type(layer).__name__} have no quantized twin: define a class that "
            f"inherits from amc.Quantized and {type(layer).__name__}, or offer only 32 bits "
            "(env.weight_bits=[32] env.activation_bits=[32])."
        )
    weight = cast(Tensor, layer.weight).detach()
    scale = torch.ones(len(weight))
    if bits.weight != FLOAT_BITS:
        scale = weight_scale(weight, bits.weight)
        weight = quantize_weight(weight, scale, bits.weight)
    quantized = clone_module(layer, {"weight": weight})
    quantized.__class__ = twin
    quantized.__dict__["bits"] = bits
    input_scale, zero_point = input_grid or (1.0, 0)
    quantized.register_buffer("weight_scale", scale)
    quantized.register_buffer("input_scale", torch.tensor(input_scale))
    quantized.register_buffer("input_zero_point", torch.tensor(zero_point, dtype=torch.int32))
    return quantized
