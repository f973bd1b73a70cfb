"""What a tensor between layers may be converted to, by name."""

from __future__ import annotations

from amc.strategy import FLOAT_BITS, Bits

INT8 = Bits(8, 8)

# Conversion -> from what to what. A device that prices conversions says which of them. Where it
# dequantizes nothing is rescaled: it takes 8-bit values for floats wherever floats are given.
CONVERSIONS: dict[str, str] = {
    "unblock": "from what a float convolution gives (blocks of channels) to plain floats",
    "narrow": "from one float convolution to the next, where that has few input channels",
    "block": "from plain floats to what a float convolution reads",
    "quantize": "from plain floats to 8-bit counts",
    "dequantize": "from 8-bit counts to plain floats",
    "transpose": "from 8-bit counts to what an integer convolution reads (channels last), or back",
    "rescale": "from 8-bit counts to plain floats between layers, where 8-bit layers read counts "
    "even if they give floats",
}

BLOCK_CONVERSIONS = {"unblock", "narrow", "block"}
TRANSPOSE = "transpose"


def reads_counts(bits: Bits) -> bool:
    """Whether a layer reads 8-bit values: what passes between layers may have so many."""
    return bits.activation == INT8.activation


def is_integer(bits: Bits) -> bool:
    """Whether a layer multiplies integers."""
    return FLOAT_BITS not in bits


def dequantized(bits: Bits) -> Bits:
    """What a quantized layer that cannot be computed in integers is priced as.

    Its inputs are rounded, but multiplied as floats; its weights are floats once it runs.
    """
    return Bits(bits.weight, FLOAT_BITS)
