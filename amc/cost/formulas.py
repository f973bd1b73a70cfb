"""Costs that need no device: macs, bops, parameters and bytes, as products of the sizes.

Channels are ints, or int64 arrays that broadcast: ``macs(s, c[:, None], d[None, :])`` is a
grid. Everything is per sample; a batch multiplies macs and bops.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from amc.graph.types import STORED, Signature
from amc.strategy import FLOAT, FLOAT_BITS, Bits

Count = TypeVar("Count", int, npt.NDArray[np.int64])
_FLOAT_BYTES = 4


def is_paired(signature: Signature) -> bool:
    """Whether output channels follow input channels, one to one, so that there is no grid.

    True for depthwise convolutions and for every operator between layers.
    """
    return signature.is_depthwise or not signature.is_layer


def macs(signature: Signature, in_channels: Count, out_channels: Count) -> Count:
    """Multiply-adds for one sample; between layers only attention's products have some.

    out_h * out_w * kernel_h * kernel_w * in_channels / groups * out_channels; a depthwise
    layer has one input channel for each output channel, a linear layer is computed at each of its
    positions, and a transposed convolution at each of its input's. A call that is counted whole has
    its own, whatever the channels. Attention's products have queries * keys * windows for each of
    the channels of all heads.
    """
    if signature.is_product:
        (keys, windows), (queries, _) = signature.in_size, signature.out_size
        return in_channels * 0 + out_channels * (queries * keys * windows)
    if not signature.is_layer:
        return in_channels * out_channels * 0 + signature.own_macs
    height, width = signature.run_size
    return _weights(signature, in_channels, out_channels) * (height * width)


def bops(signature: Signature, in_channels: Count, out_channels: Count, bits: Bits) -> Count:
    """Bit operations: macs * weight bits * activation bits (Baskin et al., UNIQ, 2018)."""
    return macs(signature, in_channels, out_channels) * (bits.weight * bits.activation)


def params(signature: Signature, in_channels: Count, out_channels: Count, has_bias: bool) -> Count:
    """Weights, and one bias for each output channel; what is stored elsewhere is counted there.

    Operators between layers have none; their parameters, where they have some, are a part of the
    network of their own, with as many channels as there are parameters.
    """
    weights = _weights(signature, in_channels, out_channels)
    return weights + _per_output(signature, in_channels, out_channels) * int(has_bias)


def size_bytes(
    signature: Signature,
    in_channels: Count,
    out_channels: Count,
    bits: Bits = FLOAT,
    has_bias: bool = True,
) -> Count:
    """Bytes that store a layer: weights packed at ``bits.weight``, the rest as float32.

    Biases take 4 bytes each. Quantized weights bring one float scale (4 bytes) for each
    output channel. The packed weights are rounded up to a whole byte.
    """
    weights = _weights(signature, in_channels, out_channels)
    packed = (weights * bits.weight + 7) // 8
    floats = int(has_bias) + int(bits.weight < FLOAT_BITS)
    per_output = _per_output(signature, in_channels, out_channels)
    return packed + per_output * (floats * _FLOAT_BYTES)


def _weights(signature: Signature, in_channels: Count, out_channels: Count) -> Count:
    """Weights of a layer, or parameters that no layer has; shape of the broadcast channels."""
    kernel_h, kernel_w = signature.kernel
    if signature.op == STORED:
        return out_channels + in_channels * 0
    if not signature.is_layer:
        return in_channels * out_channels * 0
    if signature.is_depthwise:
        return _per_output(signature, in_channels, out_channels) * (kernel_h * kernel_w)
    return in_channels * out_channels // signature.groups * (kernel_h * kernel_w)


def _per_output(signature: Signature, in_channels: Count, out_channels: Count) -> Count:
    """One for each output channel of a layer, shape of the broadcast channels."""
    # The product with 0 broadcasts out_channels to the shape of the grid.
    return out_channels * int(signature.is_layer) + in_channels * 0
