"""The first decision on every layer: how many bits its weights and its inputs have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn, tensor
from torch.utils.weak import WeakIdKeyDictionary

from amc.compress.quantization import (
    Quantized,
    activation_range,
    quantize_layer,
    quantize_weight,
    round_to_grid,
    weight_scale,
)
from amc.cost.budget import DEVICE_METRICS
from amc.decisions import Change, Decision
from amc.errors import ConfigError
from amc.strategy import FLOAT, FLOAT_BITS, Bits, Value

LOW_BITS = tuple(range(2, 9))  # on offer for metrics that count bits and need no device


@dataclass(frozen=True)
class Precision(Decision):
    """Bits of weights and of input activations; simulated in floats (`amc.compress.quantization`).

    Attributes:
        weight_bits, activation_bits: Widths on offer, as in `amc.problem.space.SearchSpace`.
    """

    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None

    name = "precision"
    parts = ("weight_bits", "activation_bits")
    unchanged = FLOAT

    def values(self, metric: str, device: Any) -> Sequence[Bits]:
        """
        Raises:
            ConfigError: None of the widths asked for is priced by the device.
        """
        if metric in DEVICE_METRICS and device is not None:
            offered: Sequence[Bits] = device.supported_bits
        else:
            every = (*LOW_BITS, FLOAT_BITS)
            counted = metric in ("bops", "size_bytes", "packed_bytes")
            weights = self.weight_bits or (every if counted else (32,))
            inputs = self.activation_bits or (every if metric == "bops" else (32,))
            offered = [Bits(w, a) for w in weights for a in inputs]
        chosen = tuple(
            bits
            for bits in offered
            if (self.weight_bits is None or bits.weight in self.weight_bits)
            and (self.activation_bits is None or bits.activation in self.activation_bits)
        )
        if not chosen:
            raise ConfigError(
                f"env.weight_bits={self.weight_bits}, env.activation_bits={self.activation_bits} "
                f"leave no pair that the device prices: {', '.join(map(str, offered))}."
            )
        return chosen

    def apply(self, layer: nn.Module, value: Value, inputs: Tensor | None) -> nn.Module:
        bits = Bits(*map(int, value))
        if isinstance(layer, Quantized) and layer.bits == bits:
            return layer
        is_float = bits.activation == FLOAT_BITS
        grid = (
            (1.0, 0) if inputs is None else None if is_float else grid_of(inputs, bits.activation)
        )
        return quantize_layer(layer, bits, grid)

    def change(self, layer: nn.Module, part: str, number: float, inputs: Tensor) -> Change:
        width = int(number)
        if part == "weight_bits":
            weight = layer.weight.detach()  # type: ignore[operator]
            return quantize_weight(weight, weight_scale(weight, width), width)
        scale, zero = map(tensor, grid_of(inputs, width))
        return lambda received: round_to_grid(received, scale, zero, width)

    def feature(self, number: float) -> float:
        return float(np.log2(1 + number) / np.log2(1 + FLOAT_BITS))


_grids: Any = WeakIdKeyDictionary()  # sampled inputs -> width -> their grid


def grid_of(values: Tensor, width: int) -> tuple[float, int]:
    """`activation_range`, found once for the same values."""
    known: dict[int, tuple[float, int]] = _grids.setdefault(values, {})
    if width not in known:
        known[width] = activation_range(values, width)
    return known[width]
