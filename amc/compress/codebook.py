"""A decision on every layer: how many bits say which of a few values a weight has.

The values are the layer's own (Deep Compression, Han et al. 2016). They are floats: fewer bits are
stored, and none are computed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from amc.compress.forms import give_form, of_few_values
from amc.decisions.decision import Decision
from amc.decisions.forms import Levels, Zeros, forms_of
from amc.decisions.held import Held, tie_equal
from amc.errors import ConfigError
from amc.strategy import FLOAT_BITS, Bits, Value

STORED = ("size_bytes", "packed_bytes")


@dataclass(frozen=True)
class Codebook(Decision):
    """Bits of a layer's codebook: with 4, its weights have 16 different values; 32: as they are.

    Where the layer has zeros too, zero is one of the values. A layer whose weights are integers of
    few bits has no codebook beside them.

    Attributes:
        bits: On offer, 1 to 8 or 32.
    """

    bits: tuple[int, ...] = (*range(1, 9), FLOAT_BITS)

    name = "codebook"
    parts = ("codebook_bits",)
    unchanged = (float(FLOAT_BITS),)

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: Bits are none.
        """
        if not self.bits or not set(self.bits) <= {*range(1, 9), FLOAT_BITS}:
            raise ConfigError(
                f"bits of Codebook must be a tuple of numbers among 1 to 8 and {FLOAT_BITS}, got "
                f"{self.bits!r}."
            )

    def values(self, metric: str, device: object) -> Sequence[Value]:
        return [(float(b),) for b in self.bits] if metric in STORED else [self.unchanged]

    def suits(self, value: Value, bits: Bits) -> bool:
        return bits.weight == FLOAT_BITS

    def stored(self, value: Value, bits: Bits) -> Bits:
        return bits._replace(weight=min(int(value[0]), bits.weight))

    def form(self, value: Value) -> Levels | None:
        return Levels(2 ** int(value[0])) if value != self.unchanged else None

    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        form = self.form(value)
        if form is not None:
            give_form(layer, form)
        return layer

    def constrain(self, layer: nn.Module, value: Value, share: float) -> Held | None:
        """Training keeps which weights share a value; gradually, all are free until the end."""
        form, weight = self.form(value), layer.weight
        assert isinstance(weight, Tensor)
        if form is None:
            return None
        if share < 1:
            return Held(lambda tensor: tensor)
        has_zeros = any(isinstance(held, Zeros) for held in forms_of(layer))
        weight.data = of_few_values(weight.data, form.count, has_zeros=has_zeros)
        return tie_equal(weight)

    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Tensor:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return of_few_values(weight.detach(), 2 ** int(number))

    def feature(self, number: float) -> float:
        return math.log2(1 + number) / math.log2(1 + FLOAT_BITS)
