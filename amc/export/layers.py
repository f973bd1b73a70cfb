"""A layer in numbers as it is deployed: batch normalisation folded, integers where quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amc.compress.quantization import Quantized, quantize_weight
from amc.layers import Layer, product_of
from amc.strategy import FLOAT, FLOAT_BITS, Bits

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_LARGEST_BIAS = 2**30  # counts: int32 holds as many again, of products, beside them


@dataclass(frozen=True)
class DeployedLayer:
    """What a layer computes: its inputs through their grid, its weights, its bias.

    Attributes:
        path: Of the layer in the network.
        bits: Of weights and input activations.
        weight: (outputs, ...): float64, or int8 on the grid of ``bits.weight``.
        weight_scale: Of the integers, float64, (outputs,); None where the weight is float.
        bias: Float64, (outputs,), or None.
        input_scale, input_zero_point: Of the input's grid; meaningless where it is float.
        output_dim: Which dimension of ``weight`` is the outputs, once `stored`.
    """

    path: str
    bits: Bits
    weight: Array
    weight_scale: Floats | None
    bias: Floats | None
    input_scale: float = 1.0
    input_zero_point: int = 0
    output_dim: int = 0

    @classmethod
    def of(cls, path: str, layer: Layer) -> DeployedLayer:
        """A layer of a network, quantized or not."""
        bias = None if layer.bias is None else layer.bias.detach().double().numpy()
        if not isinstance(layer, Quantized):
            return cls(path, FLOAT, layer.weight.detach().double().numpy(), None, bias)
        weight = layer.weight.detach()
        scale = None
        if layer.bits.weight != FLOAT_BITS:
            per_output = layer.weight_scale.view(-1, *[1] * (weight.dim() - 1))
            grid = quantize_weight(weight, layer.weight_scale, layer.bits.weight)
            weight = (grid / per_output).round().char()
            scale = layer.weight_scale.double().numpy()
        return cls(
            path,
            layer.bits,
            weight.numpy() if scale is not None else weight.double().numpy(),
            scale,
            bias,
            float(layer.input_scale),
            int(layer.input_zero_point),
        )

    def scaled(self, factor: Floats, shift: Floats) -> DeployedLayer:
        """The layer followed by ``factor * y + shift`` per output; its integers stay on their grid.

        factor * (scale * W x + b) + shift = (scale * |factor|) (sign(factor) W) x + ..., so that
        only scales and biases change, and the signs of integers whose factor is negative.
        """
        bias = shift if self.bias is None else self.bias * factor + shift
        per_output = factor.reshape(-1, *[1] * (self.weight.ndim - 1))
        if self.weight_scale is None:
            return replace(self, weight=self.weight * per_output, bias=bias)
        weight = self.weight * np.sign(per_output).astype(np.int8)
        return replace(
            self, weight=weight, weight_scale=self.weight_scale * np.abs(factor), bias=bias
        )

    def deployable(self) -> DeployedLayer:
        """The same function in scales that runtimes can compute with.

        They divide by scales: none is 0. And ONNX Runtime turns the bias of an integer layer into
        int32 counts of input scale * weight scale, which beside the tiny scale of a nearly dead
        channel would silently overflow. Such a channel gets a larger scale, and fewer counts of
        it: that changes what it gives by some millionths of its bias.
        """
        if self.weight_scale is None:
            return self
        rows = self.weight.reshape(len(self.weight), -1)
        scale = np.where(rows.any(axis=1), self.weight_scale, 1.0)
        scale = np.maximum(scale, self._least_scale)
        counts = np.round(rows * (self.weight_scale / scale)[:, None]).astype(np.int8)
        return replace(self, weight=counts.reshape(self.weight.shape), weight_scale=scale)

    def stored(self, layer: Layer) -> DeployedLayer:
        """The same with its weight as the layer's ONNX operator takes it.

        In floats where no dimension of that is the outputs, for a scale each: on their grid still.
        """
        kind = product_of(layer)
        weight, dim = kind.onnx_weight(layer, self.weight)
        if dim is not None or self.weight_scale is None:
            return replace(self, weight=weight, output_dim=dim or 0)
        scale = self.weight_scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        weight, _ = kind.onnx_weight(layer, self.weight * scale)
        return replace(
            self, weight=weight, weight_scale=None, bits=Bits(FLOAT_BITS, self.bits.activation)
        )

    @property
    def _least_scale(self) -> Floats:
        """Of the weights of every output, so that its bias fits into int32 counts."""
        if self.bias is None or self.bits.activation == FLOAT_BITS:
            return np.zeros(len(self.weight))
        bias = np.where(np.isfinite(self.bias), np.abs(self.bias), 0.0)
        least: Floats = bias / (self.input_scale * _LARGEST_BIAS)
        return least

    @property
    def bias_counts(self) -> tuple[Array, Array] | None:
        """The bias as int32 counts, (outputs,), and their scale: input scale * weight scale.

        So a runtime adds it to the sums of products of integers. None where it cannot: unless
        inputs, weights and bias are all there as numbers. That they fit: see `deployable`.
        """
        if self.bias is None or self.weight_scale is None or self.bits.activation == FLOAT_BITS:
            return None
        scale = (self.input_scale * self.weight_scale).astype(np.float32)
        if not np.isfinite(self.bias).all() or not scale.all():
            return None
        return np.round(self.bias / scale).astype(np.int32), scale
